"""The one sampler: prefill once per prompt, then a jitted token loop with slot refill.

All prompts of a call are prefilled first, `num_slots` at a time. Decoding then runs in a single
`while_loop` on the device: each slot holds one row, and when rows have ended their slots take the
next prompts' keys and values without asking the host. A row's tokens depend on its prompt, its
key and the number of slots, never on its slot or its neighbours.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

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
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not len(lengths) or lengths.min() < 1 or lengths.max() > sampling.prompt_tokens:
        raise ValueError(
            f"prompts of {lengths.min(initial=0)} to {lengths.max(initial=0)} tokens; the config "
            f"allows 1 to {sampling.prompt_tokens}: raise prompt_tokens"
        )
    # Whole blocks of slots, so that one program serves calls of any size; copies are dropped.
    num_rows = len(prompts)
    padded = -(-num_rows // sampling.num_slots) * sampling.num_slots
    tokens = np.zeros((padded, sampling.prompt_tokens), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    lengths = np.concatenate([lengths, np.ones(padded - num_rows, np.int32)])
    mask = np.zeros((1, 1), bool) if allowed is None else allowed
    with jax.set_mesh(sharding.lane_mesh(mesh)):
        prefilled = [
            _prefill(
                arch,
                sampling,
                params,
                adapter,
                *jax.tree.map(jnp.asarray, (tokens[first:last], lengths[first:last])),
            )
            for first in range(0, padded, sampling.num_slots)
            for last in [first + sampling.num_slots]
        ]
        hidden, store = jax.tree.map(lambda *parts: jnp.concatenate(parts), *prefilled)
        pad_keys = jnp.concatenate([keys, jnp.broadcast_to(keys[:1], (padded - num_rows,))])
        out, counts, steps = _decode(
            arch,
            sampling,
            allowed is not None,
            params,
            adapter,
            (hidden, store, jnp.asarray(lengths)),
            pad_keys,
            jnp.asarray(mask),
            jnp.int32(num_rows),
        )
    drawn, counts = np.asarray(out)[:num_rows], np.asarray(counts)[:num_rows]
    last_tokens = drawn[np.arange(num_rows), counts - 1]
    return Samples(
        tokens=drawn,
        lengths=counts,
        stopped=np.isin(last_tokens, sampling.eos_ids),
        occupancy=float(counts.sum() / max(int(steps) * sampling.num_slots, 1)),
    )


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
    return last, [(keys[i], values[i]) for i in range(arch.num_layers)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(
    arch: Architecture,
    sampling: Sampling,
    constrained: bool,
    params: Params,
    adapter: Params | None,
    prefilled: tuple[Array, Any, Int[Array, " N"]],
    keys: Key[Array, " N"],
    allowed: Bool[Array, "allowed V"],
    num_rows: Int[Array, ""],
) -> tuple[Int[Array, "N new"], Int[Array, " N"], Int[Array, ""]]:
    """Decodes rows 0..num_rows; returns tokens, their counts, and the steps that it took."""
    store_hidden, store, prompt_lengths = prefilled
    num_slots, padded = sampling.num_slots, store_hidden.shape[0]
    layers = transformer.decode_layers(params, adapter)
    eos = jnp.array(sampling.eos_ids)
    slots = jnp.arange(num_slots)
    # Refilling copies keys and values, so it waits until an eighth of the slots is free.
    enough = max(num_slots // 8, 1)

    def refill(state: Any) -> Any:
        row, step, hidden, cache, next_row = state
        free = row < 0
        candidate = next_row + jnp.cumsum(free) - 1
        taken = free & (candidate < num_rows)
        source = jnp.where(taken, candidate, 0)

        def copy(new: Array, old: Array) -> Array:
            chosen = taken.reshape(-1, *[1] * (old.ndim - 1))
            head = jnp.where(chosen, new[source], old[:, : new.shape[1]])
            return jax.lax.dynamic_update_slice(old, head, (0,) * old.ndim)

        return (
            jnp.where(taken, candidate, row),
            jnp.where(taken, 0, step),
            jnp.where(taken[:, None], store_hidden[source], hidden),
            jax.tree.map(copy, store, cache),
            next_row + jnp.sum(taken),
        )

    def body(state: Any) -> Any:
        row, step, hidden, cache, next_row, out, counts, steps = state
        num_free = jnp.sum(row < 0)
        due = (next_row < num_rows) & ((num_free >= enough) | (num_free == num_slots))
        row, step, hidden, cache, next_row = jax.lax.cond(
            due, refill, lambda state: state, (row, step, hidden, cache, next_row)
        )
        active = row >= 0
        index = jnp.where(active, row, padded)  # idle slots write to a row that is dropped
        token = _draw(
            sampling,
            transformer.logits(params, hidden, precision=sampling.precision),
            keys[row],
            step,
            allowed[step] if constrained else None,
        )
        out = out.at[index, step].set(token, mode="drop")
        counts = counts.at[index].set(step + 1, mode="drop")
        ended = jnp.isin(token, eos) | (step + 1 >= sampling.max_new_tokens)
        position = jnp.where(active, prompt_lengths[row] + step, 0)
        hidden, cache = transformer.decode_step(
            arch, params, layers, token, position, cache, precision=sampling.precision
        )
        row = jnp.where(active & ~ended, row, -1)
        step = jnp.where(ended, 0, step + 1)
        return row, step, hidden, cache, next_row, out, counts, steps + 1

    def unfinished(state: Any) -> Array:
        return jnp.any(state[0] >= 0) | (state[4] < num_rows)

    def empty(leaf: Array) -> Array:
        length = sampling.prompt_tokens + sampling.max_new_tokens
        return jnp.zeros((num_slots, length, *leaf.shape[2:]), leaf.dtype)

    state = (
        jnp.full_like(slots, -1),
        jnp.zeros_like(slots),
        jnp.zeros((num_slots, arch.width), store_hidden.dtype),
        jax.tree.map(empty, store),
        jnp.int32(0),
        jnp.zeros((padded, sampling.max_new_tokens), jnp.int32),
        jnp.zeros(padded, jnp.int32),
        jnp.int32(0),
    )
    state = jax.lax.while_loop(unfinished, body, state)
    return state[5], state[6], state[7]


def _draw(
    sampling: Sampling,
    logits: Float[Array, "S V"],
    keys: Key[Array, " S"],
    step: Int[Array, " S"],
    allowed: Bool[Array, "S V"] | None,
) -> Int[Array, " S"]:
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    if sampling.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(
        rng.token_keys(keys, step)
    )
    return jnp.argmax(logits / sampling.temperature + noise, axis=-1).astype(jnp.int32)
