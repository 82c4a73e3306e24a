"""Sharding constraints on arrays inside jitted programs; outside a mesh all are no-ops.

Training and forward passes over whole rows split rows over `data` and `fsdp` and all-gather each
layer's weights before use. A token loop (sampling, or scoring a candidate token by token) reads all
weights at every step for few rows, so there the activations move instead: `fsdp` splits a kernel as
`tensor` does, and no device receives more of a kernel than its shard. Its mesh has the same devices
in a layout of its own (`sharding.loop_mesh`).

    resting     rows over data and fsdp, heads over tensor: as the keys and values are split
    gathered    rows over data, replicated over fsdp and tensor: input of a kernel with
                split outputs
    spread      rows over data, features over tensor and fsdp: output of such a kernel, and input of
                a kernel with split inputs
"""

import collections
import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from subjax.nn import sharding

# Leaves of stacked layers with an MLP's inner size: the last dimension of `down`, else the second.
_INNER = re.compile(r"mlp/(?:(?P<down>down/(?:kernel|a))|(?:gate|up)/(?:kernel|b|bias))$")
# Axes that split a kernel in a token loop.
_BOTH = ("tensor", "fsdp")


def _row_axes(num_rows: int, mesh: Mesh | AbstractMesh) -> tuple[str, str] | None:
    """The axes data and fsdp if they divide the rows; None: rows are replicated."""
    divides = num_rows % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
    return ("data", "fsdp") if divides else None


def cache_spec(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """PartitionSpec of hidden states [B, D], and of keys and values [B, K, ...], K over tensor."""

    def spec(leaf: Any) -> P:
        rows = _row_axes(leaf.shape[0], mesh)
        whole = leaf.ndim < 4 or leaf.shape[1] % mesh.shape["tensor"]
        return P(rows) if whole else P(rows, "tensor")

    return jax.tree.map(spec, tree)


def constrain_batch(x: jax.Array) -> jax.Array:
    """Sharding constraint on arrays [B, ...]: split by batch only."""
    return _constrain(x, lambda x, _: P(("data", "fsdp"), *(None,) * (x.ndim - 1)))


def constrain_state(state: Any, *, lanes: bool) -> Any:
    """Sharding constraint on parameters and optimizer state, by `sharding.state_spec`."""
    return _constrain(state, functools.partial(sharding.state_spec, lanes=lanes))


def constrain_cache(tree: Any) -> Any:
    """Sharding constraint by `cache_spec`."""
    return _constrain(tree, cache_spec)


def constrain_blocks(tree: Any) -> Any:
    """The same where the rows stand in blocks, [blocks, B, ...]: each block by `cache_spec`."""
    return _constrain(tree, blocks_spec)


def blocks_spec(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """PartitionSpec of every leaf of `constrain_blocks`."""
    block = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
    return jax.tree.map(lambda spec: P(None, *spec), cache_spec(block, mesh))


def decoding_spec(params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """PartitionSpec of every leaf of a parameter or adapter tree in a token loop.

    A leaf whose dimension neither axis divides is split as for training.

    Raises:
      ValueError: a path that the table of `sharding` does not know.
    """

    def spec(path: tuple[Any, ...], leaf: Any, trained: P) -> P:
        rule = sharding.rule(jax.tree_util.keystr(path, simple=True, separator="/"))
        if rule.decoding is None:
            return P()
        dim = leaf.ndim - len(rule.axes) + rule.decoding
        axes = _parts(leaf.shape[dim], mesh)
        return P(*(None,) * dim, axes) if axes else trained

    trained = sharding.params_spec(params, mesh, lanes=False)
    return jax.tree_util.tree_map_with_path(spec, params, trained)


def constrain_decoding(params: Any) -> Any:
    """Sharding constraint by `decoding_spec`; kernels that differ only there move together."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return params
    leaves, tree = jax.tree.flatten(params)
    trained = jax.tree.leaves(sharding.params_spec(params, mesh, lanes=False))
    wanted = jax.tree.leaves(decoding_spec(params, mesh))
    alike = collections.defaultdict(list)
    for i, (leaf, old, new) in enumerate(zip(leaves, trained, wanted, strict=True)):
        if mesh.shape["fsdp"] > 1 and "fsdp" in old and _BOTH in new:
            dim = new.index(_BOTH)
            others = (*leaf.shape[:dim], *leaf.shape[dim + 1 :])
            alike[dim, others, leaf.dtype, old, new].append(i)
    for (dim, _, _, old, new), places in alike.items():
        moved = _moved([leaves[i] for i in places], dim, old, new)
        for i, leaf in zip(places, moved, strict=True):
            leaves[i] = leaf
    return _constrain(jax.tree.unflatten(tree, leaves), decoding_spec)


def pad_inner(layers: Any) -> Any:
    """Pads an MLP's inner size with zeros until tensor and fsdp divide it in a token loop.

    The padding adds zero to a product.

    Args:
      layers: parameters or adapters of stacked layers, split as for training.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["tensor"] * mesh.shape["fsdp"]

    def pad(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        found = _INNER.search(jax.tree_util.keystr(path, simple=True, separator="/"))
        dim = leaf.ndim - 1 if found and found["down"] else 1
        if not found or leaf.shape[dim] % parts == 0:
            return leaf
        # Unsharded in that dimension while it grows, or every shard would have to move.
        axes = [None if i in (0, dim) else _parts(n, mesh) for i, n in enumerate(leaf.shape)]
        leaf = _constrain(leaf, lambda *_: P(*axes))
        return jnp.pad(leaf, [(0, -n % parts * (i == dim)) for i, n in enumerate(leaf.shape)])

    return jax.tree_util.tree_map_with_path(pad, layers)


def gathered_weights(params: Any) -> Any:
    """All-gathers one layer's weights over fsdp; their gradient is split as they were.

    Without this, compilers may split the inputs of a product instead and sum partial results, which
    are larger than the weights. Inside a mesh it has no forward-mode derivative.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return params if mesh.empty or mesh.size == 1 else _gathered_weights(params)


@jax.custom_vjp
def _gathered_weights(params: Any) -> Any:
    def spec(params: Any, mesh: AbstractMesh) -> Any:
        return jax.tree.map(
            lambda spec: P(*(None if axis == "fsdp" else axis for axis in spec)),
            sharding.params_spec(params, mesh, lanes=False),
            is_leaf=lambda leaf: isinstance(leaf, P),
        )

    return _constrain(params, spec)


def _gathered_forward(params: Any) -> tuple[Any, None]:
    return _gathered_weights(params), None


def _gathered_backward(_: None, gradient: Any) -> tuple[Any]:
    return (_constrain(gradient, functools.partial(sharding.params_spec, lanes=False)),)


_gathered_weights.defvjp(_gathered_forward, _gathered_backward)


def kernel_parts(sizes: Sequence[int]) -> int:
    """Devices that share the outputs of kernels of these output sizes for training; or 1."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["tensor"]
    return 1 if any(size % parts for size in sizes) else parts


def vocabulary_parts(num_tokens: int, chunk: int) -> int:
    """Devices that share a vocabulary for training, if they can also share a chunk of it; or 1."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["tensor"]
    return 1 if num_tokens % parts or chunk % parts else parts


def whole_rows(cache: jax.Array) -> jax.Array:
    """Keys or values [B, K, ...] with rows on every device, heads over tensor."""

    def spec(cache: jax.Array, mesh: AbstractMesh) -> P:
        return P(None, sharding.first_fit(("tensor",), cache.shape[1], mesh))

    return _constrain(cache, spec)


def embedded(x: jax.Array) -> jax.Array:
    """Rows [B, ..., D] from an embedding: split as the table is, then gathered."""

    def spec(x: jax.Array, mesh: AbstractMesh) -> P:
        return _rows(x, mesh, sharding.first_fit(("fsdp",), x.shape[-1], mesh))

    return gathered(_constrain(x, spec))


def gathered(x: jax.Array) -> jax.Array:
    """Rows [B, ...] over data only."""
    return _constrain(x, lambda x, mesh: _rows(x, mesh, None))


def spread(x: jax.Array) -> jax.Array:
    """Rows [B, ..., D] over data, D over tensor and fsdp."""
    return _constrain(x, lambda x, mesh: _rows(x, mesh, _parts(x.shape[-1], mesh)))


def scored(x: jax.Array) -> jax.Array:
    """Scores [B, V]: where they were made, V over tensor and fsdp, or else in rows as the cache."""

    def spec(x: jax.Array, mesh: AbstractMesh) -> P:
        split = _parts(x.shape[-1], mesh) == _BOTH
        return _rows(x, mesh, _BOTH) if split else P(_row_axes(x.shape[0], mesh))

    return _constrain(spread(x), spec)


def resting(x: jax.Array) -> jax.Array:
    """Rows [B, ..., D] over data and fsdp, D over tensor."""

    def spec(x: jax.Array, mesh: AbstractMesh) -> P:
        last = sharding.first_fit(("tensor",), x.shape[-1], mesh)
        return P(_row_axes(x.shape[0], mesh), *(None,) * (x.ndim - 2), last)

    return _constrain(x, spec)


def resting_together(outputs: Sequence[jax.Array]) -> list[jax.Array]:
    """Outputs [B, T, N] of several products, each with its own N: spread, then resting."""
    outputs = [spread(y) for y in outputs]
    mesh = jax.sharding.get_abstract_mesh()
    moves = not mesh.empty and mesh.shape["fsdp"] > 1
    if moves and all(_parts(y.shape[-1], mesh) == _BOTH for y in outputs):
        rows = outputs[0].shape[0]
        before = P(sharding.first_fit(("data",), rows, mesh), None, _BOTH)
        outputs = _moved(outputs, 2, before, P(_row_axes(rows, mesh), None, "tensor"))
    return [resting(y) for y in outputs]


def _moved(arrays: Sequence[jax.Array], dim: int, before: P, after: P) -> list[jax.Array]:
    """Reshards arrays of different sizes in one dimension by one exchange for all.

    Each exchange adds its latency to a decoding step, and between 256 devices libtpu takes
    8 seconds to compile it.

    Args:
      arrays: tensor and fsdp together divide the dimension of each.
      dim: that dimension.
      before: how each is split.
      after: how each will be split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = mesh.shape["tensor"] * mesh.shape["fsdp"]
    split = [a.reshape(*a.shape[:dim], parts, -1, *a.shape[dim + 1 :]) for a in arrays]
    # The shards of all arrays for one device stand together.
    joined = jnp.concatenate(split, dim + 1)
    for spec in (before, after):
        axes = (*spec, *(None,) * (arrays[0].ndim - len(spec)))
        axes = (*axes[: dim + 1], None, *axes[dim + 1 :])
        joined = jax.lax.with_sharding_constraint(joined, P(*axes))
    ends = itertools.accumulate(a.shape[dim + 1] for a in split)
    pieces = jnp.split(joined, list(ends)[:-1], dim + 1)
    return [piece.reshape(a.shape) for piece, a in zip(pieces, arrays, strict=True)]


def _rows(x: jax.Array, mesh: AbstractMesh, last: Any) -> P:
    rows = sharding.first_fit(("data",), x.shape[0], mesh)
    return P(rows, *(None,) * (x.ndim - 2), last)


def _parts(size: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...] | None:
    """The axes that share a dimension in a token loop: both, or the larger that divides it."""
    if size % math.prod(mesh.shape[axis] for axis in _BOTH) == 0:
        return _BOTH
    larger = sorted(_BOTH, key=lambda axis: -mesh.shape[axis])
    fitting = sharding.first_fit(larger, size, mesh)
    return (fitting,) if fitting else None


def _constrain(tree: Any, spec: Callable[[Any, AbstractMesh], Any]) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, spec(tree, mesh))
