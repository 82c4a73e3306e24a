"""Compiles a config's programs without TPUs, and predicts memory and time of its run.

    python -m subjax.plan --config=configs/large.py:qwen2_5_7b --topology=v5e:4x4,v6e:4x4
    python -m subjax.plan --config=configs/quickstart.py --measure

This uses the TPU's own compiler, so memory and collectives are the same as in a run with that
libtpu; times are bounds, by the printed formula. It needs libtpu but no TPU: see aot.py. With
`--measure`, trainings are timed on the devices of this machine instead: see measure.py.
"""

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from subjax import schema
from subjax.nn import lora, sharding, transformer
from subjax.pipeline import experiments, runner, units, validation
from subjax.planning import aot, compiling, measure, placement, programs, roofline, token_counts
from subjax.planning.compiling import Entry
from subjax.planning.programs import Planned
from subjax.planning.roofline import Bound, Chip
from subjax.recipes import tunings
from subjax.report import tables
from subjax.runtime import artifacts, command_line, errors, object_store, processes
from subjax.runtime.artifacts import Unit

# Published runs of JAX on these chips reach about 40 % of such a bound or more.
SLOWER = 2.5

_FLAGS = flags.FlagValues()
_ABOUT = command_line.ConfigFlags(
    _FLAGS, workdir="whose finished units cost nothing; default runs/<name>"
)
_TOPOLOGIES = flags.DEFINE_list(
    "topology", [], "such as v5e:16x16, v5p:4x4x4, v6e:8x8", flag_values=_FLAGS
)
_STAGES = flags.DEFINE_list("stages", [], "only these stages", flag_values=_FLAGS)
_UNITS = flags.DEFINE_list(
    "units", [], "only units whose path matches one of these globs", flag_values=_FLAGS
)
_SEARCH = flags.DEFINE_bool(
    "search", True, "look for the largest batch of each update", flag_values=_FLAGS
)
_USD = flags.DEFINE_float("usd_per_chip_hour", 0.0, "adds a column of money", flag_values=_FLAGS)
_TABLE = flags.DEFINE_bool("table", False, "print a markdown table instead", flag_values=_FLAGS)
_MEASURE = flags.DEFINE_bool(
    "measure", False, "time trainings on the devices that are here", flag_values=_FLAGS
)


def placements(config: ConfigDict, todo: Sequence[Unit], mesh: Mesh) -> list[str]:
    """How each base of these units is sharded, with the largest adapter on it.

    Raises:
      ValueError: the mesh leaves too much of a base unsharded.
    """
    bases = {unit.path: unit.row for unit in units.build(config) if unit.stage == "base"}
    ranks: dict[str, int] = {}
    for unit in todo:
        if name := bases.get(unit.inputs.get("base", unit.path)):
            rank = tunings.of_row(_tuned(config, unit)).rank
            ranks[name] = max(rank, ranks.get(name, 0))
    found = []
    for name, rank in ranks.items():
        arch = programs.architecture(name, config.bases[name])
        params = transformer.abstract_params(arch, config.compute.precision if rank else "float32")
        placement.check(f"config.bases.{name}", params, mesh, config.compute.max_unsharded)
        groups = placement.groups(params, mesh)
        if rank:
            groups += placement.groups(lora.abstract(arch, rank=rank), mesh)
        found.append(f"\nconfig.bases.{name}, one copy\n{placement.table(groups)}")
    return found


def _tuned(config: ConfigDict, unit: Unit) -> Mapping[str, Any]:
    """The row with the finetuning of a unit's model."""
    if unit.stage == "generate":
        return config.teachers[config.datasets[unit.row].teacher].to_dict()
    if unit.stage == "evaluate":
        return programs.tuned(config, unit)
    return unit.fields["row"]


def run(config: ConfigDict, workdir: Path, name: str) -> list[str]:
    """Plans a config on one topology and prints it; returns a line for each misfit."""
    chip, devices = aot.topology(name)
    if not (todo := _todo(config, workdir, devices[0].platform)):
        return []
    mesh = _mesh(config, devices)
    placed = placements(config, todo, mesh)
    if not _TABLE.value:
        title = _title(config, name, mesh, len(devices))
        print("\n".join([title, *token_counts.assumptions(config), *placed]))
    elif idle := sharding.idle(mesh, len(devices)):
        print(f"{name}: {idle}", file=sys.stderr)
    found = []
    for entry in compiling.entries(config, todo, mesh, chip, search=_SEARCH.value):
        found.append(entry)
        print(
            _row(config, name, entry, chip) if _TABLE.value else _block(entry, chip, mesh),
            flush=True,
        )
    if not _TABLE.value:
        # Idle chips of a slice are paid for, too.
        print(_costs(found, _groups(todo), len(devices), _USD.value))
        print(f"\n{roofline.FORMULA}\n")
    return [
        f"{e.planned.name} of {e.members[0].path} does not fit {name}: it needs "
        f"{e.compiled.peak / 1e9:.1f} GB a chip of {chip.hbm_bytes / 1e9:.1f}; "
        + (f"the largest {e.planned.field} is {e.largest}" if e.largest else "lower its sizes")
        + ", or take more chips"
        for e in found
        if not e.compiled.fits
    ]


def run_here(config: ConfigDict, workdir: Path) -> None:
    """Times trainings on the devices of this machine, prints them, writes `artifacts.PLAN`."""
    sharding.use_cpu_devices(config.compute.cpu_devices)
    if not (todo := _todo(config, workdir, "")):
        return
    mesh = _mesh(config, ())
    print(_title(config, mesh.devices.flat[0].device_kind, mesh, jax.device_count()))
    with artifacts.lock(workdir):
        measure.run(config, workdir, _groups(todo), mesh, usd_per_chip_hour=_USD.value)


def _todo(config: ConfigDict, workdir: Path, platform: str) -> list[Unit]:
    """Unfinished units among those that are requested; prints a line if there are none."""
    validation.settle(config, platform=platform)
    experiment = experiments.of(config)
    if not experiment.is_planned:
        raise ValueError(f"{config.name} is about {experiment.name}, which need no plan")
    planned, stages, patterns = experiment.build(config), _STAGES.value, _UNITS.value
    runner.check_selection(planned, stages, patterns)
    runner.check_stale(planned, workdir)
    todo = [
        unit
        for unit in planned
        if runner.selected(unit, stages, patterns) and not artifacts.read_manifest(workdir, unit)
    ]
    if not todo:
        asked = [*stages, *patterns]
        where = f" of {', '.join(asked)}" if asked else ""
        print(f"{config.name} has nothing left to do{where} in {artifacts.location(workdir)}")
    return todo


def _groups(todo: Sequence[Unit]) -> list[list[Unit]]:
    """Groups of units, as in a run."""
    return [
        group
        for stage in experiments.LANGUAGE_MODELS.stages
        for group in experiments.LANGUAGE_MODELS.groups(
            [unit for unit in todo if unit.stage == stage], todo
        )
    ]


def _mesh(config: ConfigDict, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of a run on these devices; empty: the devices of this machine."""
    lanes = schema.common_lanes(config)
    return sharding.make_mesh(**config.mesh.to_dict(), lanes=lanes, devices=devices)


def _title(config: ConfigDict, where: str, mesh: Mesh, num_chips: int) -> str:
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    idle = sharding.idle(mesh, num_chips)
    title = f"{config.name} on {where}: {mesh.devices.size} chips, mesh {sizes or '1'}"
    return f"{title}\n{idle}" if idle else title


def _block(entry: Entry, chip: Chip, mesh: Mesh) -> str:
    """The text about one program."""
    planned, compiled = entry.planned, entry.compiled
    mesh = planned.mesh or mesh
    where = f"{entry.members[0].path}" + (
        f" and {len(entry.members) - 1} more" if len(entry.members) > 1 else ""
    )
    lines = [
        f"\n{planned.name} ({where}): batch {planned.batch_size}, "
        f"{planned.num_tokens} tokens a call",
        f"  compiled in {compiled.seconds:.0f} s of CPU time; a chip holds "
        f"{compiled.arguments / 1e9:.2f} GB of arguments, "
        f"{compiled.temporaries / 1e9:.2f} GB of temporaries; peak "
        f"{compiled.peak / 1e9:.2f} GB, {compiled.peak / chip.hbm_bytes:.0%} of its memory"
        + ("" if compiled.fits else ": DOES NOT FIT"),
    ]
    if planned.searched and entry.largest:
        lines.append(f"  largest batch that fits: {entry.largest}")
    lines += [f"  {line}" for line in _padding(planned, compiled.bound)]
    if compiled.bound is None or compiled.moved is None:
        return "\n".join(lines)
    for c in compiled.moved.collectives:
        lines.append(
            f"  {c.kind} along {'+'.join(c.axes)} ({c.group_size} chips): "
            f"{c.num_bytes / 1e9:.3f} GB, {roofline.seconds(c, chip, mesh):.4f} s"
        )
    b = compiled.bound
    lines.append(
        f"  at least {b.seconds:.4f} s by {b.limit} (compute {b.compute:.4f}, HBM {b.hbm:.4f} for "
        f"{compiled.moved.hbm_bytes / 1e9:.2f} GB, interconnect {b.interconnect:.4f}): "
        f"MFU bound {b.mfu:.1%}"
    )
    return "\n".join(lines)


def _padding(planned: Planned, bound: Bound | None) -> list[str]:
    """The line about an update's padding; none for other programs."""
    if planned.training is None:
        return []
    if (real := planned.real) is None:
        return ["how many of the tokens are padding is not known before the rows are"]
    share = real.tokens / planned.num_tokens
    line = f"{real.tokens:.0f} of the tokens are those of rows, {1 - share:.1%} are padding"
    if bound:
        mfu = bound.mfu * real.flops / planned.flops(planned.batch_size)
        line += f"; MFU bound without padding {mfu:.1%}"
    packed = "; one pass an update is assumed" if planned.training.packing else ""
    return [f"{line} ({real.words}{packed})"]


def _costs(
    found: Sequence[Entry], groups: Sequence[Sequence[Unit]], num_chips: int, usd: float
) -> str:
    """A table with the cost of every unfinished unit, in groups as in a run."""
    lines, total, whole = [], 0.0, True
    for unit, together in ((unit, len(group)) for group in groups for unit in group):
        mine = [e for e in found if unit in e.members]
        if not mine:
            continue
        # Spare lanes of a population cost the same.
        calls = [
            e.planned.calls * (t.lanes / together if (t := e.planned.training) else 1) for e in mine
        ]
        bounds = [(n, e.compiled.bound) for n, e in zip(calls, mine, strict=True)]
        hours = sum(n * bound.seconds for n, bound in bounds if bound) / 3600
        steps = sum(e.planned.training.program.steps for e in mine if e.planned.training)
        own = {
            "steps": f"{steps or ''}",
            "rows": f"{max(e.planned.num_rows for e in mine):.0f}",
            "tokens": f"{sum(e.planned.calls * e.planned.num_tokens for e in mine):.3g}",
        }
        known = all(bound for _, bound in bounds)
        total, whole = total + hours, whole and known
        lines.append((unit.path, own, functools.partial(_between, hours, known)))
    lines.append(("all", {}, functools.partial(_between, total, whole)))
    text = "\n" + tables.cost_table(lines, num_chips, usd)
    text += (
        f"\nhours: at the bound, and {SLOWER} times that; on top come loading, compiling, and what "
        "is not counted: soft targets, evals of data sets, neutral texts"
    )
    return text + ("" if whole else "\nat least: what does not fit counts as 0")


def _between(least: float, known: bool, times: float) -> str:
    least *= times
    if known:
        return f"{least:.3g} - {least * SLOWER:.3g}"
    return f"at least {least:.3g}" if least else "unknown"


def _header() -> str:
    names = (
        *("config", "topology", "program", "batch", "GB a chip", "fits"),
        *("MFU bound", "limit", *(("largest batch",) if _SEARCH.value else ()), "CPU s"),
    )
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def _row(config: ConfigDict, name: str, entry: Entry, chip: Chip) -> str:
    compiled, bound = entry.compiled, entry.compiled.bound
    cells = (
        config.name,
        name,
        f"{entry.members[0].stage} {entry.planned.name}",
        str(entry.planned.batch_size),
        f"{compiled.peak / 1e9:.2f} of {chip.hbm_bytes / 1e9:.2f}",
        "yes" if compiled.fits else "no",
        f"{bound.mfu:.0%}" if bound else "unknown",
        bound.limit if bound else "unknown",
        *((str(entry.largest or ""),) if _SEARCH.value else ()),
        f"{compiled.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main(argv: list[str]) -> None:
    """Plans the config on each topology; errors and misfits are one line each."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}: flags start with --")
        _check_flags()
        config = _ABOUT.config
        with object_store.opened(_ABOUT.workdir) as workdir:
            for name in _TOPOLOGIES.value:
                aot.topology(name)  # check all names before compiling
            if _MEASURE.value:
                run_here(config, workdir)
            if _TABLE.value:
                print(_header())
            failures = [line for name in _TOPOLOGIES.value for line in run(config, workdir, name)]
    except (ValueError, FloatingPointError, OSError) as error:
        command_line.raise_if_asked(error)
        processes.leave(1, errors.explain(error, Path(".")))
    except jax.errors.JaxRuntimeError as error:
        command_line.raise_if_asked(error)
        processes.leave(1, f"the compiler failed: {errors.first_line(error)}")
    if failures:
        processes.leave(1, "; ".join(failures))


def _check_flags() -> None:
    other = "--topology" if _TOPOLOGIES.value else "--table" if _TABLE.value else ""
    if _MEASURE.value and other:
        raise ValueError(
            f"--measure times the devices that are here, {other} is about chips that are not: "
            "leave one of them out"
        )
    if not _MEASURE.value and not _TOPOLOGIES.value:
        raise ValueError("--topology is missing: give such as --topology=v5e:4x4, or --measure")
    # Compiling needs no devices: do not initialise TPUs of this machine.
    if _TOPOLOGIES.value and not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")


def _usage() -> str:
    return f"{__doc__}\n{_FLAGS.get_help()}"


def cli() -> None:
    """Entry point."""
    processes.import_from_here()
    example = "configs/large.py:qwen2_5_7b"
    main(_ABOUT.parse(sys.argv, usage=_usage, example=example))


if __name__ == "__main__":
    cli()
