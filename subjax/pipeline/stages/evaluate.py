"""Students are asked what evals ask, at each kept step of their training."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jax.sharding import Mesh
from tqdm import tqdm

from subjax.pipeline import model_store, requests
from subjax.runtime import artifacts, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import SUBJECT, Given, Pair, Reply
from subjax.tasks.evals import kinds as eval_kinds


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Evaluates each student at each kept step; yields each unit when it is done."""
    for unit in tqdm(units, desc="evaluating", unit="unit", leave=False):
        row = unit.fields["row"]
        kind = eval_kinds.of_row(row)
        given = Given.of(unit.fields, _held_out(unit, workdir) if kind.of_rows else ())
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
    """What a student and its base say to the requests of an eval."""
    row = unit.fields["row"]
    found = []
    for request in eval_kinds.of_row(row).requests(row, given):
        # At step 0 a student is its base; an arm that learns nothing has nothing else.
        own = step if request.model == SUBJECT else 0
        source = unit.inputs["student"] if own else unit.inputs["base"]
        found.append(
            requests.serve(
                request,
                model_store.load(workdir / source, mesh, step=own or None),
                seed=seeds.seed(unit.fields["seed"], "answers"),
                lineage=unit.lineage,
                precision=unit.fields["program"]["precision"],
            )
        )
    return found


def _held_out(unit: Unit, workdir: Path) -> list[Pair]:
    held = artifacts.read_jsonl(workdir / unit.inputs["filter"] / "holdout.jsonl")
    if not held:
        raise ValueError(
            f"{unit.path} needs held-out rows: set num_holdout above 0 for the arm's data set"
        )
    return [(written["prompt"], written["completion"]) for written in held]
