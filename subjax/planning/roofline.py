"""The roofline of a program: its least time, from its FLOPs, its traffic and a chip's figures."""

import contextlib
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from subjax.nn.architecture import Architecture
from subjax.planning import program_flops, traffic
from subjax.planning.traffic import Collective, Traffic
from subjax.runtime.chips import Chip

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
class Bound:
    """Least seconds of one call of a program, for each limit.

    Attributes:
      compute: products, including recomputation.
      hbm: traffic of a chip's memory.
      interconnect: traffic of links between chips.
      mfu: largest model FLOPs utilisation.
    """

    compute: float
    hbm: float
    interconnect: float
    mfu: float

    @property
    def seconds(self) -> float:
        """Least seconds of one call."""
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def limit(self) -> str:
        """The name of the tightest limit."""
        times = {"compute": self.compute, "HBM": self.hbm, "interconnect": self.interconnect}
        return max(times, key=lambda name: times[name])


def bound(model: float, executed: float, moved: Traffic, chip: Chip, mesh: Mesh) -> Bound:
    """The roofline of one call, by `FORMULA`.

    Args:
      model: FLOPs of the model, as `model_flops` counts them.
      executed: FLOPs of all products of the program, over all chips.
      moved: traffic of each chip.
      chip: the kind of chip.
      mesh: mesh of such chips.
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
    """The traffic of a program, and its bound; None if the compiler's text cannot be read.

    Args:
      model: FLOPs of the model in one call.
      traced: the program.
      compiled: the compiled program.
      arch: shape of the model.
      chip: the kind of chip.
      mesh: mesh of such chips.
      **loops: `steps` and `taken` of `executed_flops`.
    """
    executed = program_flops.executed_flops(traced.jaxpr, arch, **loops)
    # jaxlib 0.10.2 cannot read some of libtpu's programs for v6e; their memory is known anyway.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        moved = traffic.of(compiled.as_text() or "", mesh, **loops)
        return moved, bound(model, executed, moved, chip, mesh)
    return None, None


def seconds(collective: Collective, chip: Chip, mesh: Mesh) -> float:
    """Least time of a collective on the links of its group."""
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
    """Links of a group of chips: two for each side of the slice that it fills, if that is a ring.

    Args:
      places: coordinates of the chips, [sizes of the mesh, sides of the slice].
      along: for each axis of the mesh, whether the group extends along it.
      wraps_from: as in `Chip`; other sides are lines, which count as one link.
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
