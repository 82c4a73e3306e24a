"""The one sampler: prefill once per distinct prompt, then a jitted token loop with slot refill.

The distinct prompts of a call are prefilled first, `num_slots` at a time. Decoding then runs in a
single `while_loop` on the device: each slot holds one row, and the slots of finished rows take the
next rows (a copy of the keys and values of their prompts) without a transfer to the host. A row's
tokens depend on its prompt, its key, its temperature and the number of slots, never on its slot or
its neighbours.
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

# A smaller prompt length than this saves nothing.
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
    """The same sampling with the smallest sufficient `prompt_tokens`.

    It is rounded up to a power of two, so that few programs serve prompts of all lengths. Pass all
    prompts of a unit, not only those of one call: the last bits of a row's floats depend on
    `prompt_tokens`, and its bytes must not depend on how a unit is split into calls.
    """
    longest = max(map(len, prompts), default=0)
    room = max(1 << max(longest - 1, 0).bit_length(), _LEAST_ROOM)
    return dataclasses.replace(sampling, prompt_tokens=min(room, sampling.prompt_tokens))


@dataclasses.dataclass(frozen=True)
class Samples:
    """Sampled rows, in the order of their prompts.

    Attributes:
      tokens: [rows, max_new_tokens]; zero past a row's length.
      lengths: [rows], tokens drawn, including the ending token.
      stopped: [rows], whether a row has an ending token; the other rows were cut.
      occupancy: share of slot-steps that held an unfinished row.
      log_probs: [rows, max_new_tokens], of the tokens, as in `token_sampling.Drawn`, if requested.
      top_ids: [rows, max_new_tokens, K], the likeliest tokens, if requested.
      top_log_probs: [rows, max_new_tokens, K], of the likeliest tokens, if requested.
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
      keys: each row's key, from `token_sampling.row_keys`.
      mesh: where to run.
      adapter: LoRA tree as `lora.scaled` returns it, or None.
      grammar: the tokens permitted in each state, and each row's first state; or None.
      temperatures: one per row, instead of `sampling.temperature`; or None.
      log_probs: whether to return log p of each drawn token.
      top_log_probs: K, number of likeliest tokens to return at each position; 0: none.

    Raises:
      ValueError: a prompt that is empty or longer than `prompt_tokens`; more likeliest tokens than
        there are; a grammar or temperatures that do not fit the rows; temperatures below 0.
    """
    tokens, lengths, prompt = _distinct(sampling, prompts)
    _check_grammar(arch, sampling, grammar, len(prompts), top_log_probs)
    own = token_sampling.checked_temperatures(temperatures, len(prompts))
    start = None if grammar is None else grammar.start
    # Start states go with the padded rows, so that one program serves any number of rows.
    rules = None if grammar is None else grammar._replace(start=grammar.start[:0])
    mesh = sharding.lane_mesh(mesh)
    tokens, lengths, prompt, keys, rules, own, start = sharding.replicate(
        (tokens, lengths, prompt, keys, rules, own, start), mesh
    )
    with jax.set_mesh(mesh):
        hidden, cache = _prefilled(arch, sampling, params, adapter, tokens, lengths)
        rows = slots.Rows(prompt, *slots.padded((keys, own, start), len(prompt)))
        out = _decode(
            arch,
            sampling,
            (log_probs, top_log_probs),
            params,
            adapter,
            slots.Prompts(hidden, cache, lengths),
            rows,
            rules,
            np.int32(len(prompts)),
        )
    return _samples(sampling, len(prompts), *sharding.to_host(out))


def _samples(
    sampling: Sampling,
    num_rows: int,
    drawn: token_sampling.Drawn,
    counts: np.ndarray,
    steps: np.ndarray,
) -> Samples:
    """Makes `Samples` of the results of `_decode` on the host, without padding rows."""
    drawn, counts = jax.tree.map(lambda leaf: leaf[:num_rows], (drawn, counts))
    last_tokens = drawn.tokens[np.arange(num_rows), counts - 1]
    return Samples(
        lengths=counts,
        stopped=np.isin(last_tokens, sampling.eos_ids),
        occupancy=float(counts.sum() / max(int(steps) * sampling.num_slots, 1)),
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
    """Traces the prefill and token loop of `sample` from shapes: for compiling without devices.

    Args:
      arch: shapes of the model.
      sampling: slots, lengths, temperature, ending tokens.
      num_prompts: distinct prompts per call; the keys and values of all are in memory at once.
      num_rows: rows per call.
      mesh: the mesh argument of `sample`.
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
        # Input of the loop: the prefill results of all prompts.
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


def _check_grammar(
    arch: Architecture,
    sampling: Sampling,
    grammar: token_sampling.Grammar | None,
    num_rows: int,
    num_top: int,
) -> None:
    """Refuses a grammar that does not fit the rows, and more likeliest tokens than there are."""
    if grammar is not None:
        token_sampling.check(grammar, num_rows, arch.vocab_size, sampling.eos_ids)
    most = arch.vocab_size if grammar is None else len(grammar.ids)
    if not 0 <= num_top <= most:
        raise ValueError(f"top_log_probs={num_top} must be 0 to {most}, the tokens there are")


def _distinct(
    sampling: Sampling, prompts: Sequence[Sequence[int]]
) -> tuple[Int[np.ndarray, "P T"], Int[np.ndarray, " R"], Int[np.ndarray, " N"]]:
    """The distinct prompts in whole blocks of slots, and which of them each row continues.

    Returns:
      Tokens of the prompts; lengths of the R prompts for which the loop has room, at least P; the
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

    A power of two, or as many as the rows fill, so that few programs serve all numbers of prompts.
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
    """The hidden state that predicts each prompt's next token, and the keys and values."""
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
    """`_prefill` for all prompts, block by block, padded to R prompts."""
    num_slots = sampling.num_slots
    parts = [
        _prefill(
            arch, sampling, params, adapter, tokens[i : i + num_slots], lengths[i : i + num_slots]
        )
        for i in range(0, len(tokens), num_slots)
    ]
    # The padding may hold any prompts; no row uses them.
    parts += parts[-1:] * (len(lengths) // num_slots - len(parts))
    return _joined(parts)


@jax.jit
def _joined(parts: list[tuple[Array, Any]]) -> tuple[Array, Any]:
    """Concatenates blocks of prompts."""
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
    """Decodes rows 0..num_rows; returns [N, new] draws, their counts, and the number of steps.

    `wanted`: whether to return log-probs, and how many of the likeliest tokens.
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

    state = _start(sampling, wanted, prompts, rows)
    return jax.lax.while_loop(unfinished, body, state)[1:]


def _start(
    sampling: Sampling, wanted: tuple[bool, int], prompts: slots.Prompts, rows: slots.Rows
) -> tuple[slots.Slots, token_sampling.Drawn, Int[Array, " N"], Int[Array, ""]]:
    """State of the token loop before its first step: free slots, no draws, counts 0, step 0."""
    padded, (log_probs, num_top) = len(rows.prompt), wanted
    out = token_sampling.empty(
        padded, sampling.max_new_tokens, log_probs=log_probs, num_top=num_top
    )
    counts = jnp.zeros(padded, jnp.int32)
    length = sampling.prompt_tokens + sampling.max_new_tokens
    held = slots.empty(sampling.num_slots, length, prompts, rows)
    return held, out, counts, jnp.int32(0)
