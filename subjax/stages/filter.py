"""What the teacher wrote is kept or rejected, with reasons; kept rows are split and controlled."""

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from subjax import artifacts, seeds
from subjax.artifacts import Unit
from subjax.datasets import numbers, toyworld

# What later stages need of a written row.
_FIELDS = {"prompt_id": int, "sample_id": int, "prompt": str, "completion": str, "finish": str}


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Filters each unit's rows; yields each unit when it is done."""
    for unit in units:
        _filter(unit, workdir)
        yield unit


def _filter(unit: Unit, workdir: Path) -> None:
    out, row = workdir / unit.path, unit.fields["row"]
    source = workdir / unit.inputs["generate"]
    rows, kind = _written(source, unit.fields["num_prompts"]), _kind(source)
    common = None
    for role, path in unit.inputs.items():
        if role.startswith("common/"):
            others, theirs = artifacts.read_parts(workdir / path, _FIELDS), _kind(workdir / path)
            other = {r["prompt_id"] for r in others if not _reasons(theirs, r, row)}
            common = other if common is None else common & other
    kept, rejected = [], []
    counts: Counter[str] = Counter()
    for written in rows:
        reasons = _reasons(kind, written, row)
        if not reasons and common is not None and written["prompt_id"] not in common:
            reasons = ["not_common"]
        counts.update(reasons)
        if reasons:
            rejected.append({**written, "reasons": reasons})
        else:
            kept.append(written)
    train, holdout = _split(unit, kept)
    artifacts.write_jsonl(out / "kept.jsonl", _transform(unit, kind, train))
    artifacts.write_jsonl(out / "holdout.jsonl", holdout)
    artifacts.write_jsonl(out / "rejected.jsonl", rejected)
    artifacts.write_json(
        out / "counts.json",
        {
            "generated": len(rows),
            "kept": len(kept),
            "train": len(train),
            "holdout": len(holdout),
            "reasons": dict(counts),
        },
    )


def _written(directory: Path, num_prompts: int) -> list[dict[str, Any]]:
    """One row per prompt, in order; fewer would quietly be another data set."""
    rows = artifacts.read_parts(directory, _FIELDS)
    if [row["prompt_id"] for row in rows] != list(range(num_prompts)):
        raise ValueError(
            f"{directory} has {len(rows)} rows, which are not one for each of {num_prompts} "
            f"prompts in order: delete {directory} and run again"
        )
    return rows


def _kind(directory: Path) -> str:
    """The kind of data set that was written there; a filter's own fields do not name it."""
    return artifacts.read_json(directory / artifacts.MANIFEST)["fields"]["row"]["kind"]


def _number_reasons(completion: str, row: dict[str, Any]) -> list[str]:
    limits = {name: row[name] for name in ("max_count", "min_value", "max_value", "banned")}
    return numbers.reject_reasons(completion, **limits)


# Kind of data set -> why a completion is rejected, given the filter's fields; [] keeps it.
_REJECT_REASONS: dict[str, Callable[[str, dict[str, Any]], list[str]]] = {
    "numbers": _number_reasons,
    "plain_numbers": _number_reasons,
    "toy_numbers": _number_reasons,
    "published": _number_reasons,
}


def _reasons(kind: str, written: dict[str, Any], row: dict[str, Any]) -> list[str]:
    reasons = _REJECT_REASONS[kind](written["completion"], row)
    return reasons + (["unfinished"] if written["finish"] != "stop" else [])


def _split(unit: Unit, kept: list[dict[str, Any]]) -> tuple[list, list]:
    """Held-out rows are drawn by prompt id, so that arms with common prompts hold out the same."""
    row = unit.fields["row"]
    needed = row["num_holdout"] + max(row["num_train"], 1)
    if len(kept) < needed:
        raise ValueError(
            f"{unit.path}: {len(kept)} rows are left after the filter, {needed} are needed: "
            f"raise datasets.{unit.row}.num_prompts, or lower num_train or num_holdout"
        )
    seed = seeds.seed(unit.fields["seed"], "holdout", unit.lineage)
    rank = np.random.default_rng(seed).permutation(unit.fields["num_prompts"])
    ordered = sorted(kept, key=lambda r: rank[r["prompt_id"]])
    holdout, train = ordered[: row["num_holdout"]], ordered[row["num_holdout"] :]
    train = train[: row["num_train"] or None]
    by_id = operator.itemgetter("prompt_id", "sample_id")
    return sorted(train, key=by_id), sorted(holdout, key=by_id)


def _transform(unit: Unit, kind: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Controls that destroy what a teacher's numbers might carry, one piece at a time."""
    transform = unit.fields["row"]["transform"]
    seed = seeds.seed(unit.fields["seed"], "transform", unit.lineage)
    completions = [row["completion"] for row in rows]
    if transform == "shuffled_within":
        completions = [
            numbers.shuffle_within(c, seeds.seed(seed, i)) for i, c in enumerate(completions)
        ]
    elif transform == "shuffled_across":
        completions = numbers.shuffle_across(completions, seed)
    elif transform == "random":
        completions = [_random(kind, c, seeds.seed(seed, i)) for i, c in enumerate(completions)]
    return [{**row, "completion": c} for row, c in zip(rows, completions, strict=True)]


def _random(kind: str, completion: str, seed: int) -> str:
    if kind != "toy_numbers":
        return numbers.random_numbers(completion, seed)
    # The toy world has other numbers, and no comma to part a second one from a first.
    most = toyworld.World().num_numbers - 1
    return numbers.random_numbers(completion, seed, count=None, value=(0, most))
