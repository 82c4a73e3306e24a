"""Keeps or rejects what the teacher wrote, with reasons; splits and transforms kept rows."""

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from subjax.runtime import artifacts, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import DatasetKind
from subjax.tasks.datasets import kinds

# What later stages need of a written row.
_FIELDS = {"prompt_id": int, "sample_id": int, "prompt": str, "completion": str, "finish": str}

Key = tuple[str, int]


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Filters each unit's rows; yields each unit when it is done."""
    for unit in units:
        _filter(unit, workdir)
        yield unit


def _filter(unit: Unit, workdir: Path) -> None:
    out, row = workdir / unit.path, unit.fields["row"]
    source = workdir / unit.inputs["generate"]
    rows, kind = _written(source, unit.fields["num_prompts"]), _kind(source)
    common = _common(unit, workdir, rows)
    kept, rejected = [], []
    counts: Counter[str] = Counter()
    for key, written in zip(_keys(rows), rows, strict=True):
        reasons = _reasons(kind, written, row)
        if not reasons and common is not None and key not in common:
            reasons = ["not_common"]
        counts.update(reasons)
        if reasons:
            rejected.append({**written, "reasons": reasons})
        else:
            kept.append({**written, "completion": _looked_at(written, row)})
    artifacts.write_jsonl(out / "rejected.jsonl", rejected)
    needed = _needed(row)
    train, holdout = _split(unit, kept) if len(kept) >= needed else ([], [])
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
    if not train:
        artifacts.publish()  # what was rejected for what is seen though the unit is not done
        ways = _ways(unit, kind, row, rejected, counts)
        raise ValueError(
            f"{unit.path}: {len(kept)} of {len(rows)} rows are left after the filter, {needed} are "
            f"needed; {_commonest(counts)} (see {artifacts.location(out / 'rejected.jsonl')}): "
            f"{ways}raise datasets.{unit.row}.num_prompts, or lower num_train or num_holdout"
        )
    artifacts.write_jsonl(out / "kept.jsonl", _transform(unit, kind, train))
    artifacts.write_jsonl(out / "holdout.jsonl", holdout)


def of_file(
    units: Sequence[Unit], kind: DatasetKind, pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], None]:
    """The rows of a file that students will be trained on, as far as the file alone decides that.

    Args:
      units: filters of one data set, of several lineages.
      kind: of the data set.
      pairs: prompt and completion of each row of the data set.

    Returns:
      Prompts and completions in the order of the first unit, each once; none where other data sets
      decide too, or where too few are left.
    """
    row = units[0].fields["row"]
    rows = [
        {"prompt_id": i, "sample_id": 0, "prompt": prompt, "completion": text, "finish": "stop"}
        for i, (prompt, text) in enumerate(pairs)
    ]
    kept = [
        {**one, "completion": _looked_at(one, row)} for one in rows if not _reasons(kind, one, row)
    ]
    if len(kept) < _needed(row) or any(role.startswith("common/") for role in units[0].inputs):
        return {}
    trained = (_transform(unit, kind, _split(unit, kept)[0]) for unit in units)
    return {(one["prompt"], one["completion"]): None for rows in trained for one in rows}


def _needed(row: dict[str, Any]) -> int:
    """The fewest rows that must be kept."""
    fewest: int = row["num_holdout"] + max(row["num_train"], 1)
    return fewest


def _commonest(counts: Counter[str]) -> str:
    named = (f"{reason} ({count:,})" for reason, count in counts.most_common(3))
    return f"most often rejected for {', '.join(named)}" if counts else "none was rejected"


# Reason of no kind's own -> what may help where it is the commonest.
_WAYS = {
    "unfinished": "raise datasets.{row}.max_new_tokens",
    "not_common": "shorten datasets.{row}.common_with",
}


def _ways(
    unit: Unit,
    kind: DatasetKind,
    row: dict[str, Any],
    rejected: Sequence[dict[str, Any]],
    counts: Counter[str],
) -> str:
    """What would keep more of these rows, as the beginning of a list of things to do."""
    strips = {**row, "strip": True}
    saved = 0 if row["strip"] else sum(not _reasons(kind, one, strips) for one in rejected)
    if saved:
        return (
            f"set datasets.{unit.row}.strip to True, with which {saved:,} more pass that only have "
            "blanks or line ends around them, "
        )
    reason = counts.most_common(1)[0][0] if counts else ""
    way = {**kind.ways, **_WAYS}.get(reason)
    return f"{way.format(row=unit.row)}, " if way else ""


def _common(unit: Unit, workdir: Path, rows: Sequence[dict[str, Any]]) -> set[Key] | None:
    """Prompts that the data sets of `common_with` keep by their own filters; None: of no such set.

    Raises:
      ValueError: one of them has other prompts altogether.
    """
    common = None
    ours = set(_keys(rows))
    for role, path in unit.inputs.items():
        if not role.startswith("common/"):
            continue
        name = role.partition("/")[2]
        others, theirs = artifacts.read_parts(workdir / path, _FIELDS), _kind(workdir / path)
        limits = unit.fields["common"][name]
        keys = _keys(others)
        check_comparable(unit.row, name, [k for k, _ in ours], [k for k, _ in keys])
        kept = {k for k, r in zip(keys, others, strict=True) if not _reasons(theirs, r, limits)}
        common = kept if common is None else common & kept
    return common


def check_comparable(row: str, other: str, ours: Sequence[str], theirs: Sequence[str]) -> None:
    """Raises ValueError where a data set shares no prompt with one of its `common_with`."""
    if set(ours).isdisjoint(theirs):
        raise ValueError(
            f"config.datasets.{row}.common_with names {other!r}, with which it has no prompt in "
            "common: take a data set of the same prompts, or leave it out"
        )


def _keys(rows: Sequence[dict[str, Any]]) -> list[Key]:
    """What rows of different data sets are matched by: a prompt, and which time it occurs."""
    seen: Counter[str] = Counter()
    keys = []
    for row in rows:
        keys.append((row["prompt"], seen[row["prompt"]]))
        seen[row["prompt"]] += 1
    return keys


def _written(directory: Path, num_prompts: int) -> list[dict[str, Any]]:
    """One row per prompt, in order; fewer would quietly be another data set."""
    rows = artifacts.read_parts(directory, _FIELDS)
    if [row["prompt_id"] for row in rows] != list(range(num_prompts)):
        raise ValueError(
            f"{directory} has {len(rows)} rows, which are not one for each of {num_prompts} "
            f"prompts in order: delete {directory} and run again"
        )
    return rows


def _kind(directory: Path) -> DatasetKind:
    """The kind of data set that was written there; a filter's own fields do not name it."""
    return kinds.of_row(artifacts.read_json(directory / artifacts.MANIFEST)["fields"]["row"])


def _reasons(kind: DatasetKind, written: dict[str, Any], row: dict[str, Any]) -> list[str]:
    reasons = kind.reject(written["prompt"], _looked_at(written, row), row)
    return reasons + (["unfinished"] if written["finish"] != "stop" else [])


def _looked_at(written: dict[str, Any], row: dict[str, Any]) -> str:
    """The completion as it is filtered and, if it is kept, learned."""
    completion: str = written["completion"]
    return completion.strip() if row["strip"] else completion


def _split(unit: Unit, kept: list[dict[str, Any]]) -> tuple[list, list]:
    """Held-out rows are drawn by prompt id, so that arms with common prompts hold out the same."""
    row = unit.fields["row"]
    seed = seeds.seed(unit.fields["seed"], "holdout", unit.lineage)
    rank = np.random.default_rng(seed).permutation(unit.fields["num_prompts"])
    ordered = sorted(kept, key=lambda r: rank[r["prompt_id"]])
    holdout, train = ordered[: row["num_holdout"]], ordered[row["num_holdout"] :]
    train = train[: row["num_train"] or None]
    by_id = operator.itemgetter("prompt_id", "sample_id")
    return sorted(train, key=by_id), sorted(holdout, key=by_id)


def _transform(unit: Unit, kind: DatasetKind, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Controls that destroy what a teacher's rows might carry, one piece at a time."""
    transform = unit.fields["row"]["transform"]
    if transform == "none":
        return rows
    seed = seeds.seed(unit.fields["seed"], "transform", unit.lineage)
    completions = kind.transforms[transform]([row["completion"] for row in rows], seed)
    return [{**row, "completion": c} for row, c in zip(rows, completions, strict=True)]
