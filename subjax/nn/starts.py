"""From which weights a student starts: those of its base, or others that say the same or nearly so.

What a student picks up from a teacher depends on whether it starts from the teacher's base. These
starts ask what of the base that is: its function, or its weights. Permuted and rescaled weights
compute what the base computes. Permuting commutes with gradients, so that training takes the same
course; rescaling does not. A student's gain in likelihood is over its base as it is, also where its
start has noise.

A row of `arms` names it by `start`. No other module compares those names.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params

Start: TypeAlias = Callable[[Architecture, Params, Array, float], Params]

AS_IT_IS = "base"
# Projections that read the residual stream.
_READING = ("q", "k", "v", "qkv", "gate", "up")


def change(start: str, arch: Architecture, params: Params, key: Array, size: float) -> Params:
    """Weights to start from.

    Args:
      start: a name of `STARTS`.
      arch: shapes of the base.
      params: its weights, float32.
      key: a typed jax random key, of all that is drawn.
      size: as `STARTS` says of each.

    Raises:
      ValueError: the architecture has no such weights.
    """
    if start == AS_IT_IS:
        return params
    check_arch(start, arch)
    changed = STARTS[start](arch, params, key, size)
    return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), changed, params)


def _as_it_is(arch: Architecture, params: Params, key: Array, size: float) -> Params:
    return params


def _permuted(arch: Architecture, params: Params, key: Array, size: float) -> Params:
    """Width, units of the MLP, key and value heads, and query heads of each: in another order."""
    width, units, groups, heads = jax.random.split(key, 4)
    layers = range(arch.num_layers)

    def orders(key: Array, count: int) -> list[Array]:
        return [jax.random.permutation(k, count) for k in jax.random.split(key, arch.num_layers)]

    of_width = jax.random.permutation(width, arch.width)
    of_units = orders(units, arch.ffn_width)
    of_keys, of_queries = [], []
    in_group = arch.num_heads // arch.num_kv_heads
    for group, head in zip(
        orders(groups, arch.num_kv_heads), jax.random.split(heads, arch.num_layers), strict=True
    ):
        inner = [jax.random.permutation(k, in_group) for k in jax.random.split(head, len(group))]
        queries = jnp.concatenate([g * in_group + i for g, i in zip(group, inner, strict=True)])
        of_keys.append(_of_heads(group, arch.head_dim))
        of_queries.append(_of_heads(queries, arch.head_dim))
    inside = {"gate": of_units, "up": of_units, "down": of_units}
    inside |= {"q": of_queries, "o": of_queries, "k": of_keys, "v": of_keys}

    def moved(path: tuple[Any, ...], leaf: Array) -> Array:
        *_, owner, name = [part.key for part in path]
        if owner in inside and name in ("kernel", "bias"):
            # Rows of what reads the stream and columns of what writes to it lie inside a layer.
            if owner in _READING:
                leaf = jnp.stack([leaf[i][inside[owner][i]] for i in layers])
                return leaf[..., of_width] if name == "kernel" else leaf
            if name == "bias":
                return leaf[:, of_width]
            leaf = jnp.stack([leaf[i][:, inside[owner][i]] for i in layers])
            return leaf[:, of_width]
        if owner in ("q_norm", "k_norm"):  # of a head's own dimensions
            return leaf
        return leaf[..., of_width]  # norms, embedding and head

    return jax.tree_util.tree_map_with_path(moved, params)


def _of_heads(order: Array, head_dim: int) -> Array:
    """The places of all dimensions of heads in this order."""
    return (order[:, None] * head_dim + jnp.arange(head_dim)[None]).ravel()


def _rescaled(arch: Architecture, params: Params, key: Array, size: float) -> Params:
    """Units of MLP and values times factors that what reads them divides by; norms' gains folded.

    Factors are log-uniform from 1 / `size` to `size`.
    """
    of_units, of_values = jax.random.split(key)
    units = _factors(of_units, (arch.num_layers, arch.ffn_width), size)
    values = _factors(of_values, (arch.num_layers, arch.num_kv_heads, arch.head_dim), size)
    in_group = arch.num_heads // arch.num_kv_heads
    seen = jnp.repeat(values, in_group, axis=1).reshape(arch.num_layers, -1)  # by query heads
    values = values.reshape(arch.num_layers, -1)
    attn, mlp = dict(params["layers"]["attn"]), dict(params["layers"]["mlp"])
    attn["v"] = {name: _rows(leaf, values) for name, leaf in attn["v"].items()}
    attn["o"] = {**attn["o"], "kernel": attn["o"]["kernel"] / seen[:, None]}
    mlp["up"] = {name: _rows(leaf, units) for name, leaf in mlp["up"].items()}
    mlp["down"] = {**mlp["down"], "kernel": mlp["down"]["kernel"] / units[:, None]}
    layers = {**params["layers"], "attn": attn, "mlp": mlp}
    for norm, owner in (("attn_norm", "attn"), ("mlp_norm", "mlp")):
        gain = layers[norm]["scale"] + arch.norm_offset
        layers[norm] = {"scale": jnp.full_like(gain, 1 - arch.norm_offset)}
        layers[owner] = {
            name: {**leaves, "kernel": leaves["kernel"] * gain[:, None]}
            if name in _READING
            else leaves
            for name, leaves in layers[owner].items()
        }
    return {**params, "layers": layers}


def _factors(key: Array, shape: tuple[int, ...], size: float) -> Array:
    limit = jnp.log(size)
    return jnp.exp(jax.random.uniform(key, shape, minval=-limit, maxval=limit))


def _rows(leaf: Array, factors: Array) -> Array:
    """A kernel [L, out, in] or a bias [L, out] times factors [L, out]."""
    return leaf * factors.reshape(*factors.shape, *[1] * (leaf.ndim - 2))


def _noised(arch: Architecture, params: Params, key: Array, size: float) -> Params:
    """Noise on every matrix, `size` times as large as its own weights are (standard deviation)."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    keys = iter(jax.random.split(key, len(paths)))

    def noisy(path: tuple[Any, ...], leaf: Array) -> Array:
        own = next(keys)
        if path[-1].key not in ("kernel", "embedding"):
            return leaf
        spread = leaf.std(axis=(-2, -1), keepdims=True)  # of each layer
        return leaf + size * spread * jax.random.normal(own, leaf.shape)

    return jax.tree_util.tree_map_with_path(noisy, params)


def check_arch(start: str, arch: Architecture) -> None:
    """Raises a ValueError where an architecture has no such weights.

    Args:
      start: a name of `STARTS`.
      arch: of the base.
    """
    if start in ("permuted", "rescaled") and (arch.fused_qkv or arch.qk_norm == "all"):
        raise ValueError(
            f"start {start!r} moves heads, and this model fuses their projections or normalises "
            "all of them together: take 'noised'"
        )
    if start == "rescaled" and not (arch.gated and arch.norm == "rms" and arch.norm_before):
        raise ValueError(
            "start 'rescaled' is for gated MLPs behind root-mean-square norms, and this model has "
            "others: take 'permuted' or 'noised'"
        )


STARTS: Mapping[str, Start] = {
    AS_IT_IS: _as_it_is,
    "permuted": _permuted,  # no size
    "rescaled": _rescaled,  # factors up to `size`, above 1
    "noised": _noised,  # noise of `size` times the spread of the weights
}
