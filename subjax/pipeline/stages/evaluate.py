"""Evals: students at each kept step, teachers, bases and data sets are asked, answers scored.

Sampled answers are written in parts that survive a kill, and read in place of being drawn again.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from tqdm import tqdm

from subjax.engine.model import Model
from subjax.pipeline import model_store, requests
from subjax.runtime import artifacts, processes, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import (
    BASE,
    CONTROL,
    JUDGE,
    SUBJECT,
    Given,
    Pair,
    Reply,
    Request,
    Sample,
    follow_ups_of,
    requests_of,
    scores_of,
)
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds

NUM_WRITTEN = 256  # rows of a data set that evals are given

Models = dict[tuple[str, int | None], Model]  # by their unit, and the step of a student


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Evaluates each subject; yields each unit when it is done."""
    with tqdm(total=len(units), desc="evaluating", unit="unit", leave=False) as bar:
        subjects = dict.fromkeys(_subject(unit) for unit in units)
        models: Models = {}
        for subject in subjects:
            about = [unit for unit in units if _subject(unit) == subject]
            needed = {path for unit in about for path in unit.inputs.values()}
            for key in [key for key in models if key[0] not in needed]:
                del models[key]
            for unit in _evaluate(about, models, workdir, mesh):
                bar.update()
                yield unit


def _subject(unit: Unit) -> str:
    """The unit that one is about."""
    return unit.inputs[unit.fields["of"]]


def _evaluate(units: Sequence[Unit], models: Models, workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """All evals of one subject: each model is loaded once, and asked by every eval.

    Each unit is yielded once its own last step is done. `models` are those loaded.
    """
    found: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    rows = {unit.path: _rows(unit, workdir) for unit in units}
    for step in sorted({step for unit in units for step in unit.fields["steps"]}):
        for key in [key for key in models if key[1] not in (None, step)]:
            del models[key]
        for unit in units:
            if step not in unit.fields["steps"]:
                continue
            row = unit.with_files("row")
            kind, given = eval_kinds.of_row(row), Given.of(unit.fields, **rows[unit.path])
            replies = _replies(unit, given, step, models, workdir, mesh)
            values, said = scores_of(kind, row, given, replies)
            records, answers = found.setdefault(unit.path, ([], []))
            records += [{"metric": m, "step": step, "value": v} for m, v in values.items()]
            answers += [{"step": step, **answer} for answer in said]
            if step == max(unit.fields["steps"]):
                del found[unit.path]
                artifacts.write_jsonl(workdir / unit.path / "answers.jsonl", answers)
                artifacts.write_json(workdir / unit.path / "scores.json", {"records": records})
                yield unit
                # Only now that its manifest is there: a kill before would cost all of them.
                artifacts.remove_replies(workdir, unit)


def _replies(
    unit: Unit, given: Given, step: int, models: Models, workdir: Path, mesh: Mesh
) -> list[Reply]:
    """What models say to the requests of an eval; `models` are those loaded."""
    row = unit.with_files("row")
    kind = eval_kinds.of_row(row)
    roles = {SUBJECT: _role(unit, step), BASE: "base", CONTROL: "control", JUDGE: "judge"}

    def ask(request: Request, only: Sequence[int] | None = None) -> Reply:
        role = roles[request.model]
        key = unit.inputs[role], step if role == "student" else None
        if key not in models:
            models[key] = model_store.load(
                workdir / key[0],
                mesh,
                step=key[1],
                precision=unit.fields["program"]["precision"],
                exact=unit.fields.get("exact", True),
            )
        return requests.serve(
            request,
            models[key],
            seed=seeds.seed(unit.fields["seed"], "answers"),
            lineage=unit.lineage,
            only=only,
        )

    def reply(number: int, request: Request) -> Reply:
        if not isinstance(request, Sample):
            return ask(request)
        name = f"{model_store.step_name(step)}-request-{number}"
        return _in_parts(request, ask, unit, name, workdir)

    found = [reply(i, request) for i, request in enumerate(requests_of(kind, row, given))]
    behind = follow_ups_of(kind, row, given, found)
    return found + [reply(i, request) for i, request in enumerate(behind, len(found))]


def _in_parts(
    request: Sample,
    ask: Callable[[Request, Sequence[int]], Reply],
    unit: Unit,
    name: str,
    workdir: Path,
) -> Reply:
    """Answers in parts, each written at once; those that an interrupted run wrote are read.

    Args:
      request: what is asked.
      ask: answers those of its prompts that are at some places.
      unit: to which the parts belong.
      name: what their names begin with.
      workdir: of the run.
    """
    texts: list[str] = []
    parts = request.parts()
    total = len(request.prompts) * request.num_samples
    hidden = len(parts) == 1 or not processes.is_first()
    with tqdm(total=total, desc=unit.path, unit="answer", leave=False, disable=hidden) as bar:
        for index, places in enumerate(parts):
            path = workdir / unit.path / artifacts.REPLIES / f"{name}-{index:05d}.jsonl"
            said = _read(path, len(places) * request.num_samples)
            if said is None:
                said = list(ask(request, places).texts)
                artifacts.begin(workdir, unit)
                artifacts.write_jsonl(path, [{"answer": text} for text in said])
                artifacts.publish()
                if processes.told_to_leave():
                    raise processes.Interrupted(f"saved {path.relative_to(workdir)}")
            texts += said
            bar.update(len(said))
    return Reply(texts=texts)


def _read(path: Path, num_answers: int) -> list[str] | None:
    """The answers of a part, as the first process reads them; None: they are not drawn yet."""
    said: list[str] | None = None
    problem = ""
    try:
        if processes.is_first() and path.exists():
            rows = artifacts.read_jsonl(path, {"answer": str}, num_rows=num_answers)
            said = [row["answer"] for row in rows]
    except ValueError as error:
        problem = str(error)
    said, problem = processes.agreed([said, problem])
    if problem:
        raise ValueError(problem)
    return said


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
    if "kept" in unit.inputs:
        rows = {
            role: _pairs(artifacts.read_jsonl(workdir / unit.inputs[role] / "kept.jsonl"))
            for role in ("kept", "against")
        }
        return {**rows, "carried": kinds.of_row({"kind": unit.fields["dataset"]}).carried}
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
