"""Reads the text of compiled HLO for its traffic: bytes of HBM and of each collective.

A scan over layers is one `while` loop, and the compiler's own cost analysis counts its body once;
here it counts as often as it runs. Only instructions of TPU programs are supported.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from subjax.planning import hlo
from subjax.planning.hlo import Computation, Instruction

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# No reads or writes of their own; the bodies of loops and calls are counted separately.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "optimization-barrier", "domain"),
    *("add-dependency", "copy-done", "async-done", "async-update", "async-start"),
}
_SLICES = ("dynamic-slice", "gather", "slice")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The traffic of all runs of one collective.

    Attributes:
      kind: one of all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute.
      axes: the mesh axes of its groups.
      group_size: devices per group.
      num_bytes: bytes of the whole array on each device (an all-gather's result, else the
        operand), times the number of runs.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    num_bytes: float

    @property
    def sent(self) -> float:
        """Bytes that each device sends if the group is a ring."""
        share = (self.group_size - 1) / self.group_size
        if self.kind == "collective-permute":
            return self.num_bytes
        return self.num_bytes * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The traffic of one call of a compiled program on each device.

    Attributes:
      hbm_bytes: bytes read and written.
      collectives: one per kind, axes and group size, with the sum of `num_bytes`.
    """

    hbm_bytes: float
    collectives: tuple[Collective, ...]


def of(text: str, mesh: Mesh, *, steps: float = 1, taken: float = 1) -> Traffic:
    """Reads the text of a compiled program.

    Args:
      text: result of `Compiled.as_text()`.
      mesh: the mesh of the program; its axes name the collectives.
      steps: runs of a loop whose condition compares with no constant (a token loop).
      taken: share of runs of a conditional's longer branch; runs of such a loop inside another.
    """
    program = _Program(text)
    hbm_bytes, found = 0.0, dict[tuple[str, tuple[str, ...], int], float]()
    for computation, times in program.runs(program.entry, 1.0, steps, taken):
        channels = set[str]()
        for instruction in computation.values():
            hbm_bytes += times * program.touched(computation, instruction)
            for collective, source, scatters in program.collectives(computation, instruction):
                # The pieces of a collective that overlaps with computation share its channel.
                channel = re.search(r"channel_id=(\d+)", collective.rest)
                if channel and channel[1] in channels:
                    continue
                channels |= {channel[1]} if channel else set()
                kind = "reduce-scatter" if scatters else collective.opcode.removesuffix("-start")
                axes, size = _along(collective, mesh)
                if instruction.opcode == "fusion":
                    hbm_bytes += times * _fused(collective, source, scatters)
                here = (kind, axes, size)
                moved = times * _whole(collective, source, kind)
                found[here] = found.get(here, 0.0) + moved
    collectives = tuple(
        Collective(kind, axes, size, total) for (kind, axes, size), total in sorted(found.items())
    )
    return Traffic(hbm_bytes, tuple(c for c in collectives if c.group_size > 1))


class _Program:
    """The computations of a program by name."""

    def __init__(self, text: str):
        self.computations, self.entry = hlo.parse(text)

    def runs(
        self, name: str, times: float, steps: float, taken: float
    ) -> Iterator[tuple[Computation, float]]:
        """Each computation that runs instruction by instruction, and its number of runs."""
        computation = self.computations[name]
        yield computation, times
        for instruction in computation.values():
            if instruction.opcode == "while":
                trips, within = self._trips(instruction), steps
                if trips is None:
                    trips, within = steps, taken
                yield from self.runs(instruction.called("body"), times * trips, within, taken)
            elif instruction.opcode == "conditional":
                for branch, share in self._branches(instruction, taken):
                    yield from self.runs(branch, times * share, steps, taken)
            elif instruction.opcode in ("call", "async-start"):
                called = instruction.called("to_apply") or instruction.called("calls")
                yield from self.runs(called, times, steps, taken)
            elif called := _offloaded(instruction):
                yield from self.runs(called, times, steps, taken)

    def _trips(self, loop: Instruction) -> float | None:
        """Runs of a loop that counts from 0 by 1, such as `lax.scan`; None for other loops."""
        known = re.search(r"known_trip_count\D+(\d+)", loop.rest)
        if known:
            return int(known[1])
        condition = loop.called("condition")
        limits = [
            int(i.rest.split(")")[0])
            for i in self.computations[condition].values()
            if i.opcode == "constant" and i.shape.startswith(("s32[]", "u32[]", "s64[]"))
        ]
        compared = any("direction=LT" in i.rest for i in self.computations[condition].values())
        return max(limits) if limits and compared else None

    def _branches(self, instruction: Instruction, taken: float) -> list[tuple[str, float]]:
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        names = (
            [name.strip().lstrip("%") for name in listed[1].split(",")]
            if listed
            else [instruction.called(f"{side}_computation") for side in ("true", "false")]
        )
        names.sort(key=lambda name: len(self.computations[name]))
        return [(names[-1], taken)] + [
            (name, (1 - taken) / (len(names) - 1)) for name in names[:-1]
        ]

    def touched(self, computation: Computation, instruction: Instruction) -> float:
        """Bytes of HBM that one instruction reads and writes."""
        opcode, result = instruction.opcode, instruction.arrays
        if opcode in _FREE or "AllocateBuffer" in instruction.rest or _offloaded(instruction):
            return 0.0
        if opcode == "copy-start":
            # Result: the copy, its source, a flag. Copy or source may be in on-chip memory.
            size = result[0][0]
            return size * (result[0][1] + result[1][1])
        sources = [computation[name].arrays for name in instruction.operands]
        inputs = [sum(size for size, far in source if far) for source in sources]
        outputs = [size if far else 0.0 for size, far in result]
        if opcode.removesuffix("-start") in _COLLECTIVES:
            return sum(inputs) + (sum(outputs) if not opcode.endswith("-start") else outputs[-1])
        if opcode.endswith("-done"):
            return 0.0
        if opcode in _SLICES:
            return sum(outputs) + (instruction.num_bytes if inputs[0] else 0.0)
        if opcode == "dynamic-update-slice":
            return inputs[1] + (sum(s for s, _ in sources[1]) if sum(outputs) else 0.0)
        if opcode == "fusion":
            called = instruction.called("calls")
            read = sum(min(n, self._reads(called, i)) for i, n in enumerate(inputs))
            written = self._writes(called)
            return read + sum(min(a, b) for a, b in zip(outputs, written, strict=False))
        return sum(inputs) + sum(outputs)

    def _reads(self, name: str, index: int) -> float:
        """Bytes of a parameter that a fusion reads."""
        computation = self.computations[name]
        for parameter in computation.values():
            if parameter.opcode == "parameter" and parameter.rest.startswith(f"{index})"):
                return self._used(computation, parameter)
        return 0.0

    def _used(self, computation: Computation, value: Instruction) -> float:
        total = 0.0
        for user in computation.values():
            if value.name not in user.operands:
                continue
            position = user.operands.index(value.name)
            if user.opcode in _SLICES and position == 0:
                total += user.num_bytes
            elif user.opcode == "bitcast":
                total += self._used(computation, user)
            elif user.opcode == "fusion":
                total += self._reads(user.called("calls"), position)
            elif user.opcode == "tuple" or _is_part(user):
                continue  # passed through; collectives are counted separately
            elif user.opcode == "dynamic-update-slice" and position == 0:
                continue  # in place
            else:
                return value.num_bytes
        return total

    def _writes(self, name: str) -> list[float]:
        """Bytes that a fusion writes to each of its results."""
        computation = self.computations[name]
        root = next(i for i in computation.values() if i.root)
        if root.opcode == "tuple":
            return [self._written(computation, computation[n]) for n in root.operands]
        if root.is_tuple:
            return [0.0 if _is_part(root) else math.inf] * len(root.arrays)
        return [self._written(computation, root)]

    def _written(self, computation: Computation, value: Instruction) -> float:
        if value.opcode == "parameter" or _is_part(value):
            return 0.0
        if value.opcode == "dynamic-update-slice":
            return computation[value.operands[1]].num_bytes
        if value.opcode == "bitcast":
            return self._written(computation, computation[value.operands[0]])
        if value.opcode == "fusion" and not value.is_tuple:
            return self._writes(value.called("calls"))[0]
        return value.num_bytes

    def collectives(
        self, computation: Computation, instruction: Instruction
    ) -> Iterator[tuple[Instruction, float, bool]]:
        """Collectives of one instruction, fused ones too: operand bytes, whether they scatter."""
        if instruction.opcode.removesuffix("-start") in _COLLECTIVES:
            sources = [computation[name].num_bytes for name in instruction.operands]
            yield instruction, sum(sources), False
        elif instruction.opcode == "fusion":
            fused = self.computations[instruction.called("calls")]
            # The TPU compiler writes a reduce-scatter as an all-reduce and a slice of its result.
            scatters = "all-reduce-scatter" in instruction.called("calls")
            for inner in fused.values():
                for found, size, inside in self.collectives(fused, inner):
                    yield found, size, scatters or inside


def _offloaded(instruction: Instruction) -> str:
    """The computation of a custom call that runs on a chip's sparse cores; "" for others."""
    found = re.search(r"called_computations=\{%?([\w.\-]+)\}", instruction.rest)
    return found[1] if found and instruction.opcode == "custom-call" else ""


def _is_part(value: Instruction) -> bool:
    return value.opcode in _COLLECTIVES or "AsyncCollective" in value.rest


def _whole(collective: Instruction, operands: float, kind: str) -> float:
    """Bytes of the whole array of a collective on one device."""
    if kind != "all-gather":
        return operands
    sizes = [size for size, _ in collective.arrays]
    # Asynchronous collectives return their operand too.
    return sum(sizes) - (operands if collective.opcode.endswith("-start") else 0.0)


def _fused(collective: Instruction, operands: float, scatters: bool) -> float:
    """HBM bytes of a collective inside a fusion, which passes its arrays through."""
    if scatters:  # writes the fusion's result
        return operands
    return operands + sum(size for size, far in collective.arrays if far)


def _along(collective: Instruction, mesh: Mesh) -> tuple[tuple[str, ...], int]:
    """The mesh axes of a collective's groups, and the group size."""
    groups = hlo.replica_groups(collective.rest, mesh.devices.size)
    shape = mesh.devices.shape
    varied = set[int]()
    for group in groups[:64]:
        places = np.stack(np.unravel_index(np.asarray(group), shape))
        varied |= {i for i, row in enumerate(places) if len(set(row)) > 1}
    return tuple(mesh.axis_names[i] for i in sorted(varied)), len(groups[0])
