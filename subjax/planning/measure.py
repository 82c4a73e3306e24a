"""Predicts the time of a run by training briefly on random rows, on the devices of this machine.

Each distinct training of a config runs about twenty updates through the loop of a run
(`train.fit`), with random weights and rows as long as the config allows; the first call, which
compiles, does not count. Nothing is loaded, so no base is needed. Sampling and evals are not
measured: their time depends on when a model ends its answers.
"""

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from subjax.engine import batching, throughput, train
from subjax.engine.train import Training
from subjax.nn import lora, sharding, transformer
from subjax.nn.transformer import Params
from subjax.planning import programs, roofline
from subjax.planning.programs import Planned
from subjax.planning.roofline import Bound
from subjax.report import tables
from subjax.runtime import artifacts, chips, processes
from subjax.runtime.artifacts import Unit

UPDATES = 20  # number of timed updates, at least


@dataclasses.dataclass(frozen=True)
class Timed:
    """A timed training, and the units that train like it.

    Attributes:
      planned: its update.
      populations: populations of units, each trained in one run of `train.fit`.
      line: the timing, as a line of `throughput.Log`.
      bound: the roofline of one update; None if the chip's figures are not known.
    """

    planned: Planned
    populations: tuple[Sequence[Unit], ...]
    line: Mapping[str, Any]
    bound: Bound | None

    @property
    def seconds(self) -> float:
        """Seconds of one update of a population."""
        return self.line["seconds"] / self.line["updates"]

    @property
    def updates(self) -> list[tuple[Unit, float]]:
        """Each unit with its share of the updates of its population."""
        assert self.planned.training is not None
        steps = self.planned.training.program.steps
        return [(unit, steps / len(units)) for units in self.populations for unit in units]


def run(
    config: ConfigDict,
    workdir: Path,
    groups: Sequence[Sequence[Unit]],
    mesh: Mesh,
    *,
    usd_per_chip_hour: float,
) -> None:
    """Times all trainings, prints their cost and writes `artifacts.PLAN`.

    Args:
      config: the config.
      workdir: directory of the file; its entries about other units are kept.
      groups: groups of unfinished units, as in a run.
      mesh: mesh of this machine's devices.
      usd_per_chip_hour: adds a column of money; 0: none.
    """
    found = []
    for timed in entries(config, groups, mesh):
        found.append(timed)
        print(_block(timed), flush=True)
    if found:
        path = workdir / artifacts.PLAN
        before = artifacts.read_json(path) if path.exists() else {}
        artifacts.write_json(path, {**before, **predictions(found, mesh)})
    print(_costs(found, mesh, usd_per_chip_hour))
    measured = {unit.path for timed in found for unit, _ in timed.updates}
    left = [unit for group in groups for unit in group if unit.path not in measured]
    if left:
        stages = ", ".join(dict.fromkeys(unit.stage for unit in left))
        print(f"not measured: {len(left)} units of {stages}")


def entries(config: ConfigDict, groups: Iterable[Sequence[Unit]], mesh: Mesh) -> Iterator[Timed]:
    """Times each distinct training of some populations once.

    Args:
      config: the config.
      groups: groups of units, as in a run.
      mesh: mesh of this machine's devices.

    Raises:
      ValueError: a training does not fit in the devices' memory.
    """
    found: dict[Any, tuple[Planned, list[Sequence[Unit]]]] = {}
    for group in groups:
        for planned in programs.of_unit(config, group[0], mesh):
            if planned.training:
                key = (planned.training, _updates_per_call(group[0], planned.training))
                found.setdefault(key, (planned, []))[1].append(group)
    for (training, stride), (planned, populations) in found.items():
        try:
            line = time_training(training, stride, mesh)
        except jax.errors.JaxRuntimeError as error:
            if not processes.out_of_memory(error):
                raise
            raise ValueError(
                f"training {populations[0][0].path} does not fit the memory of {_devices(mesh)}: "
                "lower its sizes, or take more chips"
            ) from error
        yield Timed(planned, tuple(populations), line, bound(planned, mesh))


def predictions(timed: Iterable[Timed], mesh: Mesh) -> dict[str, dict[str, Any]]:
    """The content of `artifacts.PLAN`: path -> seconds of a unit's updates, and their source."""
    return {
        unit.path: {
            "seconds": float(f"{updates * entry.seconds:.6g}"),
            "fingerprint": unit.fingerprint,
            "devices": _devices(mesh),
        }
        for entry in timed
        for unit, updates in entry.updates
    }


def _devices(mesh: Mesh) -> str:
    return f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}"


def _block(timed: Timed) -> str:
    """The text about one training."""
    planned, line = timed.planned, timed.line
    names = [unit.path for unit, _ in timed.updates]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    text = (
        f"\n{planned.name} ({names[0]}{more}): batch {planned.batch_size}, lanes {line['lanes']}, "
        f"{planned.num_tokens} tokens a call\n"
        f"  {line['updates']} updates of {timed.seconds:.4g} s, "
        f"{line['trained_tokens_per_s']:.3g} trained tokens a second, padding {line['padding']:.1%}"
    )
    if "mfu" in line:
        text += f", MFU {line['mfu']:.1%}, without padding {line['real_mfu']:.1%}"
    if "peak_bytes" in line:
        text += f", peak {line['peak_bytes'] / 1e9:.2f} GB"
    if b := timed.bound:
        text += f"\n  at least {b.seconds:.4g} s by {b.limit}: MFU bound {b.mfu:.1%}"
    return text


def _costs(found: Sequence[Timed], mesh: Mesh, usd: float) -> str:
    """A table with the cost of every unit that trains."""
    lines, total = [], 0.0
    for timed in found:
        planned = timed.planned
        assert planned.training is not None
        for unit, updates in timed.updates:
            seconds = updates * timed.seconds
            total += seconds
            steps, bound = planned.training.program.steps, timed.bound
            own = {
                "steps": str(steps),
                "rows": str(steps * planned.training.batch_size),
                "tokens": f"{planned.calls * planned.num_tokens:.3g}",
                "bound s": f"{updates * bound.seconds:.3g}" if bound else "unknown",
                "measured s": f"{seconds:.3g}",
            }
            lines.append((unit.path, own, functools.partial(_product, seconds / 3600)))
    if not lines:
        return "nothing that is left trains"
    own = {"measured s": f"{total:.3g}"}
    lines.append(("all that trains", own, functools.partial(_product, total / 3600)))
    # Idle chips are paid for, too; a CPU has no chips.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    table = tables.cost_table(lines, mesh.size if on_cpu else jax.device_count(), usd)
    return f"\n{table}\nseconds of updates alone: loading, compiling and evals come on top"


def _product(number: float, times: float) -> str:
    return f"{number * times:.3g}"


def time_training(training: Training, stride: int, mesh: Mesh) -> dict[str, Any]:
    """Trains on made-up rows.

    Args:
      training: what to time.
      stride: updates of one call.
      mesh: where.

    Returns:
      The line of `throughput.Log` for `UPDATES` or more updates after the first call.
    """
    calls = 1 + -(-UPDATES // stride)
    _, line = time_calls(training, stride, mesh, calls=calls, every_s=math.inf)
    return line


def time_calls(
    training: Training, stride: int, mesh: Mesh, *, calls: int, every_s: float
) -> list[dict[str, Any]]:
    """Trains on made-up rows, call by call.

    Args:
      training: what to time.
      stride: updates of one call.
      mesh: where.
      calls: how many; the first one compiles.
      every_s: as in `throughput.Log`; 0: a line for every call.

    Returns:
      The lines of `throughput.Log`; the first line covers only the first call.
    """
    arch, lanes = training.program.arch, training.lanes
    keys = jax.random.split(jax.random.key(0), lanes)

    def drawn(lanes_of: Callable[[jax.Array], Params]) -> Params:
        return placed(lambda: jax.vmap(lanes_of)(keys), mesh, lanes=True)

    def base(key: jax.Array) -> Params:
        return transformer.init(arch, key)

    def frozen(key: jax.Array) -> Params:
        return transformer.held(arch, base(key), training.program.precision)

    rank, program = training.lora_rank, training.program
    with tempfile.TemporaryDirectory() as folder:
        for _ in train.fit(
            dataclasses.replace(program, steps=calls * stride),
            drawn((lambda key: lora.init(arch, key, rank=rank)) if rank else base),
            placed(lambda: frozen(keys[0]), mesh, lanes=False) if rank else {},
            [_rows(training)] * lanes,
            seeds=range(lanes),
            batch_size=training.batch_size,
            probe_steps=(),
            steps_per_call=stride,
            mesh=mesh,
            label="measuring",
            teachers=drawn(base) if program.distils else None,
            packing=training.packing,
            log=throughput.Log([Path(folder)], every_s=every_s),
        ):
            pass
        return artifacts.read_jsonl(Path(folder) / artifacts.TIMINGS)


def _updates_per_call(unit: Unit, training: Training) -> int:
    """As in a run, but limited: fewer updates per call take the same time per update."""
    stops = [*unit.fields["row"].get("probe_steps", ()), training.program.steps]
    return train.call_length(stops, min(unit.fields["steps_per_call"], UPDATES))


def placed(make: Callable[[], Params], mesh: Mesh, *, lanes: bool) -> Params:
    """Random weights drawn sharded: no device ever holds more than its shard."""
    where = sharding.params_spec(jax.eval_shape(make), mesh, lanes=lanes)
    return jax.jit(make, out_shardings=sharding.named(where, mesh))()


def _rows(training: Training) -> batching.Rows:
    """A batch of random rows of the largest length."""
    rng = np.random.default_rng(0)
    num_rows, vocab_size = training.batch_size, training.program.arch.vocab_size
    length, most_targets = training.num_tokens, training.num_targets
    if packing := training.packing:
        share = -(-num_rows // packing.num_rows)  # rows in a packed row of a single pass
        length = max(2, min(length, packing.num_tokens // share + 1))  # the last one is not read
        most_targets = max(1, min(most_targets, packing.num_targets // share))
    first = max(length - most_targets, 1)  # first target
    rows = batching.make_rows(
        [(ids, first) for ids in rng.integers(vocab_size, size=(num_rows, length)).tolist()],
        num_tokens=training.num_tokens,
        num_targets=training.num_targets,
        pad_id=0,
    )
    more: dict[str, np.ndarray] = {}
    if training.soft:
        size = (*rows.targets.shape, training.soft)
        more["soft"] = np.asarray(jax.nn.log_softmax(rng.normal(size=size).astype(np.float32)))
        if not training.program.support:
            more["soft_ids"] = rng.integers(vocab_size, size=size, dtype=np.int32)
    if training.program.distils:
        more |= {"teacher_tokens": rows.tokens, "teacher_positions": rows.positions}
    return dataclasses.replace(rows, **more)


def bound(planned: Planned, mesh: Mesh) -> Bound | None:
    """The roofline of a program on a mesh; None if the chip's figures are not known."""
    chip = chips.chip_of(mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    traced = planned.trace(planned.batch_size)
    flops = planned.flops(planned.batch_size)
    compiled = traced.lower().compile()
    return roofline.of_compiled(
        flops, traced, compiled, planned.arch, chip, mesh, **planned.counts
    )[1]
