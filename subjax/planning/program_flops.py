"""FLOPs of the products in a traced program, including recomputation."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from subjax.nn.architecture import Architecture


def executed_flops(jaxpr: Any, arch: Architecture, *, steps: float = 1, taken: float = 1) -> float:
    """FLOPs of the products that a traced program needs, over all devices, at the peak's precision.

    A product in float32 counts as six in bfloat16, as on a TPU (`Precision.HIGHEST`;
    openxla.org/xla, bf16_6x). Loops count as often as they run. The attention kernel computes whole
    blocks, if its mask keeps any part of them.

    Args:
      jaxpr: `Traced.jaxpr`.
      arch: gives the share of local layers and their window.
      steps: runs of a `while_loop`.
      taken: share of runs that take the longest branch of a conditional.
    """
    local = sum(arch.local) / arch.num_layers
    # Products with a custom rule trace gradients of frozen weights too; compilers remove them.
    jaxpr = _used(jaxpr)
    counting = _Counting(arch.window, local, steps, taken)
    # If all layers are of one kind, there is no conditional.
    return counting.flops(jaxpr, arch.window if local == 1 else 0)


def kept_blocks(num_blocks: int, block: int, window: int = 0) -> int:
    """Number of blocks of a row's scores in which a causal mask keeps at least one pair.

    Args:
      num_blocks: blocks per side.
      block: positions per side of a block.
      window: positions that a position sees, its own included; 0: all before it.
    """
    # The nearest positions of blocks at distance d need a window of (d - 1) * block + 2.
    apart = range(1, num_blocks)
    return num_blocks + sum(
        num_blocks - d for d in apart if not window or (d - 1) * block + 2 <= window
    )


@dataclasses.dataclass(frozen=True)
class _Counting:
    """Settings of `executed_flops`: how often the parts of a program run."""

    window: int
    local: float  # share of local layers
    steps: float
    taken: float

    def flops(self, jaxpr: Any, window: int) -> float:
        """FLOPs of a jaxpr; `window` is that of its attention kernels, 0: none."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        return sum(self._equation(equation, window) for equation in jaxpr.eqns)

    def _equation(self, equation: Any, window: int) -> float:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            return _dot_flops(equation)
        if name == "pallas_call":
            # A row of scores is skipped block by block, whatever share of turns refills rows.
            whole = dataclasses.replace(self, taken=1)
            return _num_blocks(params["grid_mapping"], window) * whole._inside(equation, window)
        if name == "cond":
            return self._conditional(params["branches"], window)
        times: float = 1
        if name == "scan":
            times = params["length"]
        elif name == "while":
            times = self.steps
            # What the loop itself leaves unused is removed only here.
            inner = [_used(inner) for inner in _jaxprs(equation)]
            return times * sum(self.flops(each, window) for each in inner)
        elif name == "shard_map":
            mesh = params["mesh"]
            times = math.prod(mesh.shape[axis] for axis in params["newly_manual_axes"])
        return times * self._inside(equation, window)

    def _inside(self, equation: Any, window: int) -> float:
        return sum(self.flops(inner, window) for inner in _jaxprs(equation))

    def _conditional(self, branches: Sequence[Any], window: int) -> float:
        if all(_has_kernel(branch) for branch in branches):
            # `attention.causal`: a layer is global (false, the first branch) or local.
            everywhere, near = branches
            return (1 - self.local) * self.flops(everywhere, 0) + self.local * self.flops(
                near, self.window
            )
        inner = [self.flops(branch, window) for branch in branches]
        return max(inner) * self.taken + min(inner) * (1 - self.taken)


def _used(jaxpr: Any) -> Any:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def _num_blocks(grid_mapping: Any, window: int) -> int:
    """Blocks that a call of the attention kernel multiplies, over all rows and heads."""
    queries = grid_mapping.block_mappings[0]  # forward and backward
    *many, length, _ = queries.array_aval.shape
    block = queries.block_shape[-2].block_size
    return math.prod(many) * kept_blocks(length // block, block, window)


def _jaxprs(equation: Any) -> list[Any]:
    """All jaxprs in the parameters of an equation."""
    return [
        value
        for parameter in equation.params.values()
        for value in (parameter if isinstance(parameter, tuple | list) else (parameter,))
        if hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
    ]


def _has_kernel(jaxpr: Any) -> bool:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        equation.primitive.name == "pallas_call" or any(map(_has_kernel, _jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def _dot_flops(equation: Any) -> float:
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    exact = equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
    passes = 6 if exact and all(side.aval.dtype == np.float32 for side in equation.invars) else 1
    return (
        passes
        * 2.0
        * math.prod(equation.outvars[0].aval.shape)
        * math.prod(left[i] for i in contracted)
    )
