"""The decoder: a stack of the layers in blocks.py, applied to whole rows or token by token.

A model is an `Architecture` and a plain nested dict of arrays. Kernels keep Hugging Face's
(out, in) order, so loading a checkpoint needs no transpose; layers are stacked on a leading axis
L and scanned over.

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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from subjax.nn import activation_sharding, attention, blocks, functional, remats
from subjax.nn import precision as precisions
from subjax.nn.architecture import Architecture
from subjax.nn.blocks import KeyValues
from subjax.nn.blocks import Params as Params
from subjax.nn.functional import View

# Each unrolled layer of a token loop takes the TPU compiler 1 to 3 seconds, up to 30 on meshes with
# fsdp=256.
MOST_UNROLLED = 40


def init(arch: Architecture, key: Array) -> Params:
    """Draws a fresh model: kernels N(0, 1/fan_in), embedding N(0, 1/D), norms one.

    Args:
      arch: shapes of the model.
      key: a typed jax random key; the only source of randomness.

    Returns:
      The nested dict of this module's docstring, float32.
    """
    embed_key, layers_key, head_key = jax.random.split(key, 3)
    layer_keys = jax.random.split(layers_key, arch.num_layers)
    scale = arch.width**-0.5
    shape = (arch.vocab_size, arch.width)
    params = {
        "embed": {"embedding": scale * jax.random.normal(embed_key, shape)},
        "layers": jax.vmap(functools.partial(blocks.init, arch))(layer_keys),
        "final_norm": blocks.init_norm(arch),
    }
    if not arch.tie_embeddings:
        params["head"] = {"kernel": scale * jax.random.normal(head_key, shape)}
    return params


@functools.cache  # tracing takes half of the time of loading a small model
def abstract_params(arch: Architecture, precision: str = "float32") -> Params:
    """Shapes and dtypes of weights, without computing them; all callers share one tree.

    Args:
      arch: shapes of the model.
      precision: for which weights are held that are not trained, a name of `precision.PRECISIONS`.
        Each has the narrowest dtype that changes no result: that to which it is rounded before it
        is used. Norms and biases are float32, like all weights that are trained.
    """
    activations, operands = precisions.PRECISIONS[precision]
    dtypes = {"kernel": operands, "embedding": jnp.promote_types(activations, operands)}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, dtypes.get(path[-1].key, leaf.dtype)),
        jax.eval_shape(lambda: init(arch, jax.random.key(0))),
    )


def held(arch: Architecture, params: Params, precision: str) -> Params:
    """Weights that are not trained, as `abstract_params` says."""
    abstract = abstract_params(arch, precision)
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, abstract)


def num_params(arch: Architecture) -> int:
    """Number of parameters, the embedding counted once when tied."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(arch)))


def forward(
    arch: Architecture,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    segments: Int[Array, "B T"] | None = None,
    places: Int[Array, "B U W"] | None = None,
    branches: Int[Array, "B T"] | None = None,
    adapter: Params | None = None,
    residual_add: Float[Array, "L D"] | None = None,
    precision: str = "float32",
    remat: str = "none",
) -> Float[Array, "B T D"]:
    """Runs right-padded rows through all layers, each row (or segment) from position 0.

    Padding needs no mask: attention is causal, so tokens do not see the padding behind them.

    Args:
      arch: shapes of the model.
      params: the nested dict of this module's docstring.
      tokens: token ids, right-padded.
      segments: for packed rows: a number per segment; None: each row is one segment.
      places: for packed rows that attend segment by segment, as in `attention.by_segment`.
      branches: for rows that branch: 0 for the trunk, with which a row begins, then a number for
        each branch, which follows the trunk and sees no other branch; None: rows do not branch.
      adapter: LoRA tree as `lora.scaled` returns it, or None.
      residual_add: a vector added to the residual stream after each layer (steering), or None.
      precision: a name of `precision.PRECISIONS`.
      remat: activation checkpointing, a name of `remats.REMATS`.

    Returns:
      The final hidden states, normalised; `logits` turns them into scores.
    """
    packed = _Packed(segments, places) if branches is None else _Packed(branches, branching=True)
    return _scan_layers(arch, params, tokens, packed, adapter, residual_add, precision, remat)[0]


def prefill(
    arch: Architecture,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    adapter: Params | None = None,
    residual_add: Float[Array, "L D"] | None = None,
    precision: str = "float32",
    past: KeyValues | None = None,
) -> tuple[Float[Array, "B T D"], KeyValues]:
    """`forward` that also returns keys and values, each [L, B, K, T, H].

    With `past`, keys and values [L, 1, K, P, H] of P tokens that all rows begin with, `tokens` are
    what follows these.
    """
    alone = _Packed()
    return _scan_layers(
        arch, params, tokens, alone, adapter, residual_add, precision, keep_cache=True, past=past
    )


def decode_layers(
    params: Params, adapter: Params | None = None, *, precision: str = "float32"
) -> list[tuple[Params, Params]]:
    """Slices, rounds, pads and reshards the layers once, before a token loop.

    Returns:
      Each layer, padded by `activation_sharding.pad_inner`; for deep models one entry with all
      layers stacked.
    """
    operands = precisions.PRECISIONS[precision].operands
    stacked = (params["layers"], (adapter or {}).get("layers", {}))
    # Kernels are rounded here, not at every use; vectors (norms) are not rounded.
    stacked = jax.tree.map(lambda a: a.astype(operands) if a.ndim > 2 else a, stacked)
    stacked = activation_sharding.constrain_decoding(activation_sharding.pad_inner(stacked))
    num_layers = len(params["layers"]["attn"]["o"]["kernel"])
    if num_layers > MOST_UNROLLED:
        return [stacked]
    return [jax.tree.map(operator.itemgetter(i), stacked) for i in range(num_layers)]


def decode_cache(
    keys: Float[Array, "L B K S H"], values: Float[Array, "L B K S H"]
) -> list[KeyValues]:
    """Keys and values of `prefill` in the layout of a token loop.

    Returns:
      One entry per layer, [B, K, S, H]; for deep models one entry with all, [B, K, L, S, H].
    """
    if len(keys) > MOST_UNROLLED:
        return [(jnp.moveaxis(keys, 0, 2), jnp.moveaxis(values, 0, 2))]
    return [(keys[i], values[i]) for i in range(len(keys))]


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
    """Runs one token per row against a cache, layers unrolled, or in a loop for deep models.

    Args:
      arch: shapes of the model.
      params: for the embedding and the final norm.
      layers: result of `decode_layers`.
      tokens: each row's token.
      positions: the position of each row's token; later keys are masked.
      cache: in the layout of `decode_cache`.
      residual_add: as in `forward`.
      precision: as in `forward`.

    Returns:
      Hidden states [B, D] that predict the next token, and the cache with this token written.
    """
    dtype, operands = precisions.PRECISIONS[precision]
    tokens = activation_sharding.gathered(tokens[:, None])
    x = activation_sharding.embedded(_embed(arch, params, tokens, dtype))
    views = functional.views(arch, positions[:, None], cache[0][0].shape[-2])

    def layer(
        x: Array, each: tuple[Params, Params], near: Any, added: Any, cache: KeyValues
    ) -> tuple[Array, KeyValues]:
        weights, lora = each
        x, own = blocks.block(arch, operands, weights)(
            *(activation_sharding.gathered(x), _view(views, near)),
            lora=lora,
            cache=cache,
            write_at=positions,
        )
        return x if added is None else x + added.astype(dtype)[None, None], own

    num_layers, written = arch.num_layers, []
    local = arch.local or (False,) * num_layers
    if num_layers > MOST_UNROLLED:
        xs = (jnp.arange(num_layers), layers[0], jnp.array(local), residual_add)
        x, whole = _scan_cached(layer, x, xs, cache[0])
        written.append(whole)
    else:
        added = [None] * num_layers if residual_add is None else residual_add
        for i in range(num_layers):
            x, own = layer(x, layers[i], local[i], added[i], cache[i])
            written.append(own)
    # Without this, a loop over layers would carry x in parts, as callers keep it, and gather it in
    # each of them.
    x = activation_sharding.gathered(x)
    return functional.norm(arch, x, **params["final_norm"])[:, 0], written


def _scan_cached(
    layer: Callable[..., tuple[Array, KeyValues]], x: Array, xs: Any, cache: KeyValues
) -> tuple[Array, KeyValues]:
    """Runs the layers of `decode_step` in a loop, each on its part of the cache [B, K, L, S, H]."""

    def turn(carry: tuple[Array, KeyValues], xs: Any) -> tuple[tuple[Array, KeyValues], None]:
        (x, whole), (i, each, near, added) = carry, xs
        x, own = layer(x, each, near, added, (whole[0][:, :, i], whole[1][:, :, i]))
        keys, values = (kv.at[:, :, i].set(new) for kv, new in zip(whole, own, strict=True))
        return (x, (keys, values)), None

    return jax.lax.scan(turn, (x, cache), xs)[0]


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


class _Packed(NamedTuple):
    """What shares a row, with the arguments of `forward`; whether segment 0 is a trunk."""

    segments: Array | None = None
    places: Array | None = None
    branching: bool = False


def _scan_layers(
    arch: Architecture,
    params: Params,
    tokens: Array,
    packed: _Packed,
    adapter: Params | None,
    residual_add: Array | None,
    precision: str,
    remat: str = "none",
    keep_cache: bool = False,
    past: KeyValues | None = None,
) -> tuple[Array, Any]:
    (dtype, operands), length = precisions.PRECISIONS[precision], tokens.shape[1]
    segments, places, branching = packed
    at = jnp.arange(length)[None]
    if segments is not None:
        count = functional.branch_positions if branching else functional.segment_positions
        at = count(segments)
    begin = 0 if past is None else past[0].shape[3]
    views = functional.views(arch, begin + at, begin + length, segments, branching=branching)

    def layer(x: Array, xs: Any) -> tuple[Array, Any]:
        weights, lora, added, local, before = xs
        # Without this constraint jax 0.10 on CPU has given wrong gradients on 3-axis meshes.
        x = activation_sharding.constrain_batch(x)
        # Two calls: a frozen base needs no gradient.
        weights, lora = (
            activation_sharding.gathered_weights(weights),
            activation_sharding.gathered_weights(lora),
        )
        near = any(arch.local) if local is None else local
        attend = None
        if before is None and not branching:
            attend = attention.causal(
                arch, length, operands, near=near, segments=segments, places=places
            )
        x, keyvalues = blocks.block(arch, operands, weights)(
            x, _view(views, near), lora=lora, attend=attend, past=before
        )
        if added is not None:
            x = x + added.astype(dtype)[None, None]
        return x, keyvalues if keep_cache else None

    x, lora = _embed(arch, params, tokens, dtype), (adapter or {}).get("layers", {})
    # A few layers run a third faster unrolled on CPU; more would only compile longer.
    unroll = arch.num_layers if arch.num_layers <= 4 else 1
    xs = (params["layers"], lora, residual_add, _local(arch), past)
    x, kept = jax.lax.scan(remats.wrapped(layer, remat), x, xs, unroll=unroll)
    return functional.norm(arch, x, **params["final_norm"]), kept


def _local(arch: Architecture) -> Bool[Array, " L"] | None:
    """Which layers are local; None if all layers are of one kind."""
    return jnp.array(arch.local) if any(arch.local) and not all(arch.local) else None


def _view(views: tuple[View, View], near: bool | Bool[Array, ""]) -> View:
    """The view of a layer; whether the layer is local may be a traced value."""
    if isinstance(near, bool):
        return views[near]
    return jax.tree.map(lambda e, n: jnp.where(near, n, e), *views)


def _embed(arch: Architecture, params: Params, tokens: Array, dtype: str) -> Array:
    x = params["embed"]["embedding"][tokens].astype(dtype)
    return x * jnp.sqrt(arch.width).astype(dtype) if arch.scale_embedding else x
