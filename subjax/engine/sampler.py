"""The one sampler: prefill once per distinct prompt, then a jitted token loop with slot refill.

The distinct prompts of a call are prefilled first, `num_slots` at a time. Decoding then runs in a
single `while_loop` on the device: each slot holds one row, and when rows have ended their slots
take copies of the next rows' prompts' keys and values without asking the host. A row's tokens
depend on its prompt, its key, its temperature and the number of slots, never on its slot or its
neighbours.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from subjax.engine import slots, token_sampling
from subjax.nn import activation_sharding, sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params

# Below so many tokens of a prompt, less room for it saves nothing.
_LEAST_ROOM = 16


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How rows are drawn.

    Attributes:
      num_slots: rows decoded side by side.
      prompt_tokens: longest prompt, in tokens; shorter ones are padded to it, see `fitted`.
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


def fitted(sampling: Sampling, prompts: Sequence[Sequence[int]]) -> Sampling:
    """The same with less room for prompts, where all of them are shorter than allowed.

    Rounded up to a power of two, so that few programs serve prompts of all lengths. Give it all the
    prompts of a unit, not those of a call: the last bits of what a row's floats are depend on the
    room, and its bytes must not depend on how a unit is cut.
    """
    longest = max(map(len, prompts), default=0)
    room = max(1 << max(longest - 1, 0).bit_length(), _LEAST_ROOM)
    return dataclasses.replace(sampling, prompt_tokens=min(room, sampling.prompt_tokens))


@dataclasses.dataclass(frozen=True)
class Samples:
    """Sampled rows, in the order of their prompts.

    Attributes:
      tokens: [rows, max_new_tokens]; past a row's length it is zero.
      lengths: [rows], tokens drawn, the ending one counted.
      stopped: [rows], whether a row ended itself; the others were cut.
      occupancy: share of slot-steps that held an unfinished row.
      log_probs: [rows, max_new_tokens], of the tokens, as in `token_sampling.Drawn`, if asked for.
      top_ids: [rows, max_new_tokens, K], the likeliest tokens, if asked for.
      top_log_probs: theirs, likewise.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    occupancy: float
    log_probs: np.ndarray | None = None
    top_ids: np.ndarray | None = None
    top_log_probs: np.ndarray | None = None


def sample(
    arch: Architecture,
    params: Params,
    sampling: Sampling,
    prompts: Sequence[Sequence[int]],
    keys: Key[Array, " N"],
    *,
    mesh: Mesh,
    adapter: Params | None = None,
    grammar: token_sampling.Grammar | None = None,
    temperatures: Sequence[float] | None = None,
    log_probs: bool = False,
    top_log_probs: int = 0,
) -> Samples:
    """Draws one row per prompt.

    Args:
      arch: shapes of the model.
      params: its weights.
      sampling: slots, lengths, temperature, ending tokens.
      prompts: token ids of each row's prompt.
      keys: each row's key, of `token_sampling.row_keys`.
      mesh: where to run.
      adapter: LoRA tree as `lora.scaled` returns it, or None.
      grammar: the tokens permitted in each state, and each row's first state; or None.
      temperatures: each row's, in place of that of `sampling`; or None.
      log_probs: whether log p of each drawn token is returned too.
      top_log_probs: K, so many likeliest tokens are returned at each position; 0: none.

    Raises:
      ValueError: a prompt that is empty or longer than `prompt_tokens`; more likeliest tokens than
        there are; a grammar or temperatures of other rows; temperatures below 0.
    """
    num_rows, num_slots = len(prompts), sampling.num_slots
    tokens, lengths, prompt = _distinct(sampling, prompts)
    if grammar is not None:
        token_sampling.check(grammar, num_rows, arch.vocab_size, sampling.eos_ids)
    most = arch.vocab_size if grammar is None else len(grammar.ids)
    if not 0 <= top_log_probs <= most:
        raise ValueError(f"top_log_probs={top_log_probs} must be 0 to {most}, the tokens there are")
    mesh = sharding.lane_mesh(mesh)
    own = None if temperatures is None else _checked(temperatures, num_rows)
    start = None if grammar is None else grammar.start
    # Whatever rows there are, one program: what they start from goes with them.
    rules = None if grammar is None else grammar._replace(start=grammar.start[:0])
    tokens, lengths, prompt, keys, rules, own, start = sharding.replicate(
        (tokens, lengths, prompt, keys, rules, own, start), mesh
    )
    with jax.set_mesh(mesh):
        hidden, cache = _prefilled(arch, sampling, params, adapter, tokens, lengths)
        # Those of rows that are padding are never used.
        spare = len(prompt) - num_rows
        keys, own, start = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, jnp.broadcast_to(leaf[:1], (spare,))]),
            (keys, own, start),
        )
        out, counts, steps = _decode(
            arch,
            sampling,
            (log_probs, top_log_probs),
            params,
            adapter,
            slots.Prompts(hidden, cache, lengths),
            slots.Rows(prompt, keys, own, start),
            rules,
            np.int32(num_rows),
        )
    out, counts, steps = sharding.to_host((out, counts, steps))
    drawn, counts = jax.tree.map(lambda leaf: leaf[:num_rows], (out, counts))
    last_tokens = drawn.tokens[np.arange(num_rows), counts - 1]
    return Samples(
        lengths=counts,
        stopped=np.isin(last_tokens, sampling.eos_ids),
        occupancy=float(counts.sum() / max(int(steps) * num_slots, 1)),
        **drawn._asdict(),
    )


def traced(
    arch: Architecture,
    sampling: Sampling,
    *,
    num_prompts: int,
    num_rows: int,
    mesh: Mesh,
    adapter: Params | None = None,
) -> tuple[jax.stages.Traced, jax.stages.Traced]:
    """Prefill and token loop that `sample` runs, on shapes alone: for compiling without devices.

    Args:
      arch: shapes of the model.
      sampling: slots, lengths, temperature, ending tokens.
      num_prompts: distinct ones of a call; the keys and values of all are held at once.
      num_rows: of a call.
      mesh: as `sample` would get it.
      adapter: shapes of a LoRA tree, or None.
    """
    mesh = sharding.lane_mesh(mesh)
    weights = (transformer.abstract_params(arch), adapter)
    params, adapter = sharding.abstract(
        weights, sharding.params_spec(weights, mesh, lanes=False), mesh
    )
    num_slots, whole = sampling.num_slots, sharding.WHOLE
    num_rooms = num_slots * _num_blocks(sampling, num_prompts, num_rows)
    padded = num_rows + -num_rows % num_slots

    def ints(*shape: int) -> Any:
        return sharding.abstract(jax.ShapeDtypeStruct(shape, jnp.int32), whole, mesh)

    with jax.set_mesh(mesh):
        read = functools.partial(_prefill, arch, sampling)
        prefill = _prefill.trace(
            arch,
            sampling,
            params,
            adapter,
            ints(num_slots, sampling.prompt_tokens),
            ints(num_slots),
        )
        # The loop gets what prefilling makes of all prompts.
        tokens = ints(num_rooms, sampling.prompt_tokens)
        shapes = jax.eval_shape(read, params, adapter, tokens, ints(num_rooms))
        hidden, cache = sharding.abstract(
            shapes, activation_sharding.cache_spec(shapes, mesh), mesh
        )
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), padded))
        decode = _decode.trace(
            arch,
            sampling,
            (False, 0),
            params,
            adapter,
            slots.Prompts(hidden, cache, ints(num_rooms)),
            slots.Rows(ints(padded), sharding.abstract(keys, whole, mesh)),
            None,
            jax.ShapeDtypeStruct((), jnp.int32),
        )
    return prefill, decode


def _checked(temperatures: Sequence[float], num_rows: int) -> Float[np.ndarray, " N"]:
    """Temperatures of rows, or a ValueError."""
    found = np.asarray(temperatures, np.float32)
    if found.shape != (num_rows,) or not (np.isfinite(found) & (found >= 0)).all():
        raise ValueError(
            f"temperatures must be {num_rows}, one for each row, finite and at least 0"
        )
    return found


def _distinct(
    sampling: Sampling, prompts: Sequence[Sequence[int]]
) -> tuple[Int[np.ndarray, "P T"], Int[np.ndarray, " R"], Int[np.ndarray, " N"]]:
    """The distinct prompts in whole blocks of slots, and which of them each row continues.

    Returns:
      Tokens of the prompts; lengths of the R rooms that the loop keeps for prompts, at least P; the
      prompt of each row, in whole blocks too, so that one program serves calls of any size.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    shortest = min((len(prompt) for prompt in prompts), default=0)
    if shortest < 1 or longest > sampling.prompt_tokens:
        raise ValueError(
            f"prompts of {shortest} to {longest} tokens; the config allows 1 to "
            f"{sampling.prompt_tokens}: raise prompt_tokens"
        )
    places: dict[tuple[int, ...], int] = {}
    of_rows = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    num_slots = sampling.num_slots
    tokens = np.zeros((-(-len(places) // num_slots) * num_slots, sampling.prompt_tokens), np.int32)
    lengths = np.ones(num_slots * _num_blocks(sampling, len(places), len(prompts)), np.int32)
    for ids, place in places.items():
        tokens[place, : len(ids)] = ids
        lengths[place] = len(ids)
    return tokens, lengths, np.array(of_rows + [0] * (-len(prompts) % num_slots), np.int32)


def _num_blocks(sampling: Sampling, num_prompts: int, num_rows: int) -> int:
    """Blocks of slots with room for the distinct prompts of a call.

    A power of two, or as many as the rows fill: few programs serve however often prompts repeat.
    """
    needed, most = (-(-count // sampling.num_slots) for count in (num_prompts, num_rows))
    return min(1 << (needed - 1).bit_length(), most)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prefill(
    arch: Architecture,
    sampling: Sampling,
    params: Params,
    adapter: Params | None,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> tuple[Float[Array, "B D"], Any]:
    """The state that predicts each prompt's next token, and its keys and values."""
    hidden, (keys, values) = transformer.prefill(
        arch, params, tokens, adapter=adapter, precision=sampling.precision
    )
    last = hidden[jnp.arange(len(tokens)), lengths - 1]
    return activation_sharding.constrain_cache((last, transformer.decode_cache(keys, values)))


def _prefilled(
    arch: Architecture,
    sampling: Sampling,
    params: Params,
    adapter: Params | None,
    tokens: Int[Array, "P T"],
    lengths: Int[Array, " R"],
) -> tuple[Array, Any]:
    """What `_prefill` makes of all prompts, block by block, with room for R of them."""
    num_slots = sampling.num_slots
    parts = [
        _prefill(
            arch, sampling, params, adapter, tokens[i : i + num_slots], lengths[i : i + num_slots]
        )
        for i in range(0, len(tokens), num_slots)
    ]
    # Room for prompts that are not there holds any; no row asks for them.
    parts += parts[-1:] * (len(lengths) // num_slots - len(parts))
    return _joined(parts)


@jax.jit
def _joined(parts: list[tuple[Array, Any]]) -> tuple[Array, Any]:
    """Blocks of prompts as one."""
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return activation_sharding.constrain_cache(joined)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(
    arch: Architecture,
    sampling: Sampling,
    wanted: tuple[bool, int],
    params: Params,
    adapter: Params | None,
    prompts: slots.Prompts,
    rows: slots.Rows,
    rules: token_sampling.Grammar | None,
    num_rows: Int[Array, ""],
) -> tuple[token_sampling.Drawn, Int[Array, " N"], Int[Array, ""]]:
    """Decodes rows 0..num_rows; returns [N, new] draws, their counts, and the steps that it took.

    `wanted` says whether log-probs are, and how many of the likeliest tokens.
    """
    padded = len(rows.prompt)
    layers = transformer.decode_layers(params, adapter, precision=sampling.precision)
    head = transformer.head(arch, params, precision=sampling.precision)
    head = token_sampling.output_matrix(head, rules)
    eos = jnp.array(sampling.eos_ids)
    log_probs, num_top = wanted
    own = rows.temperatures

    def body(state: Any) -> Any:
        held, out, counts, steps = state
        held = slots.refill(held, prompts, rows, num_rows)
        row, step, hidden, cache, next_row, place = held
        active = row >= 0
        drawn, place = token_sampling.draw(
            head,
            hidden,
            rows.keys[row],
            step,
            rules,
            place,
            temperature=sampling.temperature if own is None else own[row],
            log_probs=log_probs,
            num_top=num_top,
        )
        token = drawn.tokens
        index = jnp.where(active, row, padded)  # idle slots write to a row that is dropped
        out = jax.tree.map(lambda kept, new: kept.at[index, step].set(new, mode="drop"), out, drawn)
        counts = counts.at[index].set(step + 1, mode="drop")
        ended = jnp.isin(token, eos) | (step + 1 >= sampling.max_new_tokens)
        position = jnp.where(active, prompts.lengths[rows.prompt[row]] + step, 0)
        hidden, cache = transformer.decode_step(
            arch, params, layers, token, position, cache, precision=sampling.precision
        )
        hidden, cache = activation_sharding.constrain_cache((hidden, cache))
        row = jnp.where(active & ~ended, row, -1)
        step = jnp.where(ended, 0, step + 1)
        return slots.Slots(row, step, hidden, cache, next_row, place), out, counts, steps + 1

    def unfinished(state: Any) -> Array:
        return jnp.any(state[0].row >= 0) | (state[0].next_row < num_rows)

    out = token_sampling.empty(
        padded, sampling.max_new_tokens, log_probs=log_probs, num_top=num_top
    )
    counts = jnp.zeros(padded, jnp.int32)
    length = sampling.prompt_tokens + sampling.max_new_tokens
    held = slots.empty(sampling.num_slots, length, prompts, rows)
    state = (held, out, counts, jnp.int32(0))
    return jax.lax.while_loop(unfinished, body, state)[1:]
