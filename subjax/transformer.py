"""The decoder, written in Flax NNX; the only module that imports flax.

NNX defines the modules and their initialisation; outside this file a model is an `Architecture`
and a plain nested dict of arrays. Kernels keep Hugging Face's (out, in) order, so that reading a
checkpoint never transposes; layers are stacked on a leading axis L and scanned over.

    embed/embedding [V, D]                 layers/mlp_norm/scale [L, D]
    layers/attn_norm/scale [L, D]          layers/mlp/{gate,up}/kernel [L, F, D]
    layers/attn/q/kernel [L, N*H, D]       layers/mlp/down/kernel [L, D, F]
    layers/attn/{k,v}/kernel [L, K*H, D]   final_norm/scale [D]
    layers/attn/o/kernel [L, D, N*H]       head/kernel [V, D], absent when tied

Axis letters, used in every einsum and annotation of the project:
B batch, T query positions, S key positions, D width, N query heads, K kv heads, G = N / K,
H head dim, F ffn width, V vocabulary, L layers, R LoRA rank.
"""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from subjax import precision as precisions
from subjax import sharding
from subjax.architecture import Architecture

Params = dict[str, Any]
# Keys and values of one layer, or of all layers with a leading L.
KeyValues = tuple[Array, Array]


class Linear(nnx.Module):
    """A matrix without bias, kernel [out, in], with an optional LoRA branch given at call time."""

    def __init__(self, num_in: int, num_out: int, rngs: nnx.Rngs, operands: str):
        std = num_in**-0.5
        self.operands = operands
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (num_out, num_in)))

    def __call__(self, x: Array, lora: Params | None = None) -> Array:
        """Maps [..., in] to [..., out]; `lora` holds a [R, in] and b [out, R], already scaled."""
        y = precisions.project(x, self.kernel[...], self.operands)
        if lora is not None:
            low = precisions.project(x, lora["a"], self.operands)
            y = y + precisions.project(low, lora["b"], self.operands)
        return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a scale; computed in float32 or wider."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """Normalises the last axis of [..., D]."""
        return _rms_norm(x, self.scale[...], self.eps)


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, operands: str):
        queries, keys = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
        self.q = Linear(arch.width, queries, rngs, operands)
        self.k = Linear(arch.width, keys, rngs, operands)
        self.v = Linear(arch.width, keys, rngs, operands)
        self.o = Linear(queries, arch.width, rngs, operands)
        self.arch = arch

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: tuple[Array, Array],
        mask: Bool[Array, "#B T S"],
        cache: KeyValues | None,
        write_at: Int[Array, " B"] | None,
        lora: Params,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Attends to this call's own keys, or to a cache after writing one position into it."""
        batch, length, _ = x.shape
        heads = functools.partial(jnp.reshape, shape=(batch, length, -1, self.arch.head_dim))
        q = _rotate(heads(self.q(x, lora.get("q"))), rope)
        # Heads before positions: decoding attends to the cache as it lies.
        k = _rotate(heads(self.k(x, lora.get("k"))), rope).swapaxes(1, 2)
        v = heads(self.v(x, lora.get("v"))).swapaxes(1, 2)
        if cache is not None:
            rows = jnp.arange(batch)
            k = cache[0].at[rows, :, write_at].set(k[:, :, 0].astype(cache[0].dtype))
            v = cache[1].at[rows, :, write_at].set(v[:, :, 0].astype(cache[1].dtype))
        y = _attend(q, k, v, mask)
        return self.o(y.reshape(batch, length, -1), lora.get("o")), (k, v)


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, operands: str):
        self.gate = Linear(arch.width, arch.ffn_width, rngs, operands)
        self.up = Linear(arch.width, arch.ffn_width, rngs, operands)
        self.down = Linear(arch.ffn_width, arch.width, rngs, operands)

    def __call__(self, x: Array, lora: Params) -> Array:
        """Maps [..., D] to [..., D]."""
        gate = jax.nn.silu(self.gate(x, lora.get("gate")))
        return self.down(gate * self.up(x, lora.get("up")), lora.get("down"))


class Block(nnx.Module):
    """One pre-norm decoder layer."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, operands: str = "float32"):
        self.attn_norm = RMSNorm(arch.width, arch.norm_eps)
        self.attn = Attention(arch, rngs, operands)
        self.mlp_norm = RMSNorm(arch.width, arch.norm_eps)
        self.mlp = MLP(arch, rngs, operands)

    def __call__(
        self,
        x: Array,
        rope: tuple[Array, Array],
        mask: Array,
        *,
        lora: Params,
        cache: KeyValues | None = None,
        write_at: Array | None = None,
    ) -> tuple[Array, KeyValues]:
        """Maps the residual stream [B, T, D]; also returns the keys and values attended to."""
        y, keyvalues = self.attn(
            self.attn_norm(x), rope, mask, cache, write_at, lora.get("attn", {})
        )
        x = x + y
        return x + self.mlp(self.mlp_norm(x), lora.get("mlp", {})), keyvalues


def init(arch: Architecture, key: Array) -> Params:
    """Draws a fresh model: kernels N(0, 1/fan_in), embedding N(0, 1/D), norms one.

    Args:
      arch: shapes of the model.
      key: a typed jax random key; the only source of randomness.

    Returns:
      The nested dict of this module's docstring, float32.
    """
    embed_key, layers_key, head_key = jax.random.split(key, 3)

    def layer(layer_key: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(Block(arch, nnx.Rngs(params=layer_key))))

    scale = arch.width**-0.5
    shape = (arch.vocab_size, arch.width)
    params = {
        "embed": {"embedding": scale * jax.random.normal(embed_key, shape)},
        "layers": jax.vmap(layer)(jax.random.split(layers_key, arch.num_layers)),
        "final_norm": {"scale": jnp.ones(arch.width)},
    }
    if not arch.tie_embeddings:
        params["head"] = {"kernel": scale * jax.random.normal(head_key, shape)}
    return params


def abstract_params(arch: Architecture) -> Params:
    """Shapes and dtypes of `init`'s result, nothing computed."""
    return jax.eval_shape(lambda: init(arch, jax.random.key(0)))


def forward(
    arch: Architecture,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    adapter: Params | None = None,
    residual_add: Float[Array, "L D"] | None = None,
    precision: str = "float32",
    remat: bool = False,
) -> Float[Array, "B T D"]:
    """Runs right-padded rows through all layers, each row from position 0.

    Padding needs no mask: attention is causal, so what stands behind a token cannot reach it.

    Args:
      arch: shapes of the model.
      params: the nested dict of this module's docstring.
      tokens: token ids, right-padded.
      adapter: LoRA tree as `lora.scaled` returns it, or None.
      residual_add: a vector added to the residual stream after each layer (steering), or None.
      precision: a name of `precision.PRECISIONS`.
      remat: recompute each layer in the backward pass instead of keeping its activations.

    Returns:
      The final hidden states, normalised; `logits` turns them into scores.
    """
    hidden, _ = _scan_layers(arch, params, tokens, adapter, residual_add, precision, remat, False)
    return hidden


def prefill(
    arch: Architecture,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    adapter: Params | None = None,
    residual_add: Float[Array, "L D"] | None = None,
    precision: str = "float32",
) -> tuple[Float[Array, "B T D"], KeyValues]:
    """`forward` that also returns keys and values, each [L, B, K, T, H]."""
    return _scan_layers(arch, params, tokens, adapter, residual_add, precision, False, True)


def decode_layers(
    params: Params, adapter: Params | None = None, *, precision: str = "float32"
) -> list[tuple[Params, Params]]:
    """Slices and rounds the stacked layers once, so that a token loop need not at every step."""
    operands = precisions.PRECISIONS[precision].operands
    stacked = (params["layers"], (adapter or {}).get("layers", {}))
    # Vectors (norms) stay as they are; what is multiplied would be rounded at every use.
    stacked = jax.tree.map(lambda a: a.astype(operands) if a.ndim > 2 else a, stacked)
    num_layers = params["layers"]["attn_norm"]["scale"].shape[0]
    return [jax.tree.map(operator.itemgetter(i), stacked) for i in range(num_layers)]


def decode_step(
    arch: Architecture,
    params: Params,
    layers: list[tuple[Params, Params]],
    tokens: Int[Array, " B"],
    positions: Int[Array, " B"],
    cache: list[KeyValues],
    *,
    residual_add: Float[Array, "L D"] | None = None,
    precision: str = "float32",
) -> tuple[Float[Array, "B D"], list[KeyValues]]:
    """Runs one token per row against a cache, layers unrolled.

    Args:
      arch: shapes of the model.
      params: for the embedding and the final norm.
      layers: result of `decode_layers`.
      tokens: the token that stands at `positions`.
      positions: where each row's token stands; keys after it are not seen.
      cache: per layer, keys and values [B, K, S, H].
      residual_add: as in `forward`.
      precision: as in `forward`.

    Returns:
      Hidden states [B, D] that predict the next token, and the cache with this token written.
    """
    dtype, operands = precisions.PRECISIONS[precision]
    x = params["embed"]["embedding"][tokens[:, None]].astype(dtype)
    rope = _rope(arch, positions[:, None])
    num_keys = cache[0][0].shape[2]
    mask = (jnp.arange(num_keys)[None, :] <= positions[:, None])[:, None, :]
    written = []
    for index, (weights, lora) in enumerate(layers):
        x, keyvalues = _block(arch, operands, weights)(
            x, rope, mask, lora=lora, cache=cache[index], write_at=positions
        )
        if residual_add is not None:
            x = x + residual_add[index].astype(dtype)[None, None]
        written.append(keyvalues)
    return _rms_norm(x, params["final_norm"]["scale"], arch.norm_eps)[:, 0], written


def head_kernel(params: Params) -> Float[Array, "V D"]:
    """The output matrix: the head's kernel, or the embedding where the two are tied."""
    return params["head"]["kernel"] if "head" in params else params["embed"]["embedding"]


def logits(
    params: Params,
    hidden: Float[Array, "... D"],
    *,
    tokens: Int[Array, " A"] | None = None,
    precision: str = "float32",
) -> Float[Array, "... V"]:
    """Scores over the vocabulary, or over `tokens` alone, float32."""
    kernel = head_kernel(params) if tokens is None else head_kernel(params)[tokens]
    return precisions.project(hidden, kernel, precisions.PRECISIONS[precision].operands)


def _scan_layers(
    arch: Architecture,
    params: Params,
    tokens: Array,
    adapter: Params | None,
    residual_add: Array | None,
    precision: str,
    remat: bool,
    keep_cache: bool,
) -> tuple[Array, Any]:
    dtype, operands = precisions.PRECISIONS[precision]
    length = tokens.shape[1]
    rope = _rope(arch, jnp.arange(length)[None])
    mask = jnp.tril(jnp.ones((length, length), bool))[None]

    def layer(x: Array, xs: tuple[Params, Params, Array | None]) -> tuple[Array, Any]:
        weights, lora, added = xs
        # Without this constraint jax 0.10 on CPU has given wrong gradients on 3-axis meshes.
        x = sharding.constrain_batch(x)
        x, keyvalues = _block(arch, operands, weights)(x, rope, mask, lora=lora)
        if added is not None:
            x = x + added.astype(dtype)[None, None]
        return x, keyvalues if keep_cache else None

    x = params["embed"]["embedding"][tokens].astype(dtype)
    body: Any = jax.checkpoint(layer) if remat else layer
    lora = (adapter or {}).get("layers", {})
    # A handful of layers runs a third faster unrolled on CPU; more would only compile longer.
    unroll = arch.num_layers if arch.num_layers <= 4 else 1
    xs = (params["layers"], lora, residual_add)
    x, keyvalues = jax.lax.scan(body, x, xs, unroll=unroll)
    return _rms_norm(x, params["final_norm"]["scale"], arch.norm_eps), keyvalues


@functools.lru_cache(maxsize=16)
def _graph(arch: Architecture, operands: str) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Block(arch, nnx.Rngs(params=0), operands)))


def _block(arch: Architecture, operands: str, weights: Params) -> Block:
    graph, state = _graph(arch, operands)
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: the cached one stays abstract
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


def _rms_norm(x: Array, scale: Array, eps: float) -> Array:
    wide = x.astype(precisions.wide(x.dtype))
    inverse = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    scale = jnp.expand_dims(scale.astype(x.dtype), tuple(range(x.ndim - 1)))
    return (wide * inverse).astype(x.dtype) * scale


def _rope(arch: Architecture, positions: Int[Array, "B T"]) -> tuple[Array, Array]:
    exponents = jnp.arange(0, arch.head_dim, 2, dtype=jnp.float32) / arch.head_dim
    angles = positions[..., None].astype(jnp.float32) / arch.rope_theta ** exponents[None, None]
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]  # [B, T, 1, H/2]


def _rotate(x: Float[Array, "B T N H"], rope: tuple[Array, Array]) -> Float[Array, "B T N H"]:
    # Hugging Face pairs dimension i with i + H/2, and so must the angles.
    cos, sin = rope
    first, second = jnp.split(x.astype(precisions.wide(x.dtype)), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "#B T S"],
) -> Float[Array, "B T N H"]:
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    q = q.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    q = q.transpose(0, 2, 3, 1, 4)
    wide = precisions.wide(q.dtype)
    scores = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=wide)
    scores = scores * (1 / math.sqrt(head_dim))
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1)
    y = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v)
    return y.transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, head_dim)
