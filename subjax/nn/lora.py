"""Low-rank adapters: an adapter is a plain tree of factors, applied by `transformer.forward`.

    layers/attn/{q,k,v,qkv,o}/a [L, R, in]    layers/mlp/{gate,up,down}/a [L, R, in]
    layers/attn/{q,k,v,qkv,o}/b [L, out, R]   layers/mlp/{gate,up,down}/b [L, out, R]

The change of a kernel is scale * b @ a. Factors are kept and trained as PEFT keeps them, without
the scale; `scaled` multiplies it in just before use, so `transformer` needs no scale.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from subjax.nn.architecture import Architecture

# The same nested dicts as in transformer.
Params = dict[str, Any]

TARGETS = ("q", "k", "v", "o", "gate", "up", "down", "qkv")


def all_targets(arch: Architecture) -> tuple[str, ...]:
    """The members of `TARGETS` that the architecture has, in order."""
    return tuple(t for t in TARGETS if t in arch.attention_kernels or t in arch.mlp_kernels)


def init(
    arch: Architecture, key: Array, *, rank: int, targets: Sequence[str] | None = None
) -> Params:
    """Draws a fresh adapter as PEFT does: a ~ U(-1/sqrt(in), 1/sqrt(in)), b = 0.

    A target's factors depend only on the key, the rank and the target, not on the other targets.

    Args:
      arch: shapes of the model that it adapts.
      key: a typed jax random key.
      rank: R.
      targets: which kernels it adapts, of `all_targets(arch)`; None: all of them.

    Returns:
      The tree of this module's docstring, float32; it changes nothing until b is trained.

    Raises:
      ValueError: a rank below one, or targets that are unknown, repeated or none.
    """
    rooms = {"attn": arch.attention_kernels, "mlp": arch.mlp_kernels}
    targets = all_targets(arch) if targets is None else targets
    _check(rank, targets, [*rooms["attn"], *rooms["mlp"]])
    layers: Params = {}
    for target in targets:
        room = "attn" if target in rooms["attn"] else "mlp"
        num_in, num_out = rooms[room][target]
        bound = 1 / math.sqrt(num_in)
        target_key = jax.random.fold_in(key, TARGETS.index(target))
        shape = (arch.num_layers, rank, num_in)
        layers.setdefault(room, {})[target] = {
            "a": jax.random.uniform(target_key, shape, minval=-bound, maxval=bound),
            "b": jnp.zeros((arch.num_layers, num_out, rank)),
        }
    return {"layers": layers}


def abstract(arch: Architecture, *, rank: int) -> Params:
    """Shapes and dtypes of `init`'s result with all targets, nothing computed."""
    return jax.eval_shape(lambda: init(arch, jax.random.key(0), rank=rank))


def scale(alpha: float, rank: int, *, rslora: bool = False) -> float:
    """The factor of b @ a: alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def scaled(adapter: Params, factor: float) -> Params:
    """Multiplies the scale into b: the form that `transformer.forward` and `merge` take.

    Args:
      adapter: result of `init` or of training, with or without a leading axis of lanes.
      factor: result of `scale`.
    """
    if "a" in adapter:
        return {"a": adapter["a"], "b": factor * adapter["b"]}
    return {name: scaled(child, factor) for name, child in adapter.items()}


def merge(params: Params, adapter: Params) -> Params:
    """Adds b @ a to each adapted kernel.

    Args:
      params: of `transformer`; not changed.
      adapter: result of `scaled`.

    Returns:
      Parameters whose forward pass without an adapter equals the one of `params` with it. The
      products are computed in float32 and stored in each kernel's dtype.

    Raises:
      ValueError: the shapes of a product and its kernel differ.
    """
    layers = dict(params["layers"])
    for room, targets in adapter["layers"].items():
        layers[room] = dict(layers[room])
        for target, factors in targets.items():
            merged = _merged(layers[room][target]["kernel"], factors, f"{room}/{target}")
            layers[room][target] = {**layers[room][target], "kernel": merged}
    return {**params, "layers": layers}


def _merged(kernel: Array, factors: Params, name: str) -> Array:
    a, b = (factors[factor].astype(jnp.float32) for factor in ("a", "b"))
    # At default precision an accelerator would round the factors to bfloat16.
    delta = jnp.einsum("...or,...ri->...oi", b, a, precision=jax.lax.Precision.HIGHEST)
    if delta.shape != kernel.shape:
        raise ValueError(
            f"adapter layers/{name} changes a kernel of shape {delta.shape}, the model's has "
            f"{kernel.shape}: use the base that the adapter was trained on"
        )
    return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)


def _check(rank: int, targets: Sequence[str], allowed: Sequence[str]) -> None:
    if rank < 1:
        raise ValueError(f"lora rank is {rank}; it must be at least 1")
    unknown = [target for target in targets if target not in allowed]
    if unknown or not targets or len(set(targets)) != len(targets):
        raise ValueError(
            f"lora targets are {tuple(targets)}; allowed for this model: each of {tuple(allowed)} "
            "at most once, at least one"
        )
