"""How fast a program could be at best, by its FLOPs, what it moves, and the figures of a chip."""

import contextlib
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from subjax.engine.chips import Chip
from subjax.nn.architecture import Architecture
from subjax.planning import hlo, program_flops
from subjax.planning.hlo import Collective, Traffic

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
      model: FLOPs of the model, as `model_flops` counts them.
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
    executed = program_flops.executed_flops(traced.jaxpr, arch, **loops)
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
