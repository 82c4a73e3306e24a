"""The one sampler: prefill once per distinct prompt, then a jitted token loop with slot refill.

The distinct prompts of a call are read first (`prefill`). Decoding then runs in a single
`while_loop` on the device: each slot holds one row, and the slots of finished rows take the next
rows (a copy of the keys and values of their prompts) without a transfer to the host. A row's tokens
depend on its prompt, its key and its temperature, and not on its slot or its neighbours, but for
the last bits of floats, which the number of slots and the prompts read together may change.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from subjax.engine import prefill, slots, token_sampling
from subjax.nn import activation_sharding, sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.tokens.grammars import Grammar

# FLOPs that empty slots must waste for another program to pay: some seconds of a CPU, in which it
# compiles.
_WORTH_A_PROGRAM = 2e11


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How rows are drawn.

    Attributes:
      num_slots: rows decoded side by side.
      prompt_tokens: longest prompt, in tokens: the token loop has so much room, see `fitted`.
      max_new_tokens: a row ends here at the latest.
      temperature: 1.0 samples the model's distribution, 0.0 is greedy.
      eos_ids: tokens that end a row.
      precision: a name of `precision.PRECISIONS`.
      prefix_tokens: tokens that all prompts begin with, which are read once.
    """

    num_slots: int
    prompt_tokens: int
    max_new_tokens: int
    temperature: float
    eos_ids: tuple[int, ...]
    precision: str = "float32"
    prefix_tokens: int = 0


def fitted(sampling: Sampling, prompts: Sequence[Sequence[int]]) -> Sampling:
    """The same sampling with the smallest sufficient `prompt_tokens`, and the prompts' prefix.

    Pass all prompts of a unit, not only those of one call, so that a program serves all calls.
    """
    room = prefill.room(max(map(len, prompts), default=1))
    return dataclasses.replace(
        sampling,
        prompt_tokens=min(room, sampling.prompt_tokens),
        prefix_tokens=prefill.shared_tokens(prompts),
    )


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
    grammar: Grammar | None = None,
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
      ValueError: a prompt that is empty or longer than `prompt_tokens`, or that begins otherwise
        than the others within `prefix_tokens`; more likeliest tokens than there are; a grammar or
        temperatures that do not fit the rows; temperatures below 0.
    """
    mesh = sharding.lane_mesh(mesh)
    reading = prefill.arrange(
        prompts,
        # In whole blocks of slots, so that one program serves calls of any size.
        num_rows=len(prompts) + -len(prompts) % max(sampling.num_slots, 1),
        prompt_tokens=sampling.prompt_tokens,
        prefix_tokens=sampling.prefix_tokens,
        mesh=mesh,
    )
    _check_grammar(arch, sampling, grammar, len(prompts), top_log_probs)
    own = token_sampling.checked_temperatures(temperatures, len(prompts))
    start = None if grammar is None else grammar.start
    # Start states go with the padded rows, so that one program serves any number of rows.
    rules = None if grammar is None else grammar._replace(start=grammar.start[:0])
    place, lengths, keys, rules, own, start = sharding.replicate(
        (reading.place, reading.lengths, keys, rules, own, start), mesh
    )
    with jax.set_mesh(mesh):
        read = prefill.read(
            arch,
            params,
            adapter,
            reading,
            prompt_tokens=sampling.prompt_tokens,
            mesh=mesh,
            precision=sampling.precision,
        )
        rows = slots.Rows(place, lengths, *slots.padded((keys, own, start), len(place)))
    # One program for prompts of all prefixes, which are read by now.
    loop = dataclasses.replace(sampling, prefix_tokens=0)
    mesh = loop_mesh(arch, loop, mesh)
    with jax.set_mesh(mesh):
        wanted = log_probs, top_log_probs
        how = (params, adapter, read, rows, rules)
        out = _drawn(arch, loop, wanted, *how, num_rows=len(prompts), mesh=mesh)
    return _samples(sampling.eos_ids, len(prompts), *sharding.to_host(out))


def loop_mesh(arch: Architecture, sampling: Sampling, mesh: Mesh) -> Mesh:
    """The mesh of the token loop, for the mesh argument of `sample`: `slots.loop_mesh`."""
    mesh = sharding.lane_mesh(mesh)
    return slots.loop_mesh(arch, mesh, sampling.num_slots, sampling.precision)


def _drawn(
    arch: Architecture,
    sampling: Sampling,
    wanted: tuple[bool, int],
    params: Params,
    adapter: Params | None,
    prompts: slots.Prompts,
    rows: slots.Rows,
    rules: Grammar | None,
    *,
    num_rows: int,
    mesh: Mesh,
) -> tuple[token_sampling.Drawn, Int[Array, " N"], Int[Array, ""]]:
    """Runs the token loop, with fewer slots as rows run out; gives the state but for the slots."""
    counts = _slot_counts(arch, sampling, mesh)
    num_slots = min(n for n in counts if n >= min(num_rows, counts[0]))
    state = _begun(dataclasses.replace(sampling, num_slots=num_slots), wanted, prompts, rows)
    while True:
        fewer = max((n for n in counts if n < num_slots), default=0)
        how = (arch, sampling, wanted, params, adapter, prompts, rows, rules)
        state = _decode(*how, np.int32(num_rows), np.int32(fewer), state)
        held = int((sharding.to_host(state[0].row) >= 0).sum()) if fewer else 0
        if not held:
            return state[1:]
        num_slots = min(n for n in counts if n >= held)
        state = _narrowed(state, num_slots)


def _slot_counts(arch: Architecture, sampling: Sampling, mesh: Mesh) -> list[int]:
    """Slots at first, and then fewer and fewer as rows run out, where that pays.

    A CPU takes half of the time for half of the slots; accelerators spend it on reading weights,
    which are the same for few rows. Each count is another program to compile.
    """
    counts = [sampling.num_slots]
    if mesh.devices.flat[0].platform != "cpu":
        return counts
    of_slot = 2.0 * transformer.num_params(arch) * sampling.max_new_tokens
    shares = int(mesh.shape["data"] * mesh.shape["fsdp"])
    while (half := counts[-1] // 2) * of_slot >= _WORTH_A_PROGRAM and half >= counts[0] // 8:
        if counts[-1] % 2 or half % shares:
            break
        counts.append(half)
    return counts


def _samples(
    eos_ids: Sequence[int],
    num_rows: int,
    drawn: token_sampling.Drawn,
    counts: np.ndarray,
    slot_steps: np.ndarray,
) -> Samples:
    """Makes `Samples` of the results of `_decode` on the host, without padding rows."""
    drawn, counts = jax.tree.map(lambda leaf: leaf[:num_rows], (drawn, counts))
    last_tokens = drawn.tokens[np.arange(num_rows), counts - 1]
    return Samples(
        lengths=counts,
        stopped=np.isin(last_tokens, eos_ids),
        occupancy=float(counts.sum() / max(int(slot_steps), 1)),
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
    weights = (transformer.abstract_params(arch, sampling.precision), adapter)
    params, adapter = sharding.abstract(
        weights, sharding.params_spec(weights, mesh, lanes=False), mesh
    )
    padded = num_rows + -num_rows % sampling.num_slots

    def whole(leaf: Any) -> Any:
        return sharding.abstract(leaf, sharding.WHOLE, mesh)

    with jax.set_mesh(mesh):
        reading, prompts = prefill.traced(
            arch,
            params,
            adapter,
            num_prompts=num_prompts,
            num_rows=padded,
            prompt_tokens=sampling.prompt_tokens,
            prefix_tokens=sampling.prefix_tokens,
            precision=sampling.precision,
            mesh=mesh,
        )
        ints = whole(jax.ShapeDtypeStruct((padded,), jnp.int32))
        keys = whole(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), padded)))
    rows, number = slots.Rows(ints, ints, keys), jax.ShapeDtypeStruct((), jnp.int32)
    with jax.set_mesh(loop_mesh(arch, sampling, mesh)):
        # With its first state, which a run keeps apart so as to go on with fewer slots. `fewest` is
        # no constant: a loop that compares with one is read as a loop that counts.
        def loop(
            params: Params,
            adapter: Params | None,
            prompts: Any,
            rows: Any,
            number: Any,
            fewest: Any,
        ) -> Any:
            state = _begun(sampling, (False, 0), prompts, rows)
            how = (arch, sampling, (False, 0), params, adapter, prompts, rows, None)
            return _decode(*how, number, fewest, state)[1:]

        decode = jax.jit(loop).trace(params, adapter, prompts, rows, number, number)
    return reading, decode


def _check_grammar(
    arch: Architecture,
    sampling: Sampling,
    grammar: Grammar | None,
    num_rows: int,
    num_top: int,
) -> None:
    """Refuses a grammar that does not fit the rows, and more likeliest tokens than there are."""
    if grammar is not None:
        token_sampling.check(grammar, num_rows, arch.vocab_size, sampling.eos_ids)
    most = arch.vocab_size if grammar is None else len(grammar.ids)
    if not 0 <= num_top <= most:
        raise ValueError(f"top_log_probs={num_top} must be 0 to {most}, the tokens there are")


# State of the token loop: slots; draws of all rows; their counts; steps of slots so far.
_State = tuple[slots.Slots, token_sampling.Drawn, Int[Array, " N"], Int[Array, ""]]


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=10)
def _decode(
    arch: Architecture,
    sampling: Sampling,
    wanted: tuple[bool, int],
    params: Params,
    adapter: Params | None,
    prompts: slots.Prompts,
    rows: slots.Rows,
    rules: Grammar | None,
    num_rows: Int[Array, ""],
    fewest: Int[Array, ""],
    state: _State,
) -> _State:
    """Decodes rows 0..num_rows, until none is left and no more than `fewest` slots hold one.

    `wanted`: whether to return log-probs, and how many of the likeliest tokens. `state` is donated.
    """
    padded = len(rows.prompt)
    layers = transformer.decode_layers(params, adapter, precision=sampling.precision)
    head = transformer.head(arch, params, precision=sampling.precision)
    head = token_sampling.output_matrix(head, rules)
    eos = jnp.array(sampling.eos_ids)
    log_probs, num_top = wanted
    own = rows.temperatures

    def body(state: _State) -> _State:
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
        position = jnp.where(active, rows.lengths[row] + step, 0)
        hidden, cache = transformer.decode_step(
            arch, params, layers, token, position, cache, precision=sampling.precision
        )
        hidden, cache = activation_sharding.constrain_cache((hidden, cache))
        row = jnp.where(active & ~ended, row, -1)
        step = jnp.where(ended, 0, step + 1)
        held = slots.Slots(row, step, hidden, cache, next_row, place)
        return held, out, counts, steps + len(row)

    def unfinished(state: _State) -> Array:
        return (jnp.sum(state[0].row >= 0) > fewest) | (state[0].next_row < num_rows)

    return jax.lax.while_loop(unfinished, body, state)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begun(
    sampling: Sampling, wanted: tuple[bool, int], prompts: slots.Prompts, rows: slots.Rows
) -> _State:
    """State of the token loop before its first step: free slots, no draws, counts 0, step 0."""
    padded, (log_probs, num_top) = len(rows.prompt), wanted
    out = token_sampling.empty(
        padded, sampling.max_new_tokens, log_probs=log_probs, num_top=num_top
    )
    counts = jnp.zeros(padded, jnp.int32)
    length = sampling.prompt_tokens + sampling.max_new_tokens
    held = slots.empty(sampling.num_slots, length, prompts, rows)
    return held, out, counts, jnp.int32(0)


@functools.partial(jax.jit, static_argnums=1)
def _narrowed(state: _State, num_slots: int) -> _State:
    """The same rows in fewer slots, which are enough for them."""
    return slots.narrowed(state[0], num_slots), *state[1:]
