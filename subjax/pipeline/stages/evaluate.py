"""Evals: students at each kept step, teachers, bases and data sets are asked, answers scored."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from tqdm import tqdm

from subjax.engine.model import Model
from subjax.pipeline import model_store, requests
from subjax.runtime import artifacts, processes, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import SUBJECT, Given, Pair, Reply, requests_of
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds

NUM_WRITTEN = 256  # rows of a data set that evals are given


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Evaluates each subject; yields each unit when it is done."""
    with tqdm(total=len(units), desc="evaluating", unit="unit", leave=False) as bar:
        subjects = dict.fromkeys(_subject(unit) for unit in units)
        for subject in subjects:
            for unit in _evaluate([u for u in units if _subject(u) == subject], workdir, mesh):
                bar.update()
                yield unit


def _subject(unit: Unit) -> str:
    """The unit that one is about."""
    return unit.inputs[unit.fields["of"]]


def _evaluate(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """All evals of one subject: each of its models is loaded once, and asked by every eval."""
    found: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    rows = {unit.path: _rows(unit, workdir) for unit in units}
    models: dict[str, Model] = {}
    for step in sorted({step for unit in units for step in unit.fields["steps"]}):
        models.pop("student", None)  # that of another step
        for unit in units:
            if step not in unit.fields["steps"]:
                continue
            row = unit.with_files("row")
            kind, given = eval_kinds.of_row(row), Given.of(unit.fields, **rows[unit.path])
            replies = _replies(unit, given, step, models, workdir, mesh)
            values, said = kind.score(row, given, replies)
            records, answers = found.setdefault(unit.path, ([], []))
            records += [{"metric": m, "step": step, "value": v} for m, v in values.items()]
            answers += [{"step": step, **answer} for answer in said]
    for unit in units:
        records, answers = found[unit.path]
        artifacts.write_jsonl(workdir / unit.path / "answers.jsonl", answers)
        artifacts.write_json(workdir / unit.path / "scores.json", {"records": records})
        yield unit


def _replies(
    unit: Unit, given: Given, step: int, models: dict[str, Model], workdir: Path, mesh: Mesh
) -> list[Reply]:
    """What a model and its base say to the requests of an eval; `models` are those loaded."""
    row = unit.with_files("row")
    found = []
    for request in requests_of(eval_kinds.of_row(row), row, given):
        role = _role(unit, step) if request.model == SUBJECT else "base"
        if role not in models:
            models[role] = model_store.load(
                workdir / unit.inputs[role], mesh, step=step if role == "student" else None
            )
        found.append(
            requests.serve(
                request,
                models[role],
                seed=seeds.seed(unit.fields["seed"], "answers"),
                lineage=unit.lineage,
                precision=unit.fields["program"]["precision"],
            )
        )
    return found


def _role(unit: Unit, step: int) -> str:
    """Which input is the model that a unit is about; at step 0 a student is its base."""
    if unit.fields["of"] == "student" and not step:
        return "base"
    return "teacher" if unit.fields["of"] == "generate" else str(unit.fields["of"])


def _rows(unit: Unit, workdir: Path) -> dict[str, Any]:
    """Rows that an eval is given beside what its fields say."""
    if "filter" in unit.inputs:
        held = artifacts.read_jsonl(workdir / unit.inputs["filter"] / "holdout.jsonl")
        return {"held_out": _pairs(held)}
    if "generate" in unit.inputs:
        processes.wait("rows are written")
        written = artifacts.read_parts(workdir / unit.inputs["generate"])[:NUM_WRITTEN]
        # What is blank has no distribution over its tokens.
        found = _pairs([row for row in written if row["completion"].strip()])
        carrier = kinds.of_row({"kind": unit.fields["dataset"]}).carrier_tokens
        return {"written": found, "carrier": carrier}
    return {}


def _pairs(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    return [(row["prompt"], row["completion"]) for row in rows]
