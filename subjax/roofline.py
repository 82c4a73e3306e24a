"""How fast a program could be at best: chip figures, FLOPs from shapes, and the bound they give.

FLOPs are never taken from the compiler, whose cost analysis counts the body of a scan once.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval
from jax.sharding import Mesh

from subjax import hlo
from subjax.architecture import Architecture
from subjax.hlo import Collective, Traffic

FORMULA = (
    "MFU bound = model FLOPs / (chips x peak x max(compute, HBM, interconnect)), in which "
    "compute = FLOPs of all products, recomputed ones too, / (chips x peak), where a product in "
    "float32 counts as the six in bfloat16 that it is made of; "
    "HBM = bytes that one chip reads and writes, by the compiled HLO, / its bandwidth; "
    "interconnect = sum over collectives of bytes that one chip sends / (links used x bandwidth "
    "of a link). Padding counts as tokens; latencies do not count, nor does what chips in between "
    "pass on of an exchange."
)


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a chip.

    Attributes:
      name: as in the name of a topology.
      kinds: what jax calls such a device.
      peak: FLOP/s of bfloat16 products.
      hbm_bytes_per_s: bandwidth of its memory.
      hbm_bytes: size of its memory.
      link_bytes_per_s: bandwidth of one link to a neighbour, one way.
      wraps_from: a slice's axis closes to a ring when it has a multiple of this many chips.
      wraps_whole: whether that holds for all axes of a slice or for none.
    """

    name: str
    kinds: tuple[str, ...]
    peak: float
    hbm_bytes_per_s: float
    hbm_bytes: float
    link_bytes_per_s: float
    wraps_from: int
    wraps_whole: bool = False


# docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}. Links: 400, 1200 and 800 GB/s a chip, both ways over
# 4, 6 and 4 ports, make 50, 100 and 100 GB/s a link one way; jax-ml.github.io/scaling-book counts
# with 45, 90 and 90, as here. Rings: v5e and v6e have them along sides of 16, v5p in slices made of
# whole cubes of 4x4x4. What the compiler allows itself of HBM is what it says itself.
CHIPS = {
    "v5e": Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 819e9, 15.75 * 2**30, 45e9, 16),
    "v5p": Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 2765e9, 95.74 * 2**30, 90e9, 4, True),
    "v6e": Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 1640e9, 31.25 * 2**30, 90e9, 16),
}

# Dense bfloat16 FLOP/s by how the names of devices begin; nvidia.com/data-center/{a100,h100,h200}.
_GPU_PEAKS = {"NVIDIA A100": 312e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}


def chip_of(kind: str) -> Chip | None:
    """The figures of a device by what jax calls it; None where they are not known."""
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)


def peak_of(kind: str) -> float | None:
    """FLOP/s of dense bfloat16 products, whatever the precision of a run; None: not known."""
    if chip := chip_of(kind):
        return chip.peak
    return next((peak for name, peak in _GPU_PEAKS.items() if kind.startswith(name)), None)


@dataclasses.dataclass(frozen=True)
class Bound:
    """Least seconds that one call of a program takes, by what limits it.

    Attributes:
      compute: products, recomputed ones too.
      hbm: memory of a chip.
      interconnect: links between chips.
      mfu: largest model FLOPs utilisation.
    """

    compute: float
    hbm: float
    interconnect: float
    mfu: float

    @property
    def seconds(self) -> float:
        """Of one call, at the least."""
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def limit(self) -> str:
        """What takes longest."""
        times = {"compute": self.compute, "HBM": self.hbm, "interconnect": self.interconnect}
        return max(times, key=lambda name: times[name])


def bound(model: float, executed: float, moved: Traffic, chip: Chip, mesh: Mesh) -> Bound:
    """The roofline of one call, by `FORMULA`.

    Args:
      model: FLOPs of the model, `training_flops` or `forward_flops`.
      executed: FLOPs of all products of the program, over all chips.
      moved: by each chip.
      chip: what it runs on.
      mesh: of such chips.
    """
    whole = mesh.devices.size * chip.peak
    compute, hbm = executed / whole, moved.hbm_bytes / chip.hbm_bytes_per_s
    links = sum(seconds(collective, chip, mesh) for collective in moved.collectives)
    return Bound(compute, hbm, links, model / (whole * max(compute, hbm, links)))


def of_compiled(
    model: float,
    traced: jax.stages.Traced,
    compiled: jax.stages.Compiled,
    arch: Architecture,
    chip: Chip,
    mesh: Mesh,
    **loops: float,
) -> tuple[Traffic | None, Bound | None]:
    """What a program moves, and its bound; None where the compiler's text cannot be read.

    Args:
      model: FLOPs of the model in one call.
      traced: the program.
      compiled: the same.
      arch: of the model.
      chip: what it runs on.
      mesh: of such chips.
      **loops: `steps` and `taken`, as `executed_flops` has them.
    """
    executed = executed_flops(traced.jaxpr, arch, **loops)
    # jaxlib 0.10.2 cannot read some of what libtpu writes for v6e; memory it says all the same.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        moved = hlo.traffic(compiled.as_text() or "", mesh, **loops)
        return moved, bound(model, executed, moved, chip, mesh)
    return None, None


def seconds(collective: Collective, chip: Chip, mesh: Mesh) -> float:
    """Least time of a collective on the links that its group has."""
    return collective.sent / (num_links(collective, chip, mesh) * chip.link_bytes_per_s)


def num_links(collective: Collective, chip: Chip, mesh: Mesh) -> int:
    """Links out of a chip that a group can use at once."""
    places = np.array([device.coords for device in mesh.devices.flat])
    along = [name in collective.axes for name in mesh.axis_names]
    places = places.reshape(*mesh.devices.shape, -1)
    return links(places, along, chip.wraps_from, wraps_whole=chip.wraps_whole)


def links(
    places: np.ndarray, along: Sequence[bool], wraps_from: int, *, wraps_whole: bool = False
) -> int:
    """Links of a group of chips: two for each side of the slice that it fills and that is a ring.

    Args:
      places: coordinates of the chips, [sizes of the mesh, sides of the slice].
      along: for each axis of the mesh, whether the group lies along it.
      wraps_from: as in `Chip`; other sides are lines, of which one link is as good as two.
      wraps_whole: as in `Chip`.
    """
    sides = places.shape[-1]
    group = places[tuple(slice(None) if on else 0 for on in along)].reshape(-1, sides)
    every = places.reshape(-1, sides)
    whole = [len(set(every[:, side])) for side in range(sides)]
    rings = [size % wraps_from == 0 for size in whole]
    if wraps_whole:
        rings = [all(rings)] * sides
    total = 0
    for side in range(sides):
        size = len(set(group[:, side]))
        ring = rings[side] and size == whole[side]
        total += 0 if size == 1 else 2 if ring else 1
    return max(total, 1)


def training_flops(
    arch: Architecture,
    *,
    rows: int,
    num_tokens: int,
    num_targets: int,
    lora_params: int = 0,
    distils: bool = False,
) -> float:
    """FLOPs that one update needs: 6 a matmul parameter and token, and causal attention.

    Recomputation is not counted, nor what padding to the mesh adds. With an adapter the weights
    beneath it need no gradient: 4 a parameter and token, and 6 a parameter of the adapter.

    Args:
      arch: the model.
      rows: of the batch, over all lanes.
      num_tokens: of a row, T.
      num_targets: of a row, C; only these are scored over the vocabulary.
      lora_params: of the adapter; 0 when all weights are trained.
      distils: whether a teacher of the same shape reads the rows too.
    """
    matmul = _matmul_flops(arch, rows, num_tokens, num_targets)
    read = _attention_flops(arch, rows, num_tokens)
    taught = matmul + read if distils else 0.0
    if lora_params:
        return 2 * matmul + 6 * lora_params * rows * num_tokens + 3 * read + taught
    return 3 * (matmul + read) + taught


def forward_flops(arch: Architecture, *, rows: int, num_tokens: int, num_targets: int) -> float:
    """FLOPs that reading rows needs, with scores over the vocabulary at the targets."""
    matmul = _matmul_flops(arch, rows, num_tokens, num_targets)
    return matmul + _attention_flops(arch, rows, num_tokens)


def decode_flops(arch: Architecture, *, rows: int, prompt_tokens: int, new_tokens: int) -> float:
    """FLOPs that writing needs after prompts have been read."""
    attention = _attention_flops(arch, rows, prompt_tokens + new_tokens, read=prompt_tokens)
    return _matmul_flops(arch, rows, new_tokens, new_tokens) + attention


def layer_params(arch: Architecture) -> int:
    """Parameters of all layers' matrices."""
    kernels = (*arch.attention_kernels.values(), *arch.mlp_kernels.values())
    return arch.num_layers * sum(num_in * num_out for num_in, num_out in kernels)


def _matmul_flops(arch: Architecture, rows: int, num_tokens: int, num_targets: int) -> float:
    head = arch.vocab_size * arch.width
    return 2.0 * rows * (layer_params(arch) * num_tokens + head * num_targets)


def _attention_flops(arch: Architecture, rows: int, num_tokens: int, read: int = 0) -> float:
    """Scores and their sums, over the keys that positions from `read` on may see."""

    def pairs(window: int, length: int) -> int:
        near = min(window, length)
        return near * (near + 1) // 2 + (length - near) * near

    def seen(window: int) -> int:
        return pairs(window, num_tokens) - pairs(window, read)

    local = sum(arch.local)
    every = local * seen(arch.window) + (arch.num_layers - local) * seen(num_tokens)
    return 4.0 * rows * arch.num_queries * every


def executed_flops(jaxpr: Any, arch: Architecture, *, steps: float = 1, taken: float = 1) -> float:
    """FLOPs of the products that a traced program needs, over all devices, at the peak's precision.

    A product in float32 counts as the six in bfloat16 that a TPU makes it of (`Precision.HIGHEST`;
    openxla.org/xla, bf16_6x). Loops count as often as they run. The attention kernel multiplies the
    blocks that its mask keeps, whole.

    Args:
      jaxpr: of `Traced.jaxpr`.
      arch: whose layers are local, and how far those see.
      steps: how often a `while_loop` runs.
      taken: share of runs in which the longest branch of a conditional is taken.
    """
    local = sum(arch.local) / arch.num_layers
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    # Gradients of frozen weights are traced where a product has its own rule; compilers drop them.
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    counting = _Counting(arch.window, local, steps, taken)
    # Where all layers are of one kind, no conditional chooses it.
    return counting.flops(jaxpr, arch.window if local == 1 else 0)


def kept_blocks(num_blocks: int, block: int, window: int = 0) -> int:
    """Blocks of the scores of a row with a pair that a causal mask keeps.

    Args:
      num_blocks: on each side.
      block: positions of a side of a block.
      window: positions that a position sees, its own included; 0: all before it.
    """
    # Blocks d apart: the nearest two of their positions are a window of (d - 1) * block + 2.
    apart = range(1, num_blocks)
    return num_blocks + sum(
        num_blocks - d for d in apart if not window or (d - 1) * block + 2 <= window
    )


@dataclasses.dataclass(frozen=True)
class _Counting:
    """How often the parts of a program run, as `executed_flops` has it."""

    window: int
    local: float  # share of layers
    steps: float
    taken: float

    def flops(self, jaxpr: Any, window: int) -> float:
        """Of a jaxpr, whose attention kernels have a window or (0) none."""
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


def _num_blocks(grid_mapping: Any, window: int) -> int:
    """Blocks that a call of the attention kernel multiplies, over all rows and heads."""
    queries = grid_mapping.block_mappings[0]  # forward and backward
    *many, length, _ = queries.array_aval.shape
    block = queries.block_shape[-2].block_size
    return math.prod(many) * kept_blocks(length // block, block, window)


def _jaxprs(equation: Any) -> list[Any]:
    """All jaxprs among the parameters of an equation."""
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
