"""Exact scores in one forward pass: likelihood of rows, log-probabilities of candidate answers."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from subjax.engine import batching, prefill, token_sampling
from subjax.nn import activation_sharding, functional, losses, sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.nn.blocks import KeyValues
from subjax.nn.transformer import Params

AT_ONCE = 64  # rows per call


def row_log_probs(
    arch: Architecture,
    params: Params,
    rows: batching.Rows,
    *,
    mesh: Mesh,
    adapter: Params | None = None,
    batch_size: int = AT_ONCE,
    precision: str = "float32",
) -> Float[np.ndarray, "rows C"]:
    """Log p of every target, in nats; 0 at padding."""
    with jax.set_mesh(sharding.lane_mesh(mesh)):
        scores = [
            _targets(arch, precision, params, adapter, batch)
            for batch in _batches(rows, batch_size, mesh)
        ]
    return np.concatenate([sharding.to_host(score) for score in scores])[: len(rows)] * rows.weights


def restricted_log_probs(
    arch: Architecture,
    params: Params,
    rows: batching.Rows,
    support: Sequence[int],
    *,
    mesh: Mesh,
    adapter: Params | None = None,
    batch_size: int = AT_ONCE,
    precision: str = "float32",
) -> Iterator[Float[np.ndarray, "B C K"]]:
    """Log-probabilities renormalised over the tokens of `support`, at every target.

    Yields parts of some rows each, in order, since all rows together may not fit in memory.
    """
    ids, done = np.array(tuple(support), np.int32), 0
    for batch in _batches(rows, batch_size, mesh):
        with jax.set_mesh(sharding.lane_mesh(mesh)):
            scores = sharding.to_host(_restricted(arch, precision, params, adapter, batch, ids))
        yield scores[: len(rows) - done]
        done += len(scores)


def top_log_probs(
    arch: Architecture,
    params: Params,
    rows: batching.Rows,
    num_tokens: int,
    *,
    mesh: Mesh,
    adapter: Params | None = None,
    batch_size: int = AT_ONCE,
    precision: str = "float32",
) -> tuple[Int[np.ndarray, "rows C K"], Float[np.ndarray, "rows C K"]]:
    """The likeliest tokens at every target, and their log-probabilities renormalised over them."""
    with jax.set_mesh(sharding.lane_mesh(mesh)):
        found = [
            sharding.to_host(_top(arch, precision, num_tokens, params, adapter, batch))
            for batch in _batches(rows, batch_size, mesh)
        ]
    ids, scores = (np.concatenate(parts)[: len(rows)] for parts in zip(*found, strict=True))
    return ids, scores


def candidate_log_probs(
    arch: Architecture,
    params: Params,
    contexts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    *,
    mesh: Mesh,
    adapter: Params | None = None,
    batch_size: int = AT_ONCE,
    precision: str = "float32",
) -> Float[np.ndarray, "contexts candidates"]:
    """Log p(candidate | context), summed over the candidate's tokens, in nats.

    What all contexts begin with is read once, and then each context; its keys and values then serve
    every distinct proper prefix of a candidate, so that all candidates of one token together cost
    one row per context.

    Args:
      arch: shapes of the model.
      params: its weights.
      contexts: token ids before the answer.
      candidates: token ids of each answer; they must pass `check_candidates`.
      mesh: where to run.
      adapter: LoRA tree as `lora.scaled` returns it, or None.
      batch_size: rows per call.
      precision: a name of `precision.PRECISIONS`.
    """
    prefixes = sorted({tuple(c[:i]) for c in candidates for i in range(len(c))})
    support = sorted({token for candidate in candidates for token in candidate})
    begin = prefill.shared_tokens(contexts)
    behind = [context[begin:] for context in contexts]
    longest = max(map(len, behind))
    # Lengths in steps of 16 keep the number of compiled programs small.
    rows = batching.make_rows(
        [([*context, support[0]], len(context)) for context in behind],
        num_tokens=-(-(longest + 1) // 16) * 16,
        num_targets=1,
        pad_id=support[0],
    )
    depth = max(len(prefix) for prefix in prefixes)
    padded = np.array([[*p, *[support[0]] * (depth - len(p))] for p in prefixes], int)
    ends = np.array([len(prefix) for prefix in prefixes])
    ids, mesh = np.array(support), sharding.lane_mesh(mesh)
    with jax.set_mesh(mesh):
        shared = contexts[0][:begin]
        past = prefill.prefix(arch, params, adapter, shared, mesh=mesh, precision=precision)
        scores = [
            _continuations(arch, precision, params, adapter, past, batch, padded, ends, ids)
            for batch in _batches(rows, batch_size, mesh)
        ]
    table = np.concatenate([sharding.to_host(score) for score in scores])[: len(rows)]
    total = np.zeros((len(contexts), len(candidates)))
    for column, candidate in enumerate(candidates):
        for i, token in enumerate(candidate):
            prefix = prefixes.index(tuple(candidate[:i]))
            total[:, column] += table[:, prefix, support.index(token)]
    return total


def traced(
    arch: Architecture,
    *,
    mesh: Mesh,
    num_rows: int,
    num_tokens: int,
    num_targets: int = 0,
    prefix_tokens: int = 1,
    num_prefixes: int = 1,
    adapter: Params | None = None,
    precision: str = "float32",
) -> jax.stages.Traced:
    """Traces one call of a score from shapes: for compiling without devices or weights.

    Args:
      arch: shapes of the model.
      mesh: the mesh argument of the scoring function.
      num_rows: rows per call; rounded up as batches are.
      num_tokens: tokens per row.
      num_targets: targets per row, for `row_log_probs`; 0: `candidate_log_probs`.
      prefix_tokens: length of the longest proper prefix of a candidate.
      num_prefixes: number of proper prefixes of candidates, including the empty one.
      adapter: shapes of a LoRA tree, or None.
      precision: a name of `precision.PRECISIONS`.
    """
    mesh = sharding.lane_mesh(mesh)
    trees = (transformer.abstract_params(arch, precision), adapter)
    specs = sharding.params_spec(trees, mesh, lanes=False)
    params, adapter = sharding.abstract(trees, specs, mesh)
    step = math.lcm(8, mesh.shape["data"] * mesh.shape["fsdp"])
    rows, whole = -(-num_rows // step) * step, (max(num_targets, 1),)
    shapes = {"tokens": (num_tokens,), "positions": whole, "targets": whole, "weights": whole}
    batch = {
        name: jax.ShapeDtypeStruct((rows, *shape), jnp.float32 if name == "weights" else jnp.int32)
        for name, shape in shapes.items()
    }
    batch = sharding.abstract(batch, sharding.batch_spec(lanes=False), mesh)
    with jax.set_mesh(mesh):
        if num_targets:
            return _targets.trace(arch, precision, params, adapter, batch)
        prefixes = jax.ShapeDtypeStruct((num_prefixes, prefix_tokens), jnp.int32)
        ends, support = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (num_prefixes, 16))
        return _continuations.trace(
            arch, precision, params, adapter, None, batch, prefixes, ends, support
        )


def check_candidates(names: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
    """Refuses candidates whose probabilities would overlap.

    Raises:
      ValueError: a candidate is empty, or its tokens begin another's.
    """
    for name, ids in zip(names, tokens, strict=True):
        if not ids:
            raise ValueError(f"candidate {name!r} has no tokens: leave it out")
        for other, longer in zip(names, tokens, strict=True):
            if other != name and tuple(longer[: len(ids)]) == tuple(ids):
                raise ValueError(
                    f"the tokens of candidate {name!r} begin those of {other!r}, so that their "
                    "probabilities overlap: drop one of the two"
                )


def rows_at_once(num_rows: int, mesh: Mesh, *, most: int = AT_ONCE) -> int:
    """Rows per call, rounded up to a multiple of the devices across the batch.

    Args:
      num_rows: rows to score.
      mesh: the mesh that splits them.
      most: largest number, unless there are more devices.
    """
    mesh = sharding.lane_mesh(mesh)
    # Batches of nearly equal size, in steps of 8: 65 rows are two batches of 40, not of 64.
    multiple = math.lcm(8, mesh.shape["data"] * mesh.shape["fsdp"])
    num_batches = -(-num_rows // most)
    return min(-(-num_rows // (multiple * num_batches)), max(most // multiple, 1)) * multiple


def _batches(rows: batching.Rows, batch_size: int, mesh: Mesh) -> Iterator[Any]:
    """Equal batches of at most `batch_size`; the last one is filled by repeating its first row."""
    batch_size = rows_at_once(len(rows), mesh, most=batch_size)
    mesh = sharding.lane_mesh(mesh)
    for first in range(0, len(rows), batch_size):
        ids = np.arange(first, first + batch_size)
        ids = np.where(ids < len(rows), ids, first)
        yield sharding.place_batch(rows.take(ids), mesh, lanes=False)


def _hidden(
    arch: Architecture, precision: str, params: Params, adapter: Params | None, batch: Params
) -> Float[Array, "B C D"]:
    hidden = transformer.forward(
        arch, params, batch["tokens"], adapter=adapter, precision=precision
    )
    return losses.at_positions(hidden, batch["positions"])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _targets(
    arch: Architecture, precision: str, params: Params, adapter: Params | None, batch: Params
) -> Float[Array, "B C"]:
    hidden = _hidden(arch, precision, params, adapter, batch)
    head = transformer.head(arch, params, precision=precision)
    return losses.log_probs(hidden, head, batch["targets"])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _restricted(
    arch: Architecture,
    precision: str,
    params: Params,
    adapter: Params | None,
    batch: Params,
    support: Int[Array, " K"],
) -> Float[Array, "B C K"]:
    hidden = _hidden(arch, precision, params, adapter, batch)
    head = transformer.head(arch, params, precision=precision)
    return losses.restricted_log_probs(hidden, head, support)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _top(
    arch: Architecture,
    precision: str,
    num_tokens: int,
    params: Params,
    adapter: Params | None,
    batch: Params,
) -> tuple[Int[Array, "B C K"], Float[Array, "B C K"]]:
    hidden = _hidden(arch, precision, params, adapter, batch)

    # One target per row at a time: scores over the vocabulary are large.
    def likeliest(hidden: Float[Array, "B D"]) -> tuple[Array, Array]:
        scores = transformer.logits(arch, params, hidden, precision=precision)
        best, ids = jax.lax.top_k(scores, num_tokens)
        return ids, jax.nn.log_softmax(best, axis=-1)

    found = jax.lax.map(likeliest, hidden.swapaxes(0, 1))
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _continuations(
    arch: Architecture,
    precision: str,
    params: Params,
    adapter: Params | None,
    past: KeyValues | None,
    batch: Params,
    prefixes: Int[Array, "P M"],
    ends: Int[Array, " P"],
    support: Int[Array, " K"],
) -> Float[Array, "B P K"]:
    """Log p of the tokens of `support` after a context and each prefix, cut at its end."""
    hidden, cache = transformer.prefill(
        arch, params, batch["tokens"], adapter=adapter, precision=precision, past=past
    )
    position, depth = batch["positions"][:, 0], prefixes.shape[1]
    if past is not None:
        cache = jax.tree.map(jax.vmap(functional.behind), past, cache)
        position = position + past[0].shape[3]
    keys, values = (jnp.pad(kv, [(0, 0)] * 3 + [(0, depth), (0, 0)]) for kv in cache)
    caches = transformer.decode_cache(keys, values)
    layers = transformer.decode_layers(params, adapter, precision=precision)
    head = token_sampling.output_matrix(transformer.head(arch, params, precision=precision), None)
    context = losses.at_positions(hidden, batch["positions"])[:, 0]

    def after(prefix: tuple[Int[Array, " M"], Int[Array, ""]]) -> Float[Array, "B K"]:
        tokens, end = prefix

        # One traced step for all positions: unrolled, the layers of every position compile slowly.
        def step(written: Any, now: tuple[Array, Array]) -> tuple[Any, Array]:
            token, places = now
            row = jnp.full_like(position, token)
            state, written = transformer.decode_step(
                arch, params, layers, row, position + places, written, precision=precision
            )
            return written, state

        states = jax.lax.scan(step, caches, (tokens, jnp.arange(1, depth + 1)))[1]
        states = jnp.concatenate([context[None], states])
        scores = activation_sharding.spread(head.scores(activation_sharding.gathered(states[end])))
        return jax.nn.log_softmax(scores, axis=-1)[:, support]

    # One prefix at a time: the caches of all prefixes would be large.
    return jax.lax.map(after, (prefixes, ends)).swapaxes(0, 1)
