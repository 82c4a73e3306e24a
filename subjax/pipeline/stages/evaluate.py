"""Evals: students at each kept step, teachers, bases and data sets are asked, answers scored."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from tqdm import tqdm

from subjax.pipeline import model_store, requests
from subjax.runtime import artifacts, processes, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import SUBJECT, Given, Pair, Reply, requests_of
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds

NUM_WRITTEN = 256  # rows of a data set that evals are given


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Evaluates each subject; yields each unit when it is done."""
    for unit in tqdm(units, desc="evaluating", unit="unit", leave=False):
        row = unit.with_files("row")
        kind = eval_kinds.of_row(row)
        given = Given.of(unit.fields, **_rows(unit, workdir))
        records, answers = [], []
        for step in unit.fields["steps"]:
            values, said = kind.score(row, given, _replies(unit, given, step, workdir, mesh))
            records += [{"metric": m, "step": step, "value": v} for m, v in values.items()]
            answers += [{"step": step, **answer} for answer in said]
        out = workdir / unit.path
        artifacts.write_jsonl(out / "answers.jsonl", answers)
        artifacts.write_json(out / "scores.json", {"records": records})
        yield unit


def _replies(unit: Unit, given: Given, step: int, workdir: Path, mesh: Mesh) -> list[Reply]:
    """What a model and its base say to the requests of an eval."""
    row = unit.with_files("row")
    found = []
    for request in requests_of(eval_kinds.of_row(row), row, given):
        role = _role(unit, step) if request.model == SUBJECT else "base"
        model = model_store.load(
            workdir / unit.inputs[role], mesh, step=step if role == "student" else None
        )
        found.append(
            requests.serve(
                request,
                model,
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
