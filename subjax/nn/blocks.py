"""One layer of the decoder, written in Flax NNX; the only module that imports flax.

NNX defines the modules and their initialisation; outside this file a layer is a plain nested dict
of arrays. The docstring of `transformer` lists paths, shapes and axis letters.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from subjax.nn import activation_sharding, attention, functional, remats
from subjax.nn import precision as precisions
from subjax.nn.architecture import Architecture

Params = dict[str, Any]
# Keys and values of one layer, or of all layers; `transformer` says where L stands.
KeyValues = tuple[Array, Array]

BIASED = {"none": (), "qkv": ("q", "k", "v", "qkv"), "all": ("q", "k", "v", "qkv", "o")}


class Linear(nnx.Module):
    """A matrix, kernel [out, in], with an optional LoRA branch given at call time."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        rngs: nnx.Rngs,
        operands: str,
        *,
        bias: bool = False,
        shared: bool = False,
    ):
        std = num_in**-0.5
        self.operands, self.shared = operands, shared
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (num_out, num_in)))
        self.bias = nnx.Param(jnp.zeros(num_out)) if bias else None

    def __call__(self, x: Array, lora: Params | None = None) -> Array:
        """Maps [..., in] to [..., out]; `lora` holds a [R, in] and b [out, R], already scaled."""
        # Devices share the sums of `o` and `down`, and exchange them in x's dtype.
        result = x.dtype if self.shared else None
        y = precisions.project(x, self.kernel[...], self.operands, result=result)
        return self.finished(y, x, lora)

    def finished(self, y: Array, x: Array, lora: Params | None) -> Array:
        """What is added to the product `y` of the kernel and `x`."""
        if lora is not None:
            low = remats.low_rank(precisions.project(x, lora["a"], self.operands))
            y = y + precisions.project(low, lora["b"], self.operands)
        if self.bias is not None:
            y = y + functional.along(self.bias[...], y)
        return remats.projected(y.astype(x.dtype))


def _products(
    x: Array, layers: Sequence[Linear], loras: Sequence[Params | None], *, decoding: bool
) -> list[Array]:
    """What several matrices make of one input.

    In a token loop on one device all are one product: for its few rows a CPU computes a wide one in
    half of the time, and the loop gets the kernels side by side. Elsewhere each is split by itself.
    """
    mesh, operands = jax.sharding.get_abstract_mesh(), layers[0].operands
    kernels = [layer.kernel[...] for layer in layers]
    if decoding and len(layers) > 1 and (mesh.empty or mesh.size == 1):
        whole = precisions.project(x, jnp.concatenate(kernels), operands)
        ends = list(itertools.accumulate(len(kernel) for kernel in kernels))
        products = jnp.split(whole, ends[:-1], axis=-1)
    else:
        num_parts = activation_sharding.kernel_parts([len(kernel) for kernel in kernels])
        products = precisions.project_all(x, kernels, operands, parts=num_parts)
    return [
        layer.finished(product, x, lora)
        for layer, product, lora in zip(layers, products, loras, strict=True)
    ]


class Norm(nnx.Module):
    """Root-mean-square or layer norm; computed in float32 or wider."""

    def __init__(self, arch: Architecture, width: int):
        self.scale = nnx.Param(jnp.full(width, 1 - arch.norm_offset))
        self.bias = nnx.Param(jnp.zeros(width)) if arch.norm == "layer" else None
        self.arch = arch

    def __call__(self, x: Array) -> Array:
        """Normalises the last axis of [..., D]."""
        bias = None if self.bias is None else self.bias[...]
        return functional.norm(self.arch, x, self.scale[...], bias)


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    q: Linear
    k: Linear
    v: Linear
    qkv: Linear
    o: Linear

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, operands: str):
        for name, sizes in arch.attention_kernels.items():
            biased = name in BIASED[arch.attention_bias]
            linear = Linear(*sizes, rngs, operands, bias=biased, shared=name == "o")
            setattr(self, name, linear)
        if arch.qk_norm != "none":
            each = arch.qk_norm == "head"
            self.q_norm = Norm(arch, arch.head_dim if each else arch.num_queries)
            self.k_norm = Norm(arch, arch.head_dim if each else arch.num_keys)
        self.arch = arch

    def __call__(
        self,
        x: Float[Array, "B T D"],
        view: functional.View,
        cache: KeyValues | None,
        write_at: Int[Array, " B"] | None,
        lora: Params,
        attend: attention.Attend | None,
        past: KeyValues | None,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Attends to this call's own keys, or to a cache after writing one position into it.

        With `past` (keys and values [1, K, P, H] of what all rows begin with) to those too.
        """
        q, k, v = self._heads(x, lora, decoding=cache is not None)
        q = functional.rotate(q, view)
        # Heads before positions: decoding reads the cache without a transpose.
        k, v = functional.rotate(k, view).swapaxes(1, 2), v.swapaxes(1, 2)
        if cache is not None:
            rows = jnp.arange(len(x))
            k = cache[0].at[rows, :, write_at].set(k[:, :, 0].astype(cache[0].dtype))
            v = cache[1].at[rows, :, write_at].set(v[:, :, 0].astype(cache[1].dtype))
        own = k, v
        if past is not None:
            k, v = (functional.behind(old, new) for old, new in zip(past, own, strict=True))
        how = (self.arch, q, k, v, view.mask, precisions.passes(self.o.operands))
        y = attend(q, k, v) if attend else functional.attend(*how)
        y = y.reshape(*x.shape[:2], -1)
        if cache is not None:
            y = activation_sharding.spread(activation_sharding.resting(y))
        return self.o(y, lora.get("o")), own

    def _heads(self, x: Array, lora: Params, *, decoding: bool) -> tuple[Array, Array, Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H], before rotation."""
        names = ("qkv",) if self.arch.fused_qkv else ("q", "k", "v")
        layers, loras = [getattr(self, name) for name in names], [lora.get(name) for name in names]
        projected = _products(x, layers, loras, decoding=decoding)
        if decoding:
            projected = activation_sharding.resting_together(projected)
        split = functools.partial(jnp.reshape, shape=(*x.shape[:2], -1, self.arch.head_dim))
        if self.arch.fused_qkv:
            # Each head's rows are its query, key and value, in this order.
            fused = split(projected[0])
            return fused[:, :, 0::3], fused[:, :, 1::3], fused[:, :, 2::3]
        q, k, v = projected
        if self.arch.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = split(q), split(k), split(v)
        if self.arch.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


class MLP(nnx.Module):
    """Two layers, the first of them gated (SwiGLU, GeGLU) or not."""

    gate: Linear
    up: Linear
    down: Linear

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, operands: str):
        for name, sizes in arch.mlp_kernels.items():
            shared = name == "down"
            linear = Linear(*sizes, rngs, operands, bias=arch.mlp_bias, shared=shared)
            setattr(self, name, linear)
        self.arch = arch

    def __call__(self, x: Array, lora: Params, *, decoding: bool) -> Array:
        """Maps [..., D] to [..., D]."""
        names = ("gate", "up") if self.arch.gated else ("up",)
        layers, loras = [getattr(self, name) for name in names], [lora.get(name) for name in names]
        first, *up = _products(x, layers, loras, decoding=decoding)
        inner = functional.ACTIVATIONS[self.arch.activation](first)
        return self.down(inner * up[0] if up else inner, lora.get("down"))


class Block(nnx.Module):
    """One decoder layer: attention and an MLP, normalised before, after, or both."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, operands: str = "float32"):
        if arch.norm_before:
            self.attn_norm, self.mlp_norm = Norm(arch, arch.width), Norm(arch, arch.width)
        if arch.norm_after:
            self.attn_post_norm, self.mlp_post_norm = (Norm(arch, arch.width) for _ in range(2))
        self.attn = Attention(arch, rngs, operands)
        self.mlp = MLP(arch, rngs, operands)
        self.arch = arch

    def __call__(
        self,
        x: Array,
        view: functional.View,
        *,
        lora: Params,
        cache: KeyValues | None = None,
        write_at: Array | None = None,
        attend: attention.Attend | None = None,
        past: KeyValues | None = None,
    ) -> tuple[Array, KeyValues]:
        """Maps the residual stream [B, T, D]; also returns its keys and values, or the cache."""
        arch = self.arch
        seen = self.attn_norm(x) if arch.norm_before else x
        y, keyvalues = self.attn(seen, view, cache, write_at, lora.get("attn", {}), attend, past)
        attended = x + (self.attn_post_norm(y) if arch.norm_after else y)
        if cache is not None:
            attended = activation_sharding.gathered(attended)
        read = x if arch.parallel else attended
        seen = self.mlp_norm(read) if arch.norm_before else read
        y = self.mlp(seen, lora.get("mlp", {}), decoding=cache is not None)
        return attended + (self.mlp_post_norm(y) if arch.norm_after else y), keyvalues


def init(arch: Architecture, key: Array) -> Params:
    """Draws the weights of one layer: kernels N(0, 1/fan_in), norms one; biases zero."""
    return nnx.to_pure_dict(nnx.state(Block(arch, nnx.Rngs(params=key))))


def init_norm(arch: Architecture) -> Params:
    """The norm after the last layer, one."""
    return nnx.to_pure_dict(nnx.state(Norm(arch, arch.width)))


@functools.lru_cache(maxsize=16)
def _graph(arch: Architecture, operands: str) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Block(arch, nnx.Rngs(params=0), operands)))


def block(arch: Architecture, operands: str, weights: Params) -> Block:
    """A callable layer with these weights; its products have the dtype `operands`."""
    graph, state = _graph(arch, operands)
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: the cached one stays abstract
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)
