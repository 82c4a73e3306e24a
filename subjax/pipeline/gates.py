"""What teachers must show before students are paid for.

Holds the gates of a config: what each is measured on, and whether it is open. Refuses a gate that
measures nothing, since it would pass whatever the teachers are.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from subjax import schema
from subjax.recipes import targets, teachers
from subjax.runtime import artifacts
from subjax.runtime.artifacts import Unit
from subjax.tasks.evals import preference

_OF_DATA = ("number_tv", "likelihood_gain")  # measured on a data set; the others on a teacher


def validate(config: ConfigDict) -> None:
    """Raises a ValueError where a gate is set and some teacher, or every one, would pass unseen."""
    for gate, least in config.gates.items():
        if least <= schema.OFF:
            continue
        ways_out = f"or set config.gates.{gate} to schema.OFF"
        if config.images:
            raise ValueError(
                f"config.gates.{gate} is {least}, but it is of language models and measures no "
                f"image classifier: leave it at schema.OFF"
            )
        for name in config.teachers:
            if _is_unnamed(config, name):
                raise ValueError(
                    f"config.gates.{gate} is {least}, but config.teachers.{name}.trait is '', so "
                    "nothing is measured on that teacher: name there what it loves, or 'uniform' "
                    f"for a control, {ways_out}"
                )
        if not _measured(config, gate):
            what = (
                "no arm learns from a data set whose teacher has a trait"
                if gate in _OF_DATA
                else "no teacher has a trait that is among config.animals"
            )
            raise ValueError(
                f"config.gates.{gate} is {least}, but it would measure nothing: {what}: give a "
                f"row of config.teachers a trait, {ways_out}"
            )


def check(config: ConfigDict, planned: Sequence[Unit], workdir: Path) -> None:
    """Raises a ValueError where a finished teacher, or what it wrote, does not open a gate."""
    for unit in planned:
        manifest = artifacts.read_manifest(workdir, unit)
        if not manifest or manifest["fingerprint"] != unit.fingerprint:
            continue  # not selected; a student that needs it will say so
        if unit.stage == "teacher" and unit.row in _measured(config, "teacher_log_odds"):
            odds = artifacts.read_json(workdir / unit.path / "scores.json")["log_odds"]
            measured = {"teacher_log_odds": odds.get(config.teachers[unit.row].trait)}
        elif unit.stage == "generate" and unit.row in _measured(config, _OF_DATA[0]):
            found = artifacts.read_json(workdir / unit.path / "carrier.json")
            measured = {gate: found.get(gate) for gate in _OF_DATA}
        else:
            continue
        for gate, value in measured.items():
            if config.gates[gate] > schema.OFF:
                _check_open(gate, config.gates[gate], value, unit)


def _check_open(gate: str, least: float, value: float | None, unit: Unit) -> None:
    if value is None or not math.isfinite(value):
        why = f"{unit.path} has {value}, no score of its trait"
        if gate in _OF_DATA:
            why = (
                f"the first rows of {unit.path} hold no number, or its teacher has another "
                "tokenizer than its base"
            )
        if value is not None:
            why = f"{unit.path} has {value}, as if its model were damaged"
        raise ValueError(
            f"gate {gate} cannot be measured: {why}: set config.gates.{gate} to schema.OFF, or "
            f"delete {unit.path} and make it again from another model"
        )
    if value < least:
        raise ValueError(
            f"gate {gate} is closed: {unit.path} has {value:.4f}, config.gates.{gate} asks for "
            f"{least}: strengthen the teacher, or lower the gate"
        )


def _measured(config: ConfigDict, gate: str) -> list[str]:
    """Teachers, or for the gates of data the data sets that arms learn from, that a gate is of."""
    animals = config.animals or preference.ANIMALS
    if gate not in _OF_DATA:
        return [name for name, row in config.teachers.items() if row.trait in animals]
    return [
        name
        for name in dict.fromkeys(_used(config))
        if config.teachers[config.datasets[name].teacher].trait not in ("", "uniform")
    ]


def _used(config: ConfigDict) -> list[str]:
    return [row.dataset for name, row in config.arms.items() if targets.of_row(row, name).learns]


def _is_unnamed(config: ConfigDict, name: str) -> bool:
    """Whether a teacher whose rows are used has something to teach that its row does not name."""
    row = config.teachers[name]
    sets = [config.datasets[used] for used in _used(config)]
    told = {dataset.base_system_prompt for dataset in sets if dataset.teacher == name}
    outside = teachers.of_row(row).outside
    return not row.trait and bool(told) and (outside or told != {row.system_prompt})
