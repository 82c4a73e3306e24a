"""Runs a config: which units are done, missing or stale; groups of equal units; gates; the list.

All state is on disk. A unit with a manifest of the expected fingerprint is skipped; without one it
is run; with another one the run stops and says what differs.
"""

import fnmatch
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from subjax import schema, unit_builder
from subjax.engine import checkpoints
from subjax.experiment import Run
from subjax.nn import sharding
from subjax.pipeline import experiments, gates, preregistration, validation
from subjax.report import read, score_files, summary, tables
from subjax.runtime import artifacts, processes, versions
from subjax.runtime.artifacts import Unit


def run(
    config: ConfigDict,
    workdir: Path,
    *,
    stages: Sequence[str] = (),
    patterns: Sequence[str] = (),
    command: Sequence[str] = (),
) -> None:
    """Brings every selected unit to completion, then writes the report.

    Args:
      config: an experiment.
      workdir: where units live; running again with the same one resumes.
      stages: only these stages; empty for all.
      patterns: only units whose path matches one of these globs; empty for all.
      command: argv, kept for the report.

    Raises:
      ValueError: the config is wrong, a unit is stale, an input is missing, or a gate is closed.
    """
    validation.settle(config)
    experiment = experiments.of(config)
    planned = experiment.build(config)
    check_selection(planned, stages, patterns)
    _announce(config, planned, workdir)
    code = versions.code()
    processes.check_alike(
        {
            "config": json.loads(config.to_json_best_effort()),
            "files that the config names": {unit.path: unit.fingerprint for unit in planned},
            "--stages or --units": [list(stages), list(patterns)],
            "packages": versions.packages(),
            "code": code,
        }
    )
    with artifacts.lock(workdir):
        check_stale(planned, workdir)
        _check_owner(config, planned, workdir)
        missing = {unit.path for unit in planned if not artifacts.read_manifest(workdir, unit)}
        missing = set(processes.agreed(sorted(missing)))
        todo = [
            unit for unit in planned if unit.path in missing and selected(unit, stages, patterns)
        ]
        lanes = schema.common_lanes(config)
        mesh = sharding.make_mesh(**experiment.mesh_sizes(config), lanes=lanes)
        if (idle := sharding.idle(mesh, jax.device_count())) and processes.is_first():
            print(idle, file=sys.stderr)
        experiment.preflight(planned, todo, workdir, mesh, config.compute.max_unsharded)
        _clean(planned, workdir)
        _log(workdir / "commands.jsonl", command, code)
        artifacts.write_json(workdir / "config.json", json.loads(config.to_json_best_effort()))
        closed = _run_all(config, planned, todo, workdir, mesh)
        if processes.is_first() and (not stages or "report" in stages):
            _report(config, planned, workdir)
    if closed:
        more = f"; {len(closed) - 1} more are closed" if len(closed) > 1 else ""
        raise ValueError(f"{closed[0]}{more}")


def _run_all(
    config: ConfigDict, planned: Sequence[Unit], todo: Sequence[Unit], workdir: Path, mesh: Mesh
) -> list[str]:
    """Runs units in the order of what they need; returns why gates kept some from running."""
    closed: dict[str, None] = {}
    experiment = experiments.of(config)
    for _, alike in itertools.groupby(todo, key=unit_builder.phase):
        members = list(alike)
        for why, behind in _closed(config, planned, members, workdir).items():
            closed[why] = None
            members = [unit for unit in members if unit.path not in behind]
        for group in experiment.groups(members, planned):
            _run_group(experiment.stages[group[0].stage], group, workdir, mesh)
    return list(closed)


def _closed(
    config: ConfigDict, planned: Sequence[Unit], members: Sequence[Unit], workdir: Path
) -> dict[str, list[str]]:
    """Why gates are closed -> paths of units behind them, as the first process sees it."""
    processes.wait("before the gates")
    found: dict[str, list[str]] = {}
    problem = ""
    try:
        found = gates.check(config, planned, {unit.path for unit in members}, workdir)
    except ValueError as error:
        problem = str(error)
    found, problem = processes.agreed([found, problem])
    if problem:
        raise ValueError(problem)
    return found


def listing(config: ConfigDict, workdir: Path) -> list[tuple[str, str]]:
    """(unit path, done | missing | stale) for every unit of the config."""
    validation.settle(config)
    return [(unit.path, _state(unit, workdir)) for unit in experiments.of(config).build(config)]


def _log(path: Path, command: Sequence[str], code: str) -> None:
    """Notes how, when and with which code the run was started, where every process must see it."""
    started = {"argv": list(command), "started_at": artifacts.utc_now(), "code": code}
    row = processes.agreed(started)
    if processes.is_first():  # others do not look before: NFS may keep for a minute what they found
        artifacts.append_jsonl(path, row)
    processes.wait("the command is noted")
    processes.check_shared(path, row)


def _announce(config: ConfigDict, planned: Sequence[Unit], workdir: Path) -> None:
    """Warns before anything is spent if a run that should confirm cannot."""
    status, reason = preregistration.status(config, planned, workdir)
    if config.preregistration and status == preregistration.EXPLORATORY and processes.is_first():
        print(f"{status}: {reason}", file=sys.stderr)


def _report(config: ConfigDict, planned: Sequence[Unit], workdir: Path) -> None:
    from subjax.report import write  # matplotlib: a second that not every start has to wait

    status, reason = preregistration.status(config, planned, workdir)
    found = read.results(
        experiments.of(config), config, planned, workdir, status=status, status_reason=reason
    )
    rows = write.write(workdir / "report", found)
    done = [unit for unit in planned if unit.path not in found.missing]
    scored = {unit.path: experiments.of(config).scored_as(config, unit) for unit in done}
    score_files.write(
        workdir / "report" / score_files.NAME,
        config,
        found.cautions,
        {path: names for path, names in scored.items() if names},
        done,
        workdir,
    )
    print(tables.console_table(rows, found.metrics, summary.masses(found, rows), found.replication))
    for caution in found.cautions:
        print(f"caution: {caution}")
    page = (workdir / "report" / "report.html").resolve()
    print(f"report: {artifacts.location(page)}")


def _clean(planned: Sequence[Unit], workdir: Path) -> None:
    """Removes what an interrupted run left of finished units, and replies to code since mended."""
    for unit in planned if processes.is_first() else ():
        if artifacts.read_manifest(workdir, unit):
            checkpoints.clean(workdir, unit)
            artifacts.remove_replies(workdir, unit)
            continue
        origin = artifacts.read_origin(workdir, unit)
        if origin and origin["fingerprint"] != unit.fingerprint:  # but not stale
            artifacts.forget_replies(workdir, unit)


def _missing_input(group: Sequence[Unit], workdir: Path) -> str:
    """What a group cannot start without, in words; "" where all its inputs are done."""
    for unit in group:
        for path, fingerprint in unit.input_fingerprints.items():
            manifest = workdir / path / artifacts.MANIFEST
            if not manifest.exists():
                return f"{unit.path} needs {path}, which is not done: run its stage"
            if artifacts.read_json(manifest)["fingerprint"] != fingerprint:
                return f"{unit.path} needs {path}, which is stale: see --list"
    return ""


def _run_group(run: Run, group: Sequence[Unit], workdir: Path, mesh: Mesh) -> None:
    processes.wait(f"before {group[0].path}")  # its inputs are there for all
    if problem := processes.agreed(_missing_input(group, workdir)):
        raise ValueError(problem)
    processes.await_files(
        workdir / path / artifacts.MANIFEST for unit in group for path in unit.input_fingerprints
    )
    lanes = group[0].fields.get("lanes", 0)
    # A population always has all its lanes, since a lane's bytes depend on how many there are.
    padded = [*group, *[group[0]] * (lanes - len(group))]
    start = time.monotonic()
    if processes.is_first():
        print(f"{group[0].stage}: {_names(group)}", file=sys.stderr)
    written: set[str] = set()
    for unit in run(padded, workdir, mesh):
        if unit.path not in written:
            written.add(unit.path)
            now = time.monotonic()
            artifacts.write_manifest(workdir, unit, now - start)
            start = now
            # A population's units come all at once; those of other stages one by one.
            if not lanes and processes.told_to_leave():
                raise processes.Interrupted(f"{unit.path} is done")
    if processes.told_to_leave():
        raise processes.Interrupted(f"{group[0].stage} of {_names(group)} is done")


def _names(group: Sequence[Unit]) -> str:
    paths = [unit.path.partition("/")[2] for unit in group]
    return ", ".join(paths[:3]) + (f" … {paths[-1]} ({len(paths)} units)" if len(paths) > 3 else "")


def check_selection(
    planned: Sequence[Unit], stages: Sequence[str], patterns: Sequence[str]
) -> None:
    """Raises a ValueError if a stage is unknown or a pattern matches no unit."""
    unknown = [stage for stage in stages if stage not in schema.STAGES]
    if unknown:
        raise ValueError(f"--stages names {unknown}; stages are {', '.join(schema.STAGES)}")
    for pattern in patterns:
        if not any(selected(unit, stages, [pattern]) for unit in planned):
            raise ValueError(f"--units={pattern} matches no unit of these stages: see --list")


def selected(unit: Unit, stages: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a unit is of one of the stages and matches one of the globs, where there are any."""
    in_stage = not stages or unit.stage in stages
    return in_stage and (not patterns or any(fnmatch.fnmatch(unit.path, p) for p in patterns))


def _state(unit: Unit, workdir: Path) -> str:
    origin = artifacts.read_origin(workdir, unit)
    if origin and _is_stale(unit, origin):
        return "stale"
    return "done" if artifacts.read_manifest(workdir, unit) else "missing"


def check_stale(planned: Sequence[Unit], workdir: Path) -> None:
    """Raises a ValueError where a finished unit, or a part of one, was made by another config."""
    for unit in planned:
        origin = artifacts.read_origin(workdir, unit)
        if origin and _is_stale(unit, origin):
            differing = _differences(origin["fields"], unit.fields)
            # A field that did not exist then is why only where no other is.
            older = [told for told in differing if ": None -> " not in told]
            changes = [*_changed_files(origin["fields"], unit), *(older or differing)]
            if not changes:
                changes = [
                    f"input {path}: {origin['inputs'].get(path)} -> {fingerprint}"
                    for path, fingerprint in unit.input_fingerprints.items()
                    if origin["inputs"].get(path) != fingerprint
                ]
            raise ValueError(
                f"{unit.path} in {workdir} was made by another config ({'; '.join(changes[:4])}): "
                "choose another --workdir, or delete that directory to make it again"
            )


def _is_stale(unit: Unit, origin: Mapping[str, Any]) -> bool:
    """Whether a unit was made, or begun, by another config.

    An eval that was only begun is not if all that differs is the code of the user's own kind: an
    error in that may be why it was not finished, and it begins anew.
    """
    if origin["fingerprint"] == unit.fingerprint:
        return False
    if unit.stage != "evaluate" or "finished_at" in origin:
        return True
    made, now = ({**fields, "code": ""} for fields in (origin["fields"], unit.fields))
    inputs = origin["inputs"], unit.input_fingerprints
    return artifacts.dumps([made, inputs[0]]) != artifacts.dumps([now, inputs[1]])


def _changed_files(old: dict[str, Any], unit: Unit) -> list[str]:
    """Which files that the config names have another content now."""
    changed = [
        f"the content of {unit.settings[field] or field}"
        for field, digest in unit.fields.get("digests", {}).items()
        if old.get("digests", {}).get(field, "") != digest
    ]
    if old.get("stimuli_digest", "") != unit.fields.get("stimuli_digest", ""):
        changed.append(f"the content of {unit.settings['stimuli'] or 'the stimuli'}")
    before, now = old.get("files", {}), unit.fields.get("files", {})
    if before and now:
        changed += [
            f"the content of {name} in {unit.settings['data_dir']}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
    return changed


def _check_owner(config: ConfigDict, planned: Sequence[Unit], workdir: Path) -> None:
    """Keeps the report of another experiment, and files that are no run's, from being replaced."""
    path = workdir / "config.json"
    if not path.exists():
        return
    found = artifacts.read_json(path)
    if not isinstance(found, dict) or not {"name", "lineages", "evals"} <= found.keys():
        raise ValueError(f"{path} is not of a run of subjax: choose another --workdir")
    shared = any(artifacts.read_manifest(workdir, unit) for unit in planned)
    if found["name"] != config.name and not shared:
        raise ValueError(
            f"workdir {workdir} holds the run {found['name']!r}, which shares no finished unit "
            f"with {config.name!r}: choose another --workdir"
        )


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        nested = (
            _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            for key in keys
        )
        return list(itertools.chain.from_iterable(nested))
    return [] if old == new else [f"{name}: {str(old)[:60]} -> {str(new)[:60]}"]
