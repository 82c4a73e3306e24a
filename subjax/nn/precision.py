"""Number formats of activations and of the operands of matrix products.

    float32     both float32
    mixed       products of bfloat16, summed in float32; activations float32: fastest on CPUs that
                multiply bfloat16 (`fastest`), about as fast as bfloat16 on accelerators
    bfloat16    activations bfloat16 too, which halves their memory: for accelerators
    float64     everything, if enabled in jax: for the theorem; not selectable in a config

Parameters, norms, softmax and losses are float32 in the first three.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int

from subjax import check_sums


class Precision(NamedTuple):
    """Names of two dtypes.

    Attributes:
      activations: dtype of the residual stream and of activations between products.
      operands: dtype of both sides of a product with a kernel.
    """

    activations: str
    operands: str


PRECISIONS = {
    "float32": Precision("float32", "float32"),
    "mixed": Precision("float32", "bfloat16"),
    "bfloat16": Precision("bfloat16", "bfloat16"),
    "float64": Precision("float64", "float64"),
}


# What Linux calls instructions that multiply bfloat16.
_NARROW_PRODUCTS = {"amx_bf16", "avx512_bf16"}


def fastest(platform: str, cpu_info: Path = Path("/proc/cpuinfo")) -> str:
    """The precision in which models train and sample fastest: one of `PRECISIONS`.

    A CPU without instructions that multiply bfloat16 gains nothing from it.

    Args:
      platform: of the devices, as jax names it.
      cpu_info: what Linux says about the CPU; elsewhere there is no such file.
    """
    if platform != "cpu":
        return "bfloat16"
    said = cpu_info.read_text() if cpu_info.exists() else ""
    return "mixed" if _NARROW_PRODUCTS & set(said.split()) else "float32"


class Head(NamedTuple):
    """The output matrix, and how scores over the vocabulary are made with it.

    Attributes:
      kernel: [V, D], or some of its rows.
      operands: as in `Precision`.
      softcap: scores are softcap * tanh(score / softcap); 0: no cap.
    """

    kernel: Array
    operands: str = "float32"
    softcap: float = 0.0

    def scores(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of every row of the kernel, float32 or wider."""
        return self.capped(project(hidden, self.kernel, self.operands))

    def chosen(self, hidden: Float[Array, "*B D"], ids: Int[Array, "..."]) -> Float[Array, "..."]:
        """Scores of some rows at each position, rounded as `scores` are."""
        spec = "...d,...kd->...k" if ids.ndim == hidden.ndim else "...d,...d->..."
        return self.capped(_dot(spec, hidden, self.kernel[ids], self.operands))

    def capped(self, scores: Array) -> Array:
        """Scores with `softcap` applied."""
        return self.softcap * jnp.tanh(scores / self.softcap) if self.softcap else scores


def wide(dtype: Any) -> Any:
    """The dtype in which norms, rotations and sums are computed: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def passes(operands: str) -> jax.lax.Precision:
    """The precision for accelerators, which by default round float32 to bfloat16 or TF32."""
    narrow = operands == "bfloat16"
    return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST


def project(
    x: Float[Array, "*B in"],
    kernel: Float[Array, "out in"],
    operands: str,
    *,
    result: Any = None,
) -> Float[Array, "*B out"]:
    """Product x @ kernel.T, both sides rounded to `operands`, summed wide.

    Only in float64 it can be differentiated forward (`jax.jvp`).

    Args:
      x: its dtype is also that of its gradient.
      kernel: its dtype is also that of its gradient.
      operands: as in `Precision`.
      result: dtype of the result; None: wide. Where devices share the sum, what they exchange has
        this dtype.

    Raises:
      ValueError: sums on this CPU would be wrong (`subjax.check_sums`); every model calls this.
    """
    check_sums()
    result = jnp.dtype(result or wide(operands))
    if operands == "float64":
        return _dot("...i,oi->...o", x, kernel, operands).astype(result)
    return _project(x, kernel, operands, result.name)


def project_all(
    x: Float[Array, "*B in"], kernels: Sequence[Float[Array, "_ in"]], operands: str, *, parts: int
) -> list[Float[Array, "*B _"]]:
    """`project` by several kernels, whose gradients of x are added before devices exchange them.

    Args:
      x: as in `project`.
      kernels: with an output size that `parts` divides.
      operands: as in `project`.
      parts: devices that share each kernel's outputs.
    """
    if parts == 1:
        return [project(x, kernel, operands) for kernel in kernels]
    check_sums()
    return _together(x, list(kernels), operands, parts)


def _dot(spec: str, x: Array, y: Array, operands: str, result: Any = None) -> Array:
    sides = (x.astype(operands), y.astype(operands))

    def product(x: Array, y: Array, dtype: Any) -> Array:
        how = passes(operands)
        return jnp.einsum(spec, x, y, precision=how, preferred_element_type=dtype)

    if result in (None, wide(operands)):
        return product(*sides, wide(operands))
    # XLA's CPU backend uses matrix units only for products with a float32 result. Elsewhere a sum
    # that devices share would be exchanged in float32, twice the bytes, and then be rounded.
    return jax.lax.platform_dependent(
        *sides,
        cpu=lambda x, y: product(x, y, wide(operands)).astype(result),
        default=functools.partial(product, dtype=result),
    )


# Default differentiation would multiply with a float32 cotangent, and in a scan would store the
# rounded activations, for which that backend rewrites a whole stack at every layer. See also
# `_turned_on_cpu`.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _project(x: Array, kernel: Array, operands: str, result: str) -> Array:
    return _dot("...i,oi->...o", x, kernel, operands, jnp.dtype(result))


def _forward(
    x: Array, kernel: Array, operands: str, result: str
) -> tuple[Array, tuple[Array, Array]]:
    return _project(x, kernel, operands, result), (x, kernel)


def _backward(
    operands: str, _: str, kept: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    to_x = _dot("...o,oi->...i", cotangent, kernel, operands, x.dtype)
    return to_x, _to_kernel(cotangent, x, operands).astype(kernel.dtype)


def _to_kernel(cotangent: Array, x: Array, operands: str) -> Array:
    """Sum over all positions of cotangent times x, [out, in]."""
    sides = (cotangent.astype(operands), x.astype(operands))
    product = functools.partial(_dot, "...o,...i->oi", operands=operands)
    on_cpu = functools.partial(_turned_on_cpu, operands=operands)
    return jax.lax.platform_dependent(*sides, cpu=on_cpu, default=product)


def _turned_on_cpu(cotangent: Array, x: Array, operands: str) -> Array:
    """`_to_kernel` as XLA's CPU backend computes it fast.

    It multiplies two arrays by its fast routines only if the last axis of the first is contracted
    with an earlier axis of the second, both in row-major order. Else it widens narrow ones, and
    writes a wide first one in column-major order, which slows every reader of it down. So the
    narrower one is transposed and comes first; barriers stop XLA from undoing that.
    """
    swapped = cotangent.shape[-1] > x.shape[-1]
    first, second = (x, cotangent) if swapped else (cotangent, x)
    turned = jnp.moveaxis(first, -1, 0)
    turned = with_layout_constraint(turned, Layout(tuple(range(turned.ndim))))
    barred = jax.lax.optimization_barrier(turned)
    product = _dot("n...,...w->nw", barred, second, operands)
    return jax.lax.optimization_barrier(product).T if swapped else product


_project.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _together(x: Array, kernels: list[Array], operands: str, parts: int) -> list[Array]:
    return [_dot("...i,oi->...o", x, kernel, operands) for kernel in kernels]


def _together_forward(
    x: Array, kernels: list[Array], operands: str, parts: int
) -> tuple[list[Array], tuple[Array, list[Array]]]:
    return _together(x, kernels, operands, parts), (x, kernels)


def _together_backward(
    operands: str, parts: int, kept: tuple[Array, list[Array]], cotangents: list[Array]
) -> tuple[Array, list[Array]]:
    x, kernels = kept
    pairs = list(zip(cotangents, kernels, strict=True))

    def share(cotangent: Array, kernel: Array) -> Array:
        cut = cotangent.reshape(*cotangent.shape[:-1], parts, -1)
        kernel = kernel.reshape(parts, -1, kernel.shape[-1])
        return _dot("...po,poi->p...i", cut, kernel, operands)

    # Each device has its own share, up to this sum. `jnp.sum` would widen it.
    shares = functools.reduce(jnp.add, (share(*pair) for pair in pairs)).astype(x.dtype)
    to_x = jax.lax.reduce(shares, jnp.zeros((), x.dtype), jax.lax.add, (0,))
    return to_x, [_to_kernel(c, x, operands).astype(kernel.dtype) for c, kernel in pairs]


_together.defvjp(_together_forward, _together_backward)
