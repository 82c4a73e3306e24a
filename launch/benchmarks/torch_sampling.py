"""Sampling and candidates on the PyTorch side of `bench.py compare`, as an expert would do them.

Prompts sorted by length, left padding, keys and values cached in buffers with room for more, common
tokens read once, answers to a prompt behind one copy of it, rows dropped from the batch once they
have ended. `generate` is transformers' own, which does none of this.
"""

import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 32  # tokens by which a buffer of keys and values grows


class Roomy(DynamicLayer):
    """Keys and values in buffers with room, since concatenation copies them at every token."""

    rooms: Any = None

    def update(self, keys: Any, values: Any, *args: Any, **more: Any) -> tuple[Any, Any]:
        """Appends keys and values; returns all."""
        used = self.get_seq_length()
        length = used + keys.shape[-2]
        if self.rooms is None or length > self.rooms[0].shape[-2]:
            if not self.is_initialized:
                self.lazy_initialization(keys, values)
            self.rooms = [_with_room(keys, self.keys, used), _with_room(values, self.values, used)]
        for room, new in zip(self.rooms, (keys, values), strict=True):
            room[:, :, used:length] = new
        self.keys, self.values = (room[:, :, :length] for room in self.rooms)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        super().batch_repeat_interleave(repeats)
        self.rooms = None

    def batch_select_indices(self, indices: Any) -> None:
        """Keeps some rows."""
        super().batch_select_indices(indices)
        self.rooms = None


def _with_room(new: Any, held: Any, used: int) -> Any:
    room = new.new_empty(*new.shape[:-2], used + new.shape[-2] + ROOM, new.shape[-1])
    if used:
        room[:, :, :used] = held
    return room


class Read(NamedTuple):
    """A batch whose tokens have been read."""

    scores: Any  # [B, V] of the next token
    cache: Any
    mask: Any  # [B, T] 0 at padding
    positions: Any  # [B] of the next token

    def repeated(self, times: int) -> "Read":
        """Every row several times."""
        if times == 1:
            return self
        self.cache.batch_repeat_interleave(times)
        held = [leaf.repeat_interleave(times, 0) for leaf in (self.scores, self.mask)]
        return Read(held[0], self.cache, held[1], self.positions.repeat_interleave(times, 0))


def _forward(model: Any, ids: Any, before: Read, mask: Any, positions: Any, kept: int) -> Any:
    """Scores [B, kept, V] of the last tokens of `ids`, which go to the cache of `before`."""
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=kept,
        **{_cache_argument(type(model)): before.cache},
    ).logits.float()


@functools.cache
def _cache_argument(kind: type[Any]) -> str:
    """Later releases of transformers have another name for it."""
    named = inspect.signature(kind.forward).parameters
    return "cache" if "cache" in named else "past_key_values"


def _nothing(model: Any) -> Read:
    cache = DynamicCache(config=model.config)
    # Layers with a sliding window stay as they are.
    cache.layers = [Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return Read(None, cache, torch.ones(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long))


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; each keeps at least one of its own."""
    most = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    return next((i for i in range(most) if any(p[i] != first[i] for p in prompts)), max(most, 0))


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Tokens with padding on the left, and their mask."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, (torch.arange(longest) >= longest - lengths[:, None]).long()


def _read(model: Any, prompts: Sequence[Sequence[int]], before: Read) -> Read:
    """Reads prompts behind what has been read of one row."""
    ids, own = _padded(prompts)
    begun = before.mask.shape[1]
    before = before._replace(cache=copy.deepcopy(before.cache))
    if begun:
        before.cache.batch_repeat_interleave(len(prompts))
    mask = torch.cat([own.new_ones(len(prompts), begun), own], 1)
    positions = begun + (own.cumsum(1) - 1).clamp(min=0)
    scores = _forward(model, ids, before, mask, positions, 1)[:, 0]
    return Read(scores, before.cache, mask, positions[:, -1] + 1)


def _blocks(
    model: Any, prompts: Sequence[Sequence[int]], at_once: int, *, shared: bool
) -> Iterator[tuple[list[int], Read]]:
    """Prompts that have been read, longest first, and which they are."""
    common = _common(prompts) if shared else 0
    before = _nothing(model)
    if common:
        before = _read(model, [prompts[0][:common]], before)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for first in range(0, len(order), at_once):
        block = order[first : first + at_once]
        yield block, _read(model, [prompts[i][common:] for i in block], before)


def draw(
    model: Any, prompts: Sequence[Sequence[int]], n: int, limits: dict[str, Any], *, shared: bool
) -> list[list[int]]:
    """Tokens of n answers to each prompt.

    Args:
      model: the model.
      prompts: token ids.
      n: answers to each.
      limits: `slots` (rows at once), `new_tokens`, `temperature` and `eos`.
      shared: whether tokens that all prompts begin with are read once.
    """
    found: list[list[int]] = [[] for _ in range(n * len(prompts))]
    for block, read in _blocks(model, prompts, max(limits["slots"] // n, 1), shared=shared):
        rows = [n * i + k for i in block for k in range(n)]
        for row, tokens in zip(rows, _decode(model, read.repeated(n), limits), strict=True):
            found[row] = tokens
    return found


def _decode(model: Any, read: Read, limits: dict[str, Any]) -> list[list[int]]:
    rows = torch.arange(len(read.scores))  # the row at each place of the batch
    drawn = torch.full((len(rows), limits["new_tokens"]), -1)
    ends, live = torch.tensor(limits["eos"]), torch.ones(len(rows), dtype=torch.bool)
    scores, cache, mask, positions = read
    for step in range(limits["new_tokens"]):
        if limits["temperature"]:
            chances = (scores / limits["temperature"]).softmax(-1)
            token = torch.multinomial(chances, 1)[:, 0]
        else:
            token = scores.argmax(-1)
        drawn[rows[live], step] = token[live]
        live &= ~torch.isin(token, ends)
        if not live.any() or step + 1 == limits["new_tokens"]:
            break
        # Dropping rows copies the cache, so it waits until an eighth of them has ended.
        if live.sum() <= 7 * len(live) / 8:
            kept = live.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, token, mask, positions, live = (
                leaf[kept] for leaf in (rows, token, mask, positions, live)
            )
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        before = Read(None, cache, mask, positions)
        scores = _forward(model, token[:, None], before, mask, positions[:, None], 1)[:, 0]
        positions = positions + 1
    return [[token for token in row if token >= 0] for row in drawn.tolist()]


def generate(
    model: Any, prompts: Sequence[Sequence[int]], n: int, limits: dict[str, Any], *, shared: bool
) -> list[list[int]]:
    """What `draw` gives, by transformers' `generate`, which shares nothing."""
    del shared
    found: list[list[int]] = [[] for _ in range(n * len(prompts))]
    order = sorted(range(n * len(prompts)), key=lambda i: -len(prompts[i // n]))
    choice: dict[str, Any] = {"do_sample": False}
    if limits["temperature"]:
        choice = {"do_sample": True, "temperature": limits["temperature"], "top_k": 0, "top_p": 1.0}
    for first in range(0, len(order), limits["slots"]):
        block = order[first : first + limits["slots"]]
        ids, mask = _padded([prompts[i // n] for i in block])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limits["new_tokens"],
            eos_token_id=limits["eos"],
            pad_token_id=limits["eos"][0],
            **choice,
        )
        for row, tokens in zip(block, out[:, ids.shape[1] :].tolist(), strict=True):
            end = next((i for i, t in enumerate(tokens) if t in limits["eos"]), len(tokens))
            found[row] = tokens[: end + 1]
    return found


def candidate_log_probs(
    model: Any, contexts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], slots: int
) -> list[list[float]]:
    """Log p(candidate | context), in nats; a context is read once for all candidates."""
    first = torch.tensor([candidate[0] for candidate in candidates])
    several = [i for i, candidate in enumerate(candidates) if len(candidate) > 1]
    table = torch.zeros(len(contexts), len(candidates))
    at_once = max(slots // max(len(several), 1), 1)
    for block, read in _blocks(model, contexts, at_once, shared=True):
        table[block] = read.scores.log_softmax(-1)[:, first]
        if several:
            behind = _behind(model, read.repeated(len(several)), [candidates[i] for i in several])
            table[torch.tensor(block)[:, None], torch.tensor(several)] += behind
    return table.tolist()


def _behind(model: Any, read: Read, candidates: Sequence[Sequence[int]]) -> Any:
    """Log-probabilities of candidates without their first token, [contexts, candidates]."""
    depth = max(len(candidate) for candidate in candidates)
    padded = torch.tensor([[*c, *[c[0]] * (depth - len(c))] for c in candidates])
    counted = torch.arange(1, depth) < torch.tensor([[len(c)] for c in candidates])
    times = len(read.mask) // len(candidates)
    ids, targets = padded[:, :-1].repeat(times, 1), padded[:, 1:].repeat(times, 1)
    mask = torch.cat([read.mask, read.mask.new_ones(ids.shape)], 1)
    positions = read.positions[:, None] + torch.arange(depth - 1)
    scores = _forward(model, ids, read, mask, positions, depth - 1).log_softmax(-1)
    nats = scores.gather(-1, targets[..., None])[..., 0] * counted.repeat(times, 1)
    return nats.sum(1).reshape(times, len(candidates))
