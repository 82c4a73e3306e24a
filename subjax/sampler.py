"""The one sampler: prefill once per prompt, then a jitted token loop with slot refill.

All prompts of a call are prefilled first, `num_slots` at a time. Decoding then runs in a single
`while_loop` on the device: each slot holds one row, and when rows have ended their slots take the
next prompts' keys and values without asking the host. A row's tokens depend on its prompt, its
key and the number of slots, never on its slot or its neighbours.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from subjax import rng, sharding, transformer
from subjax.architecture import Architecture
from subjax.transformer import Params


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How rows are drawn.

    Attributes:
      num_slots: rows decoded side by side.
      prompt_tokens: longest prompt, in tokens; shorter ones are padded to it.
      max_new_tokens: a row ends here at the latest.
      temperature: 1.0 samples the model's distribution, 0.0 is greedy.
      eos_ids: tokens that end a row.
      precision: a name of `precision.PRECISIONS`.
    """

    num_slots: int
    prompt_tokens: int
    max_new_tokens: int
    temperature: float
    eos_ids: tuple[int, ...]
    precision: str = "float32"


@dataclasses.dataclass(frozen=True)
class Samples:
    """Sampled rows, in the order of their prompts.

    Attributes:
      tokens: [rows, max_new_tokens]; past a row's length it is zero.
      lengths: [rows], tokens drawn, the ending one counted.
      stopped: [rows], whether a row ended itself; the others were cut.
      occupancy: share of slot-steps that held an unfinished row.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    occupancy: float


def sample(
    arch: Architecture,
    params: Params,
    sampling: Sampling,
    prompts: Sequence[Sequence[int]],
    keys: Key[Array, " N"],
    *,
    mesh: Mesh,
    adapter: Params | None = None,
    allowed: Bool[np.ndarray, "new V"] | None = None,
) -> Samples:
    """Draws one row per prompt.

    Args:
      arch: shapes of the model.
      params: its weights.
      sampling: slots, lengths, temperature, ending tokens.
      prompts: token ids of each row's prompt.
      keys: each row's key, of `rng.row_keys`.
      mesh: where to run.
      adapter: LoRA tree as `lora.scaled` returns it, or None.
      allowed: the tokens permitted at each new position (a grammar of fixed slots), or None.

    Raises:
      ValueError: a prompt that is empty or longer than `prompt_tokens`.
    """
    num_rows = len(prompts)
    tokens, lengths = _padded(sampling, prompts)
    grammar = None if allowed is None else _grammar(allowed)
    mesh = sharding.lane_mesh(mesh)
    tokens, lengths, keys, grammar = sharding.replicate((tokens, lengths, keys, grammar), mesh)
    with jax.set_mesh(mesh):
        blocks = [
            slice(i, i + sampling.num_slots) for i in range(0, len(tokens), sampling.num_slots)
        ]
        parts = [
            _prefill(arch, sampling, params, adapter, tokens[block], lengths[block])
            for block in blocks
        ]
        hidden, cache = jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts)
        spare = jnp.broadcast_to(keys[:1], (len(tokens) - num_rows,))
        out, counts, steps = _decode(
            arch,
            sampling,
            params,
            adapter,
            _Prefilled(hidden, cache, lengths, jnp.concatenate([keys, spare])),
            grammar,
            np.int32(num_rows),
        )
    drawn, counts, steps = sharding.to_host((out, counts, steps))
    drawn, counts = drawn[:num_rows], counts[:num_rows]
    last_tokens = drawn[np.arange(num_rows), counts - 1]
    return Samples(
        tokens=drawn,
        lengths=counts,
        stopped=np.isin(last_tokens, sampling.eos_ids),
        occupancy=float(counts.sum() / max(int(steps) * sampling.num_slots, 1)),
    )


def traced(
    arch: Architecture,
    sampling: Sampling,
    *,
    num_rows: int,
    mesh: Mesh,
    adapter: Params | None = None,
) -> tuple[jax.stages.Traced, jax.stages.Traced]:
    """Prefill and token loop that `sample` runs, on shapes alone: for compiling without devices.

    Args:
      arch: shapes of the model.
      sampling: slots, lengths, temperature, ending tokens.
      num_rows: of a call; the keys and values of all their prompts are held at once.
      mesh: as `sample` would get it.
      adapter: shapes of a LoRA tree, or None.
    """
    mesh = sharding.lane_mesh(mesh)
    weights = (transformer.abstract_params(arch), adapter)
    params, adapter = sharding.abstract(
        weights, sharding.params_spec(weights, mesh, lanes=False), mesh
    )
    padded = num_rows + -num_rows % sampling.num_slots

    def block(num_rows: int) -> tuple[Any, Any]:
        tokens = jax.ShapeDtypeStruct((num_rows, sampling.prompt_tokens), jnp.int32)
        lengths = jax.ShapeDtypeStruct((num_rows,), jnp.int32)
        spec = sharding.rows_spec(num_rows, mesh)
        return sharding.abstract((tokens, lengths), spec, mesh)

    with jax.set_mesh(mesh):
        prefill = _prefill.trace(arch, sampling, params, adapter, *block(sampling.num_slots))
        # The loop gets what prefilling makes of all rows.
        hidden, cache = jax.eval_shape(
            functools.partial(_prefill, arch, sampling), params, adapter, *block(padded)
        )
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), padded))
        _, lengths = block(padded)
        hidden, cache = sharding.abstract(
            (hidden, cache), sharding.cache_spec((hidden, cache), mesh), mesh
        )
        keys = sharding.abstract(keys, sharding.rows_spec(padded, mesh), mesh)
        prefilled = _Prefilled(hidden, cache, lengths, keys)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        decode = _decode.trace(arch, sampling, params, adapter, prefilled, None, count)
    return prefill, decode


def _grammar(allowed: Bool[np.ndarray, "new V"]) -> Any:
    """The tokens allowed anywhere, and where: scores of all others need not be computed."""
    ids = np.flatnonzero(allowed.any(axis=0))
    return ids.astype(np.int32), allowed[:, ids]


def _padded(
    sampling: Sampling, prompts: Sequence[Sequence[int]]
) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
    """Prompts as arrays of whole blocks of slots, so that one program serves calls of any size."""
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths, default=0) < 1 or max(lengths) > sampling.prompt_tokens:
        raise ValueError(
            f"prompts of {min(lengths, default=0)} to {max(lengths, default=0)} tokens; the config "
            f"allows 1 to {sampling.prompt_tokens}: raise prompt_tokens"
        )
    num_spare = -len(prompts) % sampling.num_slots
    tokens = np.zeros((len(prompts) + num_spare, sampling.prompt_tokens), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, np.array(lengths + [1] * num_spare, np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prefill(
    arch: Architecture,
    sampling: Sampling,
    params: Params,
    adapter: Params | None,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> tuple[Float[Array, "B D"], Any]:
    """The state that predicts each prompt's next token, and per layer its keys and values."""
    hidden, (keys, values) = transformer.prefill(
        arch, params, tokens, adapter=adapter, precision=sampling.precision
    )
    last = hidden[jnp.arange(len(tokens)), lengths - 1]
    cache = [(keys[i], values[i]) for i in range(arch.num_layers)]
    return sharding.constrain_cache((last, cache))


class _Prefilled(NamedTuple):
    """What is known of every row before its first token."""

    hidden: Float[Array, "N D"]  # predicts the first token
    cache: Any  # per layer, keys and values [N, K, T, H]
    lengths: Int[Array, " N"]  # of the prompts
    keys: Key[Array, " N"]


class _Slots(NamedTuple):
    """What is in the slots, and which row is next."""

    row: Int[Array, " S"]  # -1 where the slot is free
    step: Int[Array, " S"]  # tokens of the row drawn so far
    hidden: Float[Array, "S D"]  # predicts its next token
    cache: Any  # per layer, keys and values [S, K, T + new, H]
    next_row: Int[Array, ""]


Grammar = tuple[Int[Array, " A"], Bool[Array, "new A"]]  # allowed tokens, and where each is


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(
    arch: Architecture,
    sampling: Sampling,
    params: Params,
    adapter: Params | None,
    prefilled: _Prefilled,
    grammar: Grammar | None,
    num_rows: Int[Array, ""],
) -> tuple[Int[Array, "N new"], Int[Array, " N"], Int[Array, ""]]:
    """Decodes rows 0..num_rows; returns tokens, their counts, and the steps that it took."""
    padded = len(prefilled.lengths)
    layers = transformer.decode_layers(params, adapter, precision=sampling.precision)
    eos = jnp.array(sampling.eos_ids)
    # Refilling copies keys and values, so it waits until an eighth of the slots is free.
    enough = max(sampling.num_slots // 8, 1)

    def body(state: Any) -> Any:
        slots, out, counts, steps = state
        num_free = jnp.sum(slots.row < 0)
        due = (num_free >= enough) | (num_free == sampling.num_slots)
        slots = jax.lax.cond(
            due & (slots.next_row < num_rows),
            lambda slots: _refill(slots, prefilled, num_rows),
            lambda slots: slots,
            slots,
        )
        row, step, hidden, cache, next_row = slots
        active = row >= 0
        token = _draw(arch, sampling, params, hidden, prefilled.keys[row], step, grammar)
        index = jnp.where(active, row, padded)  # idle slots write to a row that is dropped
        out = out.at[index, step].set(token, mode="drop")
        counts = counts.at[index].set(step + 1, mode="drop")
        ended = jnp.isin(token, eos) | (step + 1 >= sampling.max_new_tokens)
        position = jnp.where(active, prefilled.lengths[row] + step, 0)
        hidden, cache = transformer.decode_step(
            arch, params, layers, token, position, cache, precision=sampling.precision
        )
        hidden, cache = sharding.constrain_cache((hidden, cache))
        row = jnp.where(active & ~ended, row, -1)
        step = jnp.where(ended, 0, step + 1)
        return _Slots(row, step, hidden, cache, next_row), out, counts, steps + 1

    def unfinished(state: Any) -> Array:
        return jnp.any(state[0].row >= 0) | (state[0].next_row < num_rows)

    out = jnp.zeros((padded, sampling.max_new_tokens), jnp.int32)
    counts = jnp.zeros(padded, jnp.int32)
    state = (_empty(sampling, prefilled), out, counts, jnp.int32(0))
    return jax.lax.while_loop(unfinished, body, state)[1:]


def _empty(sampling: Sampling, prefilled: _Prefilled) -> _Slots:
    num_slots = sampling.num_slots

    def room(leaf: Array) -> Array:
        length = sampling.prompt_tokens + sampling.max_new_tokens
        return jnp.zeros((num_slots, leaf.shape[1], length, leaf.shape[3]), leaf.dtype)

    return _Slots(
        row=jnp.full(num_slots, -1),
        step=jnp.zeros(num_slots, int),
        hidden=jnp.zeros_like(prefilled.hidden, shape=(num_slots, prefilled.hidden.shape[1])),
        cache=sharding.constrain_cache(jax.tree.map(room, prefilled.cache)),
        next_row=jnp.int32(0),
    )


def _refill(slots: _Slots, prefilled: _Prefilled, num_rows: Int[Array, ""]) -> _Slots:
    """Gives free slots the next rows."""
    free = slots.row < 0
    candidate = slots.next_row + jnp.cumsum(free) - 1
    taken = free & (candidate < num_rows)
    source = jnp.where(taken, candidate, 0)

    def copy(new: Array, old: Array) -> Array:
        chosen = taken.reshape(-1, *[1] * (old.ndim - 1))
        head = jnp.where(chosen, new[source], old[:, :, : new.shape[2]])
        return jax.lax.dynamic_update_slice(old, head, (0,) * old.ndim)

    return _Slots(
        row=jnp.where(taken, candidate, slots.row),
        step=jnp.where(taken, 0, slots.step),
        hidden=jnp.where(taken[:, None], prefilled.hidden[source], slots.hidden),
        cache=jax.tree.map(copy, prefilled.cache, slots.cache),
        next_row=slots.next_row + jnp.sum(taken),
    )


def _draw(
    arch: Architecture,
    sampling: Sampling,
    params: Params,
    hidden: Float[Array, "S D"],
    keys: Key[Array, " S"],
    step: Int[Array, " S"],
    grammar: Grammar | None,
) -> Int[Array, " S"]:
    ids, allowed = grammar or (None, None)
    logits = transformer.logits(arch, params, hidden, tokens=ids, precision=sampling.precision)
    if allowed is not None:
        logits = jnp.where(allowed[step], logits, -jnp.inf)
    if sampling.temperature != 0.0:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(
            rng.token_keys(keys, step)
        )
        logits = logits / sampling.temperature + noise
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return best if ids is None else ids[best].astype(jnp.int32)
