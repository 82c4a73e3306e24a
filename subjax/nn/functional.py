"""What layers compute, as pure functions: norms, activations, rotary positions, masks, attention.

The axis letters are those of `transformer`.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from subjax.nn.architecture import Architecture, RopeScaling

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class View(NamedTuple):
    """Positions of a layer: rotary angles and mask.

    Attributes:
      cos: of the rotary angles, [B, T, 1, rotary_dim / 2], B or 1.
      sin: the same shape.
      mask: [B, T, S], B or 1: which keys a query sees.
    """

    cos: Array
    sin: Array
    mask: Array


def norm(arch: Architecture, x: Array, scale: Array, bias: Array | None = None) -> Array:
    """Normalises the last axis of x, [..., D]; computed in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if arch.norm == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + arch.norm_eps)
    normed = normed * along((scale + arch.norm_offset).astype(wide.dtype), x)
    if bias is not None:
        normed = normed + along(bias.astype(wide.dtype), x)
    return normed.astype(x.dtype)


def along(vector: Float[Array, " D"], x: Float[Array, "... D"]) -> Array:
    """A vector reshaped to the rank of x: the tests forbid implicit rank promotion."""
    return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))


def views(
    arch: Architecture,
    positions: Int[Array, "B T"],
    num_keys: int,
    segments: Int[Array, "B T"] | None = None,
    *,
    branching: bool = False,
) -> tuple[View, View]:
    """The view of a global layer, and the view of a local one.

    Args:
      arch: shapes of the model.
      positions: of the queries.
      num_keys: S; without segments, keys stand at positions 0 to S - 1.
      segments: of the queries, which are also the keys; segments do not see each other.
      branching: whether all segments see segment 0 nevertheless.
    """
    keys = jnp.arange(num_keys)[None] if segments is None else positions
    distance = positions[..., None] - keys[:, None]
    seen = distance >= 0
    if segments is not None:
        same = segments[..., None] == segments[:, None]
        seen = seen & (same | (segments[:, None] == 0) if branching else same)
    everywhere = View(*_rope(arch, positions, local=False), seen)
    if not arch.local:
        return everywhere, everywhere
    near = seen & (distance < arch.window)
    return everywhere, View(*_rope(arch, positions, local=True), near)


def segment_positions(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The position of each token within its segment, from 0; segments are contiguous."""
    index = jnp.broadcast_to(jnp.arange(segments.shape[1])[None], segments.shape)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def branch_positions(branches: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The position of each token of a row that branches: every branch follows the trunk, 0."""
    trunk = jnp.sum(branches == 0, axis=1, keepdims=True)
    return segment_positions(branches) + jnp.where(branches > 0, trunk, 0)


def _rope(arch: Architecture, positions: Int[Array, "B T"], *, local: bool) -> tuple[Array, Array]:
    """Cosines and sines, [B, T, 1, rotary_dim / 2]."""
    num_turned = arch.rotary_dim or arch.head_dim
    exponents = jnp.arange(0, num_turned, 2, dtype=jnp.float32) / num_turned
    own = local and arch.local_rope_theta
    inverse = 1 / (arch.local_rope_theta if own else arch.rope_theta) ** exponents
    if arch.rope_scaling and not own:
        inverse = _stretched(inverse, arch.rope_scaling)
    angles = positions[..., None].astype(jnp.float32) * inverse[None, None]
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def _stretched(inverse: Float[Array, " F"], scaling: RopeScaling) -> Float[Array, " F"]:
    """Frequencies for longer contexts; interpolated between the two limits (Llama 3.1)."""
    if not scaling.low_freq_factor:
        return inverse / scaling.factor
    turns = scaling.original_positions * inverse / (2 * math.pi)  # in the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return inverse * (kept + (1 - kept) / scaling.factor)


def rotate(x: Float[Array, "B T N H"], view: View) -> Float[Array, "B T N H"]:
    """Rotates the leading dimensions of each head by its position's angles."""
    # Hugging Face pairs dimension i with i + rotary_dim / 2, and so must the angles.
    half = view.cos.shape[-1]
    wide = x[..., : 2 * half].astype(jnp.promote_types(x.dtype, jnp.float32))
    first, second = jnp.split(wide, 2, axis=-1)
    turned = (first * view.cos - second * view.sin, second * view.cos + first * view.sin)
    still = x[..., 2 * half :]
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), still], axis=-1)


def behind(prefix: Float[Array, "1 K P H"], x: Float[Array, "B K T H"]) -> Array:
    """Keys or values of rows behind those of a prefix that all rows share, [B, K, P + T, H]."""
    return jnp.concatenate([jnp.broadcast_to(prefix, (len(x), *prefix.shape[1:])), x], axis=2)


def attend(
    arch: Architecture,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "#B T S"],
    passes: jax.lax.Precision,
) -> Float[Array, "B T N H"]:
    """Softmax attention; G query heads in a row share a key and value head."""
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    q = q.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    q = q.transpose(0, 2, 3, 1, 4)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bkgth,bksh->bkgts", q, k, precision=passes, preferred_element_type=wide)
    scores = scores * (1 / math.sqrt(arch.query_scale or head_dim))
    if arch.attention_softcap:
        scores = arch.attention_softcap * jnp.tanh(scores / arch.attention_softcap)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1)
    y = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v, precision=passes)
    return y.transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, head_dim)


def random_bits(keys: Key[Array, " B"], count: int) -> UInt32[Array, "B {count}"]:
    """Those of `jax.random.bits(key, (count,))`, for each key.

    That function draws with a loop on CPUs, which keeps XLA from fusing it and takes several times
    as long.
    """
    data = jax.random.key_data(keys)
    high, low = _threefry(data[:, :1], data[:, 1:], jnp.arange(count, dtype=jnp.uint32))
    return high ^ low


def gumbel(keys: Key[Array, " B"], count: int) -> Float[Array, "B {count}"]:
    """Float32, those of `jax.random.gumbel(key, (count,))`, for each key."""
    mantissa = random_bits(keys, count) >> 9 | jnp.uint32(0x3F800000)  # a float32 in [1, 2)
    uniform = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1
    # Above zero, whose logarithm is infinite.
    return -jnp.log(-jnp.log(jnp.maximum(uniform, jnp.finfo(jnp.float32).tiny)))


def _threefry(
    key_0: UInt32[Array, "B 1"], key_1: UInt32[Array, "B 1"], counter: UInt32[Array, " P"]
) -> tuple[UInt32[Array, "B P"], UInt32[Array, "B P"]]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011) of the counters (0, 0) to (0, P - 1)."""
    keys = (key_0, key_1, key_0 ^ key_1 ^ jnp.uint32(0x1BD11BDA))
    x, y = key_0, counter[None] + key_1
    for i in range(5):
        for distance in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x = x + y
            y = x ^ (y << distance | y >> (32 - distance))
        x = x + keys[(i + 1) % 3]
        y = y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x, y
