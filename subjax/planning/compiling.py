"""Compiles a config's programs without TPUs: memory, traffic, largest batch.

This is the TPU's own compiler, so its memory and collectives are the same as in a run.
"""

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from subjax.planning import aot, program_flops, programs, roofline, traffic
from subjax.planning.programs import Planned
from subjax.planning.roofline import Bound, Chip
from subjax.runtime import processes
from subjax.runtime.artifacts import Unit


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program compiled for one topology; bytes are per chip.

    Attributes:
      seconds: CPU time of compiling, including lowering.
      arguments: bytes of weights, optimizer state and batch.
      temporaries: bytes that the program needs while it runs.
      peak: largest number of bytes at once, with other arrays of a run.
      fits: whether the peak fits in the chip's memory.
      moved: HBM and collectives; None if the compiler refused.
      bound: the roofline; None if the compiler refused.
    """

    seconds: float
    arguments: float
    temporaries: float
    peak: float
    fits: bool
    moved: traffic.Traffic | None = None
    bound: Bound | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A program, the units that call it, and the result of compiling it."""

    planned: Planned
    members: tuple[Unit, ...]
    compiled: Compiled
    largest: int  # batch that fits; 0 if not searched, or if none fits


def compile_program(planned: Planned, batch_size: int, mesh: Mesh, chip: Chip) -> Compiled:
    """Compiles a program for a batch size, and reads its memory and traffic."""
    spread = mesh.shape["fsdp"] * mesh.shape["tensor"]
    beside = planned.beside / spread
    start = time.process_time()
    traced = planned.trace(batch_size)
    try:
        compiled, text = aot.compiled(traced)
    except jax.errors.JaxRuntimeError as error:
        if not processes.out_of_memory(error) or "memory space vmem" in str(error):
            raise
        size = _needed(str(error))
        # More than the chip has, even if the message has no number.
        peak = max(size, chip.hbm_bytes + 1) + beside
        return Compiled(time.process_time() - start, 0.0, size, peak, fits=False)
    seconds = time.process_time() - start
    memory = compiled.memory_analysis()
    assert memory is not None  # only other backends return None
    executed = program_flops.executed_flops(traced.jaxpr, planned.arch, **planned.counts)
    peak = memory.peak_memory_in_bytes + beside
    where = planned.mesh or mesh
    moved = traffic.of(text, where, **planned.counts)
    return Compiled(
        seconds,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        peak,
        fits=peak <= chip.hbm_bytes,
        moved=moved,
        bound=roofline.bound(planned.flops(batch_size), executed, moved, chip, where),
    )


def _needed(refusal: str) -> float:
    """Bytes that a program needs, from the compiler's message; 0 if it has none."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of \S+ hbm", refusal) or re.search(
        r"\(([\d.]+)([KMGT])\) exceeds", refusal
    )
    return float(found[1]) * 2.0 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]] if found else 0.0


def largest_batch(planned: Planned, first: Compiled, mesh: Mesh, chip: Chip) -> int:
    """About the largest batch that fits, found with at most five compilations; 0: none fits."""
    step = mesh.shape["data"] * mesh.shape["fsdp"]
    size = planned.batch_size
    tried = {size: first}
    guess = size * 2 if first.fits else size // 2 // step * step
    for _ in range(5):
        if guess <= 0 or guess in tried:
            break
        tried[guess] = found = compile_program(planned, guess, mesh, chip)
        if found.fits and found.peak > 0.9 * chip.hbm_bytes:
            break
        guess = _next_batch({n: c.peak for n, c in tried.items()}, chip.hbm_bytes) // step * step
    return max((n for n, c in tried.items() if c.fits), default=0)


def _next_batch(peaks: dict[int, float], limit: float) -> int:
    """A batch size near the limit, by linear interpolation between the nearest sizes.

    For small batches the peak hardly grows, as the state needs more memory than the batch.
    """
    below = sorted(n for n, peak in peaks.items() if peak <= limit)
    above = sorted(n for n, peak in peaks.items() if peak > limit)
    low, high = (below[-1], above[0]) if below and above else (below[-2:] or above[:2])
    slope = (peaks[high] - peaks[low]) / (high - low)
    if slope <= 0:
        return 2 * high if below else low // 2
    guess = int(low + 0.97 * (limit - peaks[low]) / slope)
    return min(guess, int(0.9 * high)) if above else guess


def entries(
    config: ConfigDict, todo: Sequence[Unit], mesh: Mesh, chip: Chip, *, search: bool
) -> Iterator[Entry]:
    """Compiles each distinct program of some units once."""
    groups: dict[tuple[Any, ...], tuple[Planned, list[Unit]]] = {}
    for unit in todo:
        for planned in programs.of_unit(config, unit, mesh):
            sizes = (planned.batch_size, planned.num_rows, planned.calls)
            key = (unit.stage, planned.name, planned.key, *sizes)
            groups.setdefault(key, (planned, []))[1].append(unit)
    for planned, members in groups.values():
        compiled = compile_program(planned, planned.batch_size, mesh, chip)
        largest = largest_batch(planned, compiled, mesh, chip) if search and planned.searched else 0
        yield Entry(planned, tuple(members), compiled, largest)
