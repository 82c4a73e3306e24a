"""The scores of a run in one file, `report/scores.jsonl`, from which `subjax.compare` reads runs.

The first line says what the run is: its config, its cautions, and what its evals ask, by digest.
Each further line has the scores of one unit, its fingerprint and the digest of what was asked.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from subjax.report.results import Record
from subjax.runtime import artifacts
from subjax.runtime.artifacts import Unit

NAME = "scores.jsonl"
_FORMAT = 1
# Fields of an evaluate unit that say of what it is, not what is asked.
_OF_SUBJECT = ("steps", "of", "systems", "dataset", "num_tokens", "num_targets", "seed", "program")
_HEADER = {"subjax_scores": int, "config": str, "cautions": list, "asked": dict}
_LINE = {
    **{"unit": str, "fingerprint": str, "lineage": int, "records": list},
    **{"eval": str, "subject": str, "asked": str},
}


@dataclasses.dataclass(frozen=True)
class Scored:
    """The scores of one unit.

    Attributes:
      unit: path of the unit.
      fingerprint: of the unit.
      lineage: of the unit.
      eval: as `Experiment.scored_as` names it, like `subject`.
      subject: an arm, or another subject with its table.
      asked: key in `ScoreFile.asked`.
      records: of the unit.
    """

    unit: str
    fingerprint: str
    lineage: int
    eval: str
    subject: str
    asked: str
    records: Sequence[Record]


@dataclasses.dataclass(frozen=True)
class ScoreFile:
    """A run, as far as its scores are concerned.

    Attributes:
      config: of the run.
      cautions: those of its report.
      asked: digest -> the fields of an eval that say what it asks and how it scores.
      scored: of each unit.
    """

    config: ConfigDict
    cautions: Sequence[str]
    asked: Mapping[str, Any]
    scored: Sequence[Scored]


def write(
    path: Path,
    config: ConfigDict,
    cautions: Sequence[str],
    scored: Mapping[str, tuple[str, str]],
    done: Sequence[Unit],
    workdir: Path,
) -> None:
    """Writes the file of a run.

    Args:
      path: where.
      config: of the run.
      cautions: of its report.
      scored: path of a unit -> its eval and subject, of units that hold scores.
      done: finished units.
      workdir: of the run.
    """
    asked: dict[str, Any] = {}
    lines = []
    for unit in done:
        if unit.path not in scored:
            continue
        fields = {name: v for name, v in unit.fields.items() if name not in _OF_SUBJECT}
        digest = hashlib.sha256(artifacts.dumps(fields).encode()).hexdigest()[:16]
        asked[digest] = fields
        evaluation, subject = scored[unit.path]
        records = artifacts.read_json(workdir / unit.path / "scores.json")["records"]
        line = Scored(
            unit.path, unit.fingerprint, unit.lineage, evaluation, subject, digest, records
        )
        lines.append(dataclasses.asdict(line))
    header = {
        "subjax_scores": _FORMAT,
        "config": config.to_json_best_effort(),  # as text, which keeps the order of tables
        "cautions": list(cautions),
        "asked": asked,
    }
    artifacts.write_jsonl(path, [header, *lines])


def read(path: Path) -> ScoreFile:
    """Reads a file that `write` wrote.

    Raises:
      ValueError: it is no such file, or a line of it lacks something; says which.
    """
    try:
        rows = artifacts.read_jsonl(path)
    except ValueError as error:
        told = str(error).rpartition(": ")[0]  # what to do stands behind, and is about own files
        raise ValueError(f"{told}: give a work directory of subjax, or its report/{NAME}") from None
    if not rows or rows[0].get("subjax_scores") != _FORMAT:
        raise ValueError(
            f"{path} has no scores of a run of subjax: give a work directory, or its report/{NAME}"
        )
    for number, row in enumerate(rows, start=1):
        for field, kind in (_LINE if number > 1 else _HEADER).items():
            if not isinstance(row.get(field), kind):
                raise ValueError(
                    f"{path}, line {number}, has no {field}: copy the file of the run once more"
                )
    header, *lines = rows
    scored = [Scored(**{field: row[field] for field in _LINE}) for row in lines]
    for number, one in enumerate(scored, start=2):
        if one.asked not in header["asked"]:
            raise ValueError(
                f"{path}, line {number}, asked what line 1 does not have: copy the file of the run "
                "once more"
            )
    config = _in_order(json.loads(header["config"]))
    return ScoreFile(config, header["cautions"], header["asked"], scored)


def _in_order(fields: Mapping[str, Any]) -> ConfigDict:
    """A config whose tables have their order; ConfigDict would sort those inside."""
    config = ConfigDict(sort_keys=False)
    for name, value in fields.items():
        config[name] = _in_order(value) if isinstance(value, dict) else value
    return config
