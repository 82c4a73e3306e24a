"""A work directory as `Results`: reads what the units left, computes nothing."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from subjax import schema, subjects
from subjax.experiment import Experiment
from subjax.report import cautions
from subjax.report.contrasts import kinds
from subjax.report.results import Results
from subjax.runtime import artifacts, versions
from subjax.runtime.artifacts import Unit
from subjax.tasks.evals import kinds as eval_kinds

_NUM_EXAMPLES = 6
_NUM_ANSWERS = 12


def results(
    experiment: Experiment,
    config: ConfigDict,
    planned: Sequence[Unit],
    workdir: Path,
    *,
    status: str,
    status_reason: str,
) -> Results:
    """Gathers everything that the report shows; units that are not done are listed as missing.

    Args:
      experiment: the kind that the config is.
      config: an experiment.
      planned: all of its units.
      workdir: of the run.
      status: one of `STATUSES`.
      status_reason: the sentence that says why.
    """
    done = [unit for unit in planned if artifacts.read_manifest(workdir, unit)]
    by_stage: dict[str, list[Unit]] = defaultdict(list)
    for unit in done:
        by_stage[unit.stage].append(unit)
    return Results(
        **of_config(experiment, config),
        status=status,
        status_reason=status_reason,
        lineages=tuple(config.lineages),
        scores=_scores(experiment, config, done, workdir),
        theorems=experiment.theorems(done, workdir),
        cautions=cautions.of(config, planned),
        missing=[unit.path for unit in planned if unit not in done],
        counts=_counts(by_stage["filter"], workdir),
        examples=_examples(by_stage["filter"], workdir),
        answers=_answers(by_stage["evaluate"], workdir),
        curves=_curves(by_stage[experiment.student_stage], workdir),
        commands=_commands(workdir),
        versions={"compute.precision": config.compute.precision, **versions.packages()},
        wall_s=_wall(done, workdir),
        times=_times(done, workdir),
    )


def of_config(experiment: Experiment, config: ConfigDict) -> dict[str, Any]:
    """The fields of `Results` that the config alone decides, but for its lineages."""
    return {
        "title": config.title or config.name,
        "claim": config.claim,
        "arms": _scored(config),
        "metrics": {
            **{name: eval_kinds.of_row(row).metrics for name, row in config.evals.items()},
            **experiment.own_metrics,
        },
        "targets": {
            name: "" if row.trait == schema.OWN else subjects.target_of(config, row.trait)
            for name, row in config.evals.items()
        },
        "contrasts": kinds.of_config(config),
        "replication": experiment.replication(config),
        "published": experiment.published(config),
        "sweeps": experiment.sweeps(config),
        "step_name": experiment.step_name,
    }


def _scored(config: ConfigDict) -> tuple[str, ...]:
    """All that evals are about, and arms and draws of the theorem in any case."""
    asked = [
        subjects.short_name(subject)
        for name in config.evals
        for subject in subjects.of_eval(config, name)
    ]
    return tuple(dict.fromkeys((*config.arms, *config.theorems, *asked)))


def _scores(
    experiment: Experiment, config: ConfigDict, done: Sequence[Unit], workdir: Path
) -> dict[tuple[str, str], dict[int, Any]]:
    scores: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for unit in done:
        if scored := experiment.scored_as(config, unit):
            content = artifacts.read_json(workdir / unit.path / "scores.json")
            scores[scored][unit.lineage] = content["records"]
    return dict(scores)


def _counts(units: Sequence[Unit], workdir: Path) -> dict[str, dict[int, Any]]:
    counts: dict[str, dict[int, Any]] = defaultdict(dict)
    for unit in units:
        counts[unit.row][unit.lineage] = artifacts.read_json(workdir / unit.path / "counts.json")
    return dict(counts)


def _examples(units: Sequence[Unit], workdir: Path) -> dict[str, dict[str, list[Any]]]:
    examples = {}
    for unit in units:
        if unit.row not in examples:
            directory = workdir / unit.path
            examples[unit.row] = {
                name: artifacts.read_jsonl(directory / f"{name}.jsonl")[:_NUM_EXAMPLES]
                for name in ("kept", "rejected")
            }
    return examples


def _answers(units: Sequence[Unit], workdir: Path) -> dict[str, list[Any]]:
    answers: dict[str, list[Any]] = {}
    for unit in units:
        arm = subjects.short_name(unit.row.partition("/")[2])
        said = artifacts.read_jsonl(workdir / unit.path / "answers.jsonl")
        last = unit.fields["steps"][-1]
        final = [row for row in said if "answer" in row and row["step"] == last]
        if final and arm not in answers:
            answers[arm] = final[:: max(len(final) // _NUM_ANSWERS, 1)][:_NUM_ANSWERS]
    return answers


def _curves(units: Sequence[Unit], workdir: Path) -> dict[str, dict[int, list[Any]]]:
    curves: dict[str, dict[int, list[Any]]] = defaultdict(dict)
    for unit in units:
        path = workdir / unit.path / "metrics.jsonl"
        if not path.exists():  # an arm that reports a model which is trained elsewhere
            continue
        rows = artifacts.read_jsonl(path)
        every = max(len(rows) // 50, 1)
        curves[unit.row][unit.lineage] = rows[every - 1 :: every]
    return dict(curves)


def _commands(workdir: Path) -> list[str]:
    rows = artifacts.read_jsonl(workdir / "commands.jsonl")
    return ["python -m subjax.main " + " ".join(row["argv"][1:]) for row in rows]


def _wall(done: Sequence[Unit], workdir: Path) -> dict[str, float]:
    wall: dict[str, float] = defaultdict(float)
    for unit in done:
        manifest = artifacts.read_manifest(workdir, unit)
        wall[unit.stage] += manifest["wall_s"] if manifest else 0.0
    return dict(wall)


def _times(done: Sequence[Unit], workdir: Path) -> list[dict[str, Any]]:
    """Times of trainings that a plan foresaw, by table row; none where nobody made a plan."""
    path = workdir / artifacts.PLAN
    plan = artifacts.read_json(path) if path.exists() else {}
    # Units that trained side by side have the same log, to the byte.
    populations: dict[tuple[str, bytes], list[Unit]] = defaultdict(list)
    for unit in done if plan else ():
        log = workdir / unit.path / artifacts.TIMINGS
        if log.exists():
            populations[unit.stage, log.read_bytes()].append(unit)
    rows: dict[str, dict[str, Any]] = {}
    for members in populations.values():
        foreseen = [
            (unit, plan[unit.path])
            for unit in members
            if plan.get(unit.path, {}).get("fingerprint") == unit.fingerprint
        ]
        if not foreseen:  # such as sampling, whose log says other things
            continue
        seconds = _seconds(workdir / members[0].path / artifacts.TIMINGS)
        wall = sum(_wall(members, workdir).values())  # all of it stands with the first unit
        for unit, planned in foreseen:
            name = f"{unit.stage}/{unit.row}"
            row = rows.setdefault(name, {"row": name, "devices": planned["devices"], "units": 0})
            own = {"units": 1, "predicted_s": planned["seconds"]}
            own |= {"measured_s": seconds / len(members), "wall_s": wall / len(members)}
            row |= {field: row.get(field, 0) + value for field, value in own.items()}
    return list(rows.values())


def _seconds(log: Path) -> float:
    """Of all updates of a training; those of first calls, which compile, at the others' pace."""
    lines = artifacts.read_jsonl(log, {"seconds": float, "updates": int, "first_call": bool})
    counted = [line for line in lines if not line["first_call"]] or lines
    pace = sum(line["seconds"] for line in counted) / sum(line["updates"] for line in counted)
    return pace * sum(line["updates"] for line in lines)
