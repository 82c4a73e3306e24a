"""Exact scores of texts behind contexts of their own: benchmarks with answers to choose from.

`scoring.candidate_log_probs` is for the same short answers behind every context.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from subjax.nn import losses, sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params

# Tokens that a device reads at once: enough to keep it busy, few enough for the rows of a batch to
# be of about one length, and for the scores of all pairs of their positions to fit.
_AT_ONCE = 4096
# Continuations of a context stand in one row up to so many tokens, or as many as the context has:
# beyond that, attention over a longer row costs more than reading the context again.
_BRANCHING = 128
_LEAST_STEP = 16  # room for tokens and targets is a multiple of it, or of more for long rows


class Score(NamedTuple):
    """Of a continuation behind its context.

    Attributes:
      log_prob: the sum over its tokens, in nats.
      greedy: whether greedy decoding would write it.
    """

    log_prob: float
    greedy: bool


class _Row(NamedTuple):
    """A context, and behind it each continuation as a branch without its last token.

    Attributes:
      tokens: of the context and of all branches.
      branches: 0 in the context, then a number for each branch, as in `transformer.forward`.
      positions: where the hidden state that predicts each target stands.
      targets: the tokens of all continuations.
      lengths: of the continuations.
    """

    tokens: list[int]
    branches: list[int]
    positions: list[int]
    targets: list[int]
    lengths: list[int]


def log_probs(
    arch: Architecture,
    params: Params,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    *,
    mesh: Mesh,
    adapter: Params | None = None,
    precision: str = "float32",
    label: str = "",
) -> list[list[Score]]:
    """Scores continuations; a context is read once for all of its own.

    Args:
      arch: shapes of the model.
      params: its weights.
      contexts: token ids, at least one each.
      continuations: of each context, token ids, at least one each.
      mesh: where to run.
      adapter: LoRA tree as `lora.scaled` returns it, or None.
      precision: a name of `precision.PRECISIONS`.
      label: shown beside the progress bar; empty: none is shown.

    Raises:
      ValueError: a context or a continuation has no tokens.
    """
    parts = [
        (place, part)
        for place, each in enumerate(zip(contexts, continuations, strict=True))
        for part in _parts(*each)
    ]
    rows = [_row(contexts[place], part) for place, part in parts]
    # Neighbours are of about one length, and the longest come first: memory that does not suffice
    # is noticed at once.
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at].tokens))
    mesh = sharding.lane_mesh(mesh)
    found: list[list[Score]] = [[] for _ in rows]
    with tqdm(total=len(rows), desc=label, unit="row", leave=False, disable=not label) as bar:
        while order:
            room = _room(len(rows[order[0]].tokens))
            size = _batch_size(len(order), room, mesh)
            num_targets = _room(max(len(rows[at].targets) for at in order[:size]))
            size = _batch_size(len(order), max(room, num_targets), mesh)
            batch, order = order[:size], order[size:]
            arrays = _arrays([rows[at] for at in batch], size, room)
            with jax.set_mesh(mesh):
                placed = sharding.place_batch(arrays, mesh, lanes=False)
                results = sharding.to_host(_scores(arch, precision, params, adapter, placed))
            for at, nats, likeliest in zip(batch, *results, strict=False):  # then padding
                found[at] = _by_branch(rows[at], nats, likeliest)
            bar.update(len(batch))
    scores: list[list[Score]] = [[] for _ in contexts]
    for (place, _), own in zip(parts, found, strict=True):
        scores[place].extend(own)
    return scores


def _parts(
    context: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[list[Sequence[int]]]:
    """The continuations of a context, by row."""
    parts: list[list[Sequence[int]]] = []
    most, used = max(len(context), _BRANCHING), 0
    for continuation in continuations:
        used += len(continuation)
        if not parts or used > most:
            parts.append([])
            used = len(continuation)
        parts[-1].append(continuation)
    return parts


def _row(context: Sequence[int], continuations: Sequence[Sequence[int]]) -> _Row:
    if not context or not all(map(len, continuations)):
        raise ValueError("a context or a continuation has no tokens: leave it out")
    row = _Row(list(context), [0] * len(context), [], [], list(map(len, continuations)))
    for number, ids in enumerate(continuations, 1):
        begin = len(row.tokens)
        row.tokens.extend(ids[:-1])
        row.branches.extend([number] * (len(ids) - 1))
        row.positions.extend([len(context) - 1, *range(begin, begin + len(ids) - 1)])
        row.targets.extend(ids)
    return row


def _room(length: int) -> int:
    """Room for so many tokens or targets: by at most an eighth more, so that few programs serve."""
    step = max(_LEAST_STEP, 1 << max(length.bit_length() - 4, 0))
    return -(-length // step) * step


def _batch_size(num_rows: int, room: int, mesh: Mesh) -> int:
    """Rows at once: those left in few equal batches, a multiple of the devices across the batch."""
    multiple = int(mesh.shape["data"] * mesh.shape["fsdp"])
    most = max(_AT_ONCE // room, 1) * multiple
    return min(most, math.ceil(num_rows / multiple) * multiple)


def _arrays(rows: Sequence[_Row], size: int, room: int) -> dict[str, np.ndarray]:
    """The rows as arrays [size, room], filled up at the end of each and with repeats of the first.

    What fills a row up is a branch of its own, which no other one sees. Rows of one continuation
    each do not branch, so that devices may use their kernel for attention.
    """
    num_targets = _room(max(len(row.targets) for row in rows))
    lengths = {"tokens": room, "branches": room, "positions": num_targets, "targets": num_targets}
    arrays = {name: np.zeros((size, length), np.int32) for name, length in lengths.items()}
    most = max(len(row.lengths) for row in rows)
    arrays["branches"][:] = 1 + most
    for place, row in enumerate([*rows, *[rows[0]] * (size - len(rows))]):
        for name, array in arrays.items():
            values = getattr(row, name)
            array[place, : len(values)] = values
    if most == 1:
        del arrays["branches"]
    return arrays


def _by_branch(
    row: _Row, nats: Float[np.ndarray, " C"], likeliest: Int[np.ndarray, " C"]
) -> list[Score]:
    same = likeliest[: len(row.targets)] == np.array(row.targets)
    ends = np.cumsum(row.lengths)
    parts = [slice(end - length, end) for end, length in zip(ends, row.lengths, strict=True)]
    return [Score(float(nats[part].sum(dtype=float)), bool(same[part].all())) for part in parts]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
    arch: Architecture, precision: str, params: Params, adapter: Params | None, batch: Params
) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
    hidden = transformer.forward(
        arch,
        params,
        batch["tokens"],
        branches=batch.get("branches"),
        adapter=adapter,
        precision=precision,
    )
    hidden = losses.at_positions(hidden, batch["positions"])
    head = transformer.head(arch, params, precision=precision)
    return losses.log_probs_and_likeliest(hidden, head, batch["targets"])
