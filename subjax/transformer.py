"""The decoder, written in Flax NNX; the only module that imports flax.

NNX defines the modules and their initialisation; outside this file a model is an `Architecture`
and a plain nested dict of arrays. Kernels keep Hugging Face's (out, in) order, so that reading a
checkpoint never transposes; layers are stacked on a leading axis L and scanned over.

    embed/embedding [V, D]                 layers/mlp_norm/scale [L, D]
    layers/attn_norm/scale [L, D]          layers/mlp/{gate,up}/kernel [L, F, D]
    layers/attn/q/kernel [L, N*H, D]       layers/mlp/down/kernel [L, D, F]
    layers/attn/{k,v}/kernel [L, K*H, D]   final_norm/scale [D]
    layers/attn/o/kernel [L, D, N*H]       head/kernel [V, D], absent when tied

and, where the architecture has them,

    layers/attn/qkv/kernel [L, N*3*H, D]   layers/attn/{q,k}_norm/scale [L, H] or all heads
    layers/{attn,mlp}_post_norm/scale      .../bias beside any kernel or scale

Axis letters, used in every einsum and annotation of the project:
B batch, T query positions, S key positions, D width, N query heads, K kv heads, G = N / K,
H head dim, F ffn width, V vocabulary, L layers, R LoRA rank.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from subjax import attention, functional, remats, sharding
from subjax import precision as precisions
from subjax.architecture import Architecture

Params = dict[str, Any]
# Keys and values of one layer, or of all layers with a leading L.
KeyValues = tuple[Array, Array]

BIASED = {"none": (), "qkv": ("q", "k", "v", "qkv"), "all": ("q", "k", "v", "qkv", "o")}


class Linear(nnx.Module):
    """A matrix, kernel [out, in], with an optional LoRA branch given at call time."""

    def __init__(
        self, num_in: int, num_out: int, rngs: nnx.Rngs, operands: str, *, bias: bool = False
    ):
        std = num_in**-0.5
        self.operands = operands
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (num_out, num_in)))
        self.bias = nnx.Param(jnp.zeros(num_out)) if bias else None

    def __call__(self, x: Array, lora: Params | None = None) -> Array:
        """Maps [..., in] to [..., out]; `lora` holds a [R, in] and b [out, R], already scaled."""
        y = precisions.project(x, self.kernel[...], self.operands)
        if lora is not None:
            low = precisions.project(x, lora["a"], self.operands)
            y = y + precisions.project(low, lora["b"], self.operands)
        if self.bias is not None:
            y = y + functional.along(self.bias[...], y)
        return remats.projected(y.astype(x.dtype))


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
            setattr(self, name, Linear(*sizes, rngs, operands, bias=biased))
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
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Attends to this call's own keys, or to a cache after writing one position into it."""
        q, k, v = self._heads(x, lora)
        q = functional.rotate(q, view)
        # Heads before positions: decoding attends to the cache as it lies.
        k, v = functional.rotate(k, view).swapaxes(1, 2), v.swapaxes(1, 2)
        if cache is not None:
            rows = jnp.arange(len(x))
            k = cache[0].at[rows, :, write_at].set(k[:, :, 0].astype(cache[0].dtype))
            v = cache[1].at[rows, :, write_at].set(v[:, :, 0].astype(cache[1].dtype))
        how = (self.arch, q, k, v, view.mask, precisions.passes(self.o.operands))
        y = attend(q, k, v) if attend else functional.attend(*how)
        return self.o(y.reshape(*x.shape[:2], -1), lora.get("o")), (k, v)

    def _heads(self, x: Array, lora: Params) -> tuple[Array, Array, Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H], before they turn."""
        split = functools.partial(jnp.reshape, shape=(*x.shape[:2], -1, self.arch.head_dim))
        if self.arch.fused_qkv:
            # Each head's rows are its query, key and value, in this order.
            fused = split(self.qkv(x, lora.get("qkv")))
            return fused[:, :, 0::3], fused[:, :, 1::3], fused[:, :, 2::3]
        q, k, v = (getattr(self, name)(x, lora.get(name)) for name in ("q", "k", "v"))
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
            setattr(self, name, Linear(*sizes, rngs, operands, bias=arch.mlp_bias))
        self.arch = arch

    def __call__(self, x: Array, lora: Params) -> Array:
        """Maps [..., D] to [..., D]."""
        activation, inner = functional.ACTIVATIONS[self.arch.activation], self.up(x, lora.get("up"))
        if self.arch.gated:
            inner = activation(self.gate(x, lora.get("gate"))) * inner
        else:
            inner = activation(inner)
        return self.down(inner, lora.get("down"))


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
    ) -> tuple[Array, KeyValues]:
        """Maps the residual stream [B, T, D]; also returns the keys and values attended to."""
        arch = self.arch
        seen = self.attn_norm(x) if arch.norm_before else x
        y, keyvalues = self.attn(seen, view, cache, write_at, lora.get("attn", {}), attend)
        attended = x + (self.attn_post_norm(y) if arch.norm_after else y)
        read = x if arch.parallel else attended
        y = self.mlp(self.mlp_norm(read) if arch.norm_before else read, lora.get("mlp", {}))
        return attended + (self.mlp_post_norm(y) if arch.norm_after else y), keyvalues


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
        "final_norm": nnx.to_pure_dict(nnx.state(Norm(arch, arch.width))),
    }
    if not arch.tie_embeddings:
        params["head"] = {"kernel": scale * jax.random.normal(head_key, shape)}
    return params


def abstract_params(arch: Architecture) -> Params:
    """Shapes and dtypes of `init`'s result, nothing computed."""
    return jax.eval_shape(lambda: init(arch, jax.random.key(0)))


def num_params(arch: Architecture) -> int:
    """Number of parameters, the embedding counted once when tied."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(arch)))


def forward(
    arch: Architecture,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    segments: Int[Array, "B T"] | None = None,
    adapter: Params | None = None,
    residual_add: Float[Array, "L D"] | None = None,
    precision: str = "float32",
    remat: str | bool = "none",
) -> Float[Array, "B T D"]:
    """Runs right-padded rows through all layers, each row (or segment) from position 0.

    Padding needs no mask: attention is causal, so what stands behind a token cannot reach it.

    Args:
      arch: shapes of the model.
      params: the nested dict of this module's docstring.
      tokens: token ids, right-padded.
      segments: of packed rows: equal where tokens belong together; None: each row is one segment.
      adapter: LoRA tree as `lora.scaled` returns it, or None.
      residual_add: a vector added to the residual stream after each layer (steering), or None.
      precision: a name of `precision.PRECISIONS`.
      remat: what the backward pass computes again, a name of `remats.REMATS`.

    Returns:
      The final hidden states, normalised; `logits` turns them into scores.
    """
    return _scan_layers(arch, params, tokens, segments, adapter, residual_add, precision, remat)[0]


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
    return _scan_layers(
        arch, params, tokens, None, adapter, residual_add, precision, keep_cache=True
    )


def decode_layers(
    params: Params, adapter: Params | None = None, *, precision: str = "float32"
) -> list[tuple[Params, Params]]:
    """Slices and rounds the stacked layers once, so that a token loop need not at every step."""
    operands = precisions.PRECISIONS[precision].operands
    stacked = (params["layers"], (adapter or {}).get("layers", {}))
    # Vectors (norms) stay as they are; what is multiplied would be rounded at every use.
    stacked = jax.tree.map(lambda a: a.astype(operands) if a.ndim > 2 else a, stacked)
    num_layers = len(params["layers"]["attn"]["o"]["kernel"])
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
    x = _embed(arch, params, tokens[:, None], dtype)
    everywhere, near = functional.views(arch, positions[:, None], cache[0][0].shape[2])
    written = []
    for index, (weights, lora) in enumerate(layers):
        view = near if arch.local and arch.local[index] else everywhere
        x, keyvalues = _block(arch, operands, weights)(
            x, view, lora=lora, cache=cache[index], write_at=positions
        )
        if residual_add is not None:
            x = x + residual_add[index].astype(dtype)[None, None]
        written.append(keyvalues)
    return functional.norm(arch, x, **params["final_norm"])[:, 0], written


def head(arch: Architecture, params: Params, *, precision: str = "float32") -> precisions.Head:
    """The output matrix: the head's kernel, or the embedding where the two are tied."""
    kernel = params["head"]["kernel"] if "head" in params else params["embed"]["embedding"]
    return precisions.Head(kernel, precisions.PRECISIONS[precision].operands, arch.final_softcap)


def logits(
    arch: Architecture,
    params: Params,
    hidden: Float[Array, "... D"],
    *,
    precision: str = "float32",
) -> Float[Array, "... V"]:
    """Scores over the vocabulary, float32."""
    return head(arch, params, precision=precision).scores(hidden)


def _scan_layers(
    arch: Architecture,
    params: Params,
    tokens: Array,
    segments: Array | None,
    adapter: Params | None,
    residual_add: Array | None,
    precision: str,
    remat: str | bool = "none",
    keep_cache: bool = False,
) -> tuple[Array, Any]:
    (dtype, operands), length = precisions.PRECISIONS[precision], tokens.shape[1]
    at = jnp.arange(length)[None] if segments is None else functional.segment_positions(segments)
    everywhere, near = functional.views(arch, at, length, segments)
    mixed = any(arch.local) and not all(arch.local)
    view = near if any(arch.local) and not mixed else everywhere

    def layer(x: Array, xs: tuple[Params, Params, Array | None, Array | None]) -> tuple[Array, Any]:
        weights, lora, added, local = xs
        # Without this constraint jax 0.10 on CPU has given wrong gradients on 3-axis meshes.
        x = sharding.constrain_batch(x)
        chosen = view
        if local is not None:
            chosen = jax.tree.map(lambda n, e: jnp.where(local, n, e), near, everywhere)
        near_here = any(arch.local) if local is None else local
        attend = attention.causal(arch, length, operands, near=near_here, segments=segments)
        x, keyvalues = _block(arch, operands, weights)(x, chosen, lora=lora, attend=attend)
        if added is not None:
            x = x + added.astype(dtype)[None, None]
        return x, keyvalues if keep_cache else None

    x, lora = _embed(arch, params, tokens, dtype), (adapter or {}).get("layers", {})
    # A few layers run a third faster unrolled on CPU; more would only compile longer.
    unroll = arch.num_layers if arch.num_layers <= 4 else 1
    xs = (params["layers"], lora, residual_add, jnp.array(arch.local) if mixed else None)
    x, kept = jax.lax.scan(remats.wrapped(layer, remat), x, xs, unroll=unroll)
    return functional.norm(arch, x, **params["final_norm"]), kept


@functools.lru_cache(maxsize=16)
def _graph(arch: Architecture, operands: str) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Block(arch, nnx.Rngs(params=0), operands)))


def _block(arch: Architecture, operands: str, weights: Params) -> Block:
    graph, state = _graph(arch, operands)
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: the cached one stays abstract
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


def _embed(arch: Architecture, params: Params, tokens: Array, dtype: str) -> Array:
    x = params["embed"]["embedding"][tokens].astype(dtype)
    return x * jnp.sqrt(arch.width).astype(dtype) if arch.scale_embedding else x
