"""Faster ways to attend than `functional.attend`, which is the reference.

On TPUs JAX's splash kernel, which never holds the scores of all pairs of positions. The mesh
decides: programs that are compiled for TPU chips use it for rows of a multiple of 128 positions
that begin themselves, other programs never. Elsewhere packed rows attend segment by segment.
The axis letters are those of `transformer`; U is the number of segments of a packed row, W the most
tokens of one.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from subjax.nn import functional
from subjax.nn import precision as precisions
from subjax.nn.architecture import Architecture

_MULTIPLE = 128  # of positions: the width of the chip's vector registers
_BLOCKS = (512, 256, 128)  # positions at once, the largest that divides a row

Attend = Callable[[Array, Array, Array], Array]


def usable(length: int, operands: str) -> bool:
    """Whether programs on the mesh in context use the kernel for rows of this length.

    Args:
      length: T, positions of a row.
      operands: of products, as in `precision.Precision`; the kernel multiplies bfloat16.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    on_tpu = device is not None and device.device_kind.startswith("TPU")
    return on_tpu and operands == "bfloat16" and length % _MULTIPLE == 0


def causal(
    arch: Architecture,
    length: int,
    operands: str,
    *,
    near: bool | Array,
    segments: Int[Array, "B T"] | None = None,
    places: Int[Array, "B U W"] | None = None,
) -> Attend | None:
    """A faster way for a layer: a function of queries, keys and values as in `splash`.

    Args:
      arch: window, cap and scale.
      length: as in `usable`.
      operands: as in `usable`.
      near: whether the layer is local; an array if layers of both kinds share a program.
      segments: as in `splash`.
      places: as in `by_segment`, which is used where the kernel is not; None: it is not.

    Returns:
      The kernel, `by_segment`, or None where neither is usable.
    """
    if not usable(length, operands):
        if segments is None or places is None:
            return None
        return by_segment(arch, segments, places, operands, near=near)

    def attend(q: Array, k: Array, v: Array) -> Array:
        if isinstance(near, bool) or arch.window >= q.shape[1]:
            return splash(arch, q, k, v, local=near is True, segments=segments)
        kinds = [
            functools.partial(splash, arch, local=kind, segments=segments) for kind in (True, False)
        ]
        return jax.lax.cond(near, *kinds, q, k, v)

    return attend


def by_segment(
    arch: Architecture,
    segments: Int[Array, "B T"],
    places: Int[Array, "B U W"],
    operands: str,
    *,
    near: bool | Array = False,
) -> Attend:
    """Attention of packed rows by `functional.attend`, with each segment as a row of its own.

    So only pairs of positions within a segment have scores.

    Args:
      arch: window, cap and scale.
      segments: which segment a token belongs to, from 1; 0: padding, for which the result is 0.
      places: where the tokens of each segment stand in its packed row; -1: it has no more.
      operands: as in `usable`.
      near: as in `causal`.
    """
    most, length = places.shape[1:]
    apart = places.reshape(len(places), -1)
    together = (segments - 1) * length + functional.segment_positions(segments)
    together = jnp.where(segments > 0, together, -1)
    at = jnp.arange(length)
    distance = at[:, None] - at[None]
    mask = (distance >= 0) & ((distance < arch.window) | jnp.logical_not(near))

    def attend(q: Array, k: Array, v: Array) -> Array:
        def cut(x: Array) -> Array:
            """[B, T, heads, H] -> [B * U, W, heads, H]."""
            flat = _moved(x.reshape(*x.shape[:2], -1), apart, together)
            return flat.reshape(-1, length, *x.shape[2:])

        k, v = (cut(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (k, v))
        y = functional.attend(arch, cut(q), k, v, mask[None], precisions.passes(operands))
        y = _moved(y.reshape(len(q), most * length, -1), together, apart)
        return y.reshape(q.shape)

    return attend


# The transpose of a gather would add up the gradients one by one, since XLA does not know that no
# two tokens go to one place. Moving them back is as fast as moving them.
@jax.custom_vjp
def _moved(
    x: Float[Array, "B S D"], sources: Int[Array, "B T"], targets: Int[Array, "B S"]
) -> Float[Array, "B T D"]:
    """The entries of x that stand at `sources`, zeros for -1; `targets` is where they come to."""
    found = jnp.take_along_axis(x, jnp.maximum(sources, 0)[..., None], axis=1)
    return jnp.where((sources >= 0)[..., None], found, 0)


def _moved_forward(x: Array, sources: Array, targets: Array) -> tuple[Array, tuple[Array, Array]]:
    return _moved(x, sources, targets), (sources, targets)


def _moved_backward(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, None, None]:
    sources, targets = kept
    return _moved(cotangent, targets, sources), None, None


_moved.defvjp(_moved_forward, _moved_backward)


def splash(
    arch: Architecture,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    *,
    local: bool = False,
    segments: Int[Array, "B T"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Causal attention of whole rows, as `functional.attend` computes it with a causal mask.

    Rows are split over the mesh in context as activations are, heads over `tensor` if it divides
    the kv heads; otherwise every device of that axis computes all heads.

    Args:
      arch: window, cap and scale.
      q: queries, rotated.
      k: keys, rotated.
      v: values.
      local: whether a position sees only `arch.window` positions.
      segments: a position sees only its own segment (packed rows); None: one segment.
      interpret: run the kernel's own operations one by one, on any device: for tests.
    """
    length = q.shape[1]
    attend = functools.partial(_attend, arch, local and arch.window < length, interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if segments is None:
        segments = jnp.zeros((len(q), length), jnp.int32)
    if mesh.empty or mesh.size == 1:
        return attend(q, k, v, segments)
    rows = ("data", "fsdp") if len(q) % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    heads = "tensor" if arch.num_kv_heads % mesh.shape["tensor"] == 0 else None
    keys = P(rows, heads, None, None)
    split = jax.shard_map(
        attend,
        in_specs=(P(rows, None, heads, None), keys, keys, P(rows, None)),
        out_specs=P(rows, None, heads, None),
        check_vma=False,
    )
    return split(q, k, v, segments)


def _attend(
    arch: Architecture, near: bool, interpret: bool, q: Array, k: Array, v: Array, segments: Array
) -> Array:
    length, num_heads = q.shape[1:3]
    kernel = _kernel(arch, near, interpret, length, num_heads)
    scale = 1 / math.sqrt(arch.query_scale or arch.head_dim)
    narrow = jnp.float32 if interpret else jnp.bfloat16
    heads = (scale * q.astype(jnp.float32)).astype(narrow).swapaxes(1, 2)

    def row(q: Array, k: Array, v: Array, segments: Array) -> Array:
        return kernel(q, k, v, splash_attention.SegmentIds(segments, segments))

    y = jax.vmap(row)(heads, k.astype(narrow), v.astype(narrow), segments)
    return y.swapaxes(1, 2).astype(q.dtype)


def _kernel(
    arch: Architecture, near: bool, interpret: bool, length: int, num_heads: int
) -> Callable[..., Array]:
    block = next(size for size in _BLOCKS if length % size == 0)
    mask = (
        splash_attention.LocalMask((length, length), (arch.window - 1, 0), 0)
        if near
        else splash_attention.CausalMask((length, length))
    )
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * num_heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            use_fused_bwd_kernel=True,
        ),
        attn_logits_soft_cap=arch.attention_softcap or None,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
