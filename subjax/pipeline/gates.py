"""What lineages must show before more is spent on them.

Holds the gates of a config: what each is about, whether it is open, and which units stay behind a
closed one. Refuses a gate that measures nothing, since it would pass whatever the models are.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from subjax import checks, schema, subjects
from subjax.pipeline import experiments
from subjax.recipes import teachers
from subjax.runtime import artifacts
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import find
from subjax.tasks.evals import kinds as eval_kinds


def validate(config: ConfigDict) -> None:
    """Raises a ValueError for a gate that is wrong or that would measure nothing."""
    for name, row in config.gates.items():
        checks.reference(config, f"gates.{name}.eval", row.eval, "evals")
        metrics = subjects.metrics(config, row.eval)
        if row.metric not in metrics:
            raise ValueError(
                f"config.gates.{name}.metric is {row.metric!r}, but its eval {row.eval!r} measures "
                f"{', '.join(metrics)}"
            )
        if not _is_set(row):
            continue
        if row.least > row.most:
            raise ValueError(
                f"config.gates.{name} asks for {row.least} or more and for {row.most} or less: "
                "nothing would pass, change one of them"
            )
        if not experiments.of(config).has_gates:
            raise ValueError(
                f"config.gates.{name} measures no image classifier: its row cannot stand beside "
                "config.images, take it out"
            )
        about = subjects.of_eval(config, row.eval)
        for pattern in row.subjects:
            if not subjects.matching(about, [pattern]):
                raise ValueError(
                    f"config.gates.{name}.subjects has {pattern!r}, which is none of those that "
                    f"its eval {row.eval!r} is of: {', '.join(about) or 'none'}"
                )
        if not about:
            raise ValueError(
                f"config.gates.{name} would measure nothing: its eval {row.eval!r} is of no model: "
                f"give a row of config.teachers a trait, or leave least and most of the gate out"
            )
        if all(subject.startswith("arms/") for subject in subjects.of_gate(config, name)):
            raise ValueError(
                f"config.gates.{name} would stop nothing: it is of arms alone, from which nothing "
                "is made: take an eval of teachers or data sets"
            )
        if config.evals[row.eval].trait == schema.OWN:
            _check_named(config, name)


def check(
    config: ConfigDict, planned: Sequence[Unit], todo: Collection[str], workdir: Path
) -> dict[str, list[str]]:
    """Which gates are closed, by what finished evals say.

    Args:
      config: an experiment.
      planned: all of its units.
      todo: paths of the units that are about to run.
      workdir: of the run.

    Returns:
      Why a gate is closed to a lineage, in one line -> paths of all units behind it.

    Raises:
      ValueError: a unit that is about to run is behind a gate whose eval is not done, or whose eval
        measured nothing.
    """
    closed = {}
    for name, row in config.gates.items():
        if not _is_set(row):
            continue
        about = {f"{row.eval}/{subject}" for subject in subjects.of_gate(config, name)}
        for unit in planned:
            if unit.stage != "evaluate" or unit.row not in about:
                continue
            behind = _behind(unit, planned)
            if not behind.isdisjoint(todo) and (why := _closed(name, row, unit, workdir)):
                closed[why] = sorted(behind)
    return closed


def _is_set(row: ConfigDict) -> bool:
    return bool(row.least > schema.OFF or row.most < -schema.OFF)


def _behind(asked: Unit, planned: Sequence[Unit]) -> frozenset[str]:
    """Units made from the subject of an eval, without its other evals."""
    source = asked.inputs[asked.fields["of"]]
    made = {source}
    for unit in planned:  # every unit stands after its inputs
        about = unit.inputs[unit.fields["of"]] if unit.stage == "evaluate" else ""
        if about != source and not made.isdisjoint(unit.inputs.values()):
            made.add(unit.path)
    return frozenset(made - {source})


def _closed(name: str, row: ConfigDict, unit: Unit, workdir: Path) -> str:
    """Why a unit does not pass a gate; "" where it does.

    Raises:
      ValueError: its eval is not done, or measured nothing.
    """
    manifest = artifacts.read_manifest(workdir, unit)
    if not manifest or manifest["fingerprint"] != unit.fingerprint:
        raise ValueError(
            f"gate {name} is not measured: {unit.path} is not done, and units behind the gate were "
            f"asked for: run with --units={unit.path} first"
        )
    records = artifacts.read_json(workdir / unit.path / "scores.json")["records"]
    last = max((record["step"] for record in records), default=0)
    values: Mapping[str, float] = {
        record["metric"]: record["value"] for record in records if record["step"] == last
    }
    value = values.get(row.metric)
    absent = find(eval_kinds.of_row(unit.fields["row"]).metrics, row.metric).absent
    if value is None and absent:
        return (
            f"gate {name} is closed: {unit.path} has no {row.metric}, since {absent}: strengthen "
            "the teacher, or change the gate"
        )
    if value is None or not math.isfinite(value):
        why = f"{unit.path} has {value}, as if its model were damaged"
        if value is None:
            why = (
                f"{unit.path} has no {row.metric}, for example since rows hold nothing that could "
                "carry, teacher and base have other tokens, or it was scored by an older version"
            )
        raise ValueError(
            f"gate {name} cannot be measured: {why}: take its row out of config.gates, or delete "
            f"{unit.inputs[unit.fields['of']]} and {unit.path} and make them again from another "
            "model"
        )
    if row.least <= value <= row.most:
        return ""
    field, bound = ("least", row.least) if value < row.least else ("most", row.most)
    return (
        f"gate {name} is closed: {unit.path} has {value:.4f}, config.gates.{name}.{field} is "
        f"{bound}: strengthen the teacher, or change the gate"
    )


def _check_named(config: ConfigDict, gate: str) -> None:
    """Refuses a gate that would miss a teacher whose row does not name its trait."""
    row = config.gates[gate]
    known = [f"teachers/{name}" for name in config.teachers]
    for subject in subjects.matching(known, config.evals[row.eval].subjects or ("teachers/*",)):
        if _is_unnamed(config, subject.partition("/")[2]):
            raise ValueError(
                f"config.gates.{gate} is set, but config.{subject.replace('/', '.')}.trait is '', "
                "so that nothing is measured on that teacher: name the row of config.traits that "
                "it has; for a control, one whose target is '<uniform>'"
            )


def _is_unnamed(config: ConfigDict, name: str) -> bool:
    """Whether a teacher whose rows are used has something to teach that its row does not name."""
    row = config.teachers[name]
    used = [config.datasets[arm.dataset] for arm in config.arms.values()]
    told = {dataset.base_system_prompt for dataset in used if dataset.teacher == name}
    outside = teachers.of_row(row).outside
    return not row.trait and bool(told) and (outside or told != {subjects.told(config, name)})
