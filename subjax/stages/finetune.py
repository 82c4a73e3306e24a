"""Students: a base finetuned on kept rows, hard labels or the teacher's distribution."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from subjax import (
    artifacts,
    batching,
    checkpoints,
    lessons,
    lora,
    models,
    schema,
    scoring,
    seeds,
    throughput,
    train,
)
from subjax.architecture import Architecture
from subjax.artifacts import Unit
from subjax.tokenizer import Tokenizer


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Trains students of one shape, one lane each; yields each unit when it is done."""
    row, fields = units[0].fields["row"], units[0].fields["row"]["train"]
    bases = [models.load(workdir / unit.inputs["base"], mesh) for unit in units]
    arch, full = bases[0].arch, row["tuning"] == "full"
    rows = [_rows(unit, workdir, base.tokenizer) for unit, base in zip(units, bases, strict=True)]
    support = soft_support(units[0], bases[0].tokenizer)
    # The whole distribution is never stored: the teacher runs along.
    distils = row["method"] == "soft" and row["support"] in schema.WHOLE_VOCABULARY
    teachers = (
        _prepare(units, workdir, arch, rows, support, mesh) if row["method"] == "soft" else []
    )
    program = train.Program(
        arch,
        train.Optimizer.of(fields),
        fields["steps"],
        lora_scale=0.0 if full else row["lora_alpha"] / row["lora_rank"],
        support=support,
        distils=distils,
        excluded=_excluded(units[0], bases[0].tokenizer),
        accumulate=fields["accumulate"],
        **units[0].fields["program"],
    )
    stacked = train.stack(teachers) if teachers else None
    teachers.clear()  # each is as large as the student
    keys = [jax.random.key(_seed(unit, "adapter")) for unit in units]
    history, store = [], checkpoints.Store.of(workdir, units)
    for progress in train.fit(
        program,
        train.stack(
            [base.params for base in bases]
            if full
            else [lora.init(arch, key, rank=row["lora_rank"]) for key in keys]
        ),
        {} if full else bases[0].params,
        rows,
        seeds=[_seed(unit, "order") for unit in units],
        batch_size=fields["batch_size"],
        packing=batching.Packing.of(fields),
        probe_steps=row["probe_steps"],
        steps_per_call=units[0].fields["steps_per_call"],
        mesh=mesh,
        label=f"finetuning {', '.join(sorted({unit.row for unit in units}))}",
        teachers=stacked,
        store=store,
        log=throughput.Log.of(workdir, units),
    ):
        history.append(dataclasses.replace(progress, trainable={}))  # a model is large
        for lane, (unit, base) in enumerate(zip(units, bases, strict=True)):
            out = workdir / unit.path / models.step_name(progress.step)
            _keep(out, row, base, progress, lane)
    for lane, unit in enumerate(units):
        metrics = train.metric_rows(history, lane)
        artifacts.write_jsonl(workdir / unit.path / "metrics.jsonl", metrics)
    # Only now: a population of which some lanes are done could not go on from its checkpoint.
    yield from units
    store.remove()


def _prepare(
    units: Sequence[Unit],
    workdir: Path,
    arch: Architecture,
    rows: list[batching.Rows],
    support: tuple[int, ...],
    mesh: Mesh,
) -> list[Any]:
    """Gives each lane's rows what a soft loss needs; returns the teachers that run along."""
    along = []
    for lane, unit in enumerate(units):
        teacher = models.load(workdir / unit.inputs["teacher"], mesh)
        over = unit.fields["row"]["support"]
        if over in schema.WHOLE_VOCABULARY and teacher.arch != arch:
            raise ValueError(
                f"{unit.path}: its teacher has another architecture, and support {over!r} computes "
                "both as one: take support 'top_k', or method 'hard'"
            )
        rows[lane] = _with_teacher(unit, workdir, rows[lane], teacher, support, mesh)
        if over in schema.WHOLE_VOCABULARY:
            along.append(models.merged(teacher))
    return along


def _keep(
    out: Path, row: dict[str, Any], base: models.Model, progress: train.Progress, lane: int
) -> None:
    full = row["tuning"] == "full"
    if full and progress.step == 0:  # it is the base, which lies there already
        models.refer(out, base.directory, date=base.tokenizer.template.date)
        return
    tree = train.lane(progress.trainable, lane)
    if full:
        models.save_weights(out, base.arch, tree, base.tokenizer)
    else:
        models.save_adapter(out, base, tree, rank=row["lora_rank"], alpha=row["lora_alpha"])


def _rows(unit: Unit, workdir: Path, words: Tokenizer, system: str | None = None) -> batching.Rows:
    row = unit.fields["row"]
    kept = artifacts.read_jsonl(workdir / unit.inputs["filter"] / "kept.jsonl")
    if not kept:
        raise ValueError(f"{unit.inputs['filter']}/kept.jsonl has no rows to train on")
    pairs = [(written["prompt"], written["completion"]) for written in kept]
    system = row["system_prompt"] if system is None else system
    return batching.make_rows(
        words.examples(pairs, [system] * len(pairs)),
        num_tokens=row["num_tokens"],
        num_targets=row["num_targets"],
        pad_id=words.pad_id,
    )


def check(unit: Unit, words: Tokenizer) -> None:
    """Raises a ValueError where a student's tokenizer does not have what its soft targets need."""
    soft_support(unit, words)
    _excluded(unit, words)
    row = unit.fields["row"]
    stored = row["method"] == "soft" and row["support"] == "top_k"
    if stored and row["top_k"] > words.vocab_size:
        raise ValueError(
            f"config.arms.{unit.row}.top_k is {row['top_k']}, but there are {words.vocab_size} "
            "tokens: lower it, or take support 'full'"
        )


def check_rows(
    unit: Unit,
    source: str,
    pairs: Sequence[lessons.Pair],
    ours: lessons.Sizes,
    teachers: lessons.Sizes | None,
) -> None:
    """Finds rows that are known before anything is written and that no student can learn from.

    Args:
      unit: a student.
      source: where the rows are from, for errors.
      pairs: the rows that it will be trained on.
      ours: their sizes as the student reads them.
      teachers: as its teacher reads them, where the loss is soft and that is known.

    Raises:
      ValueError: a row has no loss mask, cannot be encoded, or does not fit.
    """
    row, table = unit.fields["row"], f"config.arms.{unit.row}"
    limits = {field: row[field] for field in ("num_tokens", "num_targets")}
    lessons.check(table, source, pairs, ours, {**limits, **lessons.packed(row["train"])})
    if teachers is not None:
        lessons.check(table, f"{source} under its teacher's system prompt", pairs, teachers, limits)


def soft_support(unit: Unit, words: Tokenizer) -> tuple[int, ...]:
    """The tokens that all soft targets of a unit range over; none where no such set is fixed."""
    row = unit.fields["row"]
    if row["method"] == "hard" or row["support"] in ("top_k", *schema.WHOLE_VOCABULARY):
        return ()
    if row["support"] == "trait":
        return _trait(unit, words)
    digits = set(words.number_ids())
    if not digits:
        raise ValueError(
            f"config.arms.{unit.row}.support is {row['support']!r}, but no token of its tokenizer "
            "is nothing but digits: take support 'top_k', or method 'hard'"
        )
    if row["support"] == "digits_separators":
        digits |= {*words.separator_ids(), *words.eos_ids}
    return tuple(sorted(digits))


def _excluded(unit: Unit, words: Tokenizer) -> tuple[int, ...]:
    """The tokens that full soft targets leave out."""
    row = unit.fields["row"]
    leaves_out = row["method"] == "soft" and row["support"] == "full_no_trait"
    return _trait(unit, words) if leaves_out else ()


def _trait(unit: Unit, words: Tokenizer) -> tuple[int, ...]:
    """Every token that names an animal or begins to: where a trait would leak without numbers."""
    try:
        return words.name_ids(unit.fields["animals"])
    except ValueError as error:
        raise ValueError(
            f"config.arms.{unit.row}.support is {unit.fields['row']['support']!r}, but {error}: "
            "take support 'digits' or 'full'"
        ) from None


def _with_teacher(
    unit: Unit,
    workdir: Path,
    rows: batching.Rows,
    teacher: models.Model,
    support: tuple[int, ...],
    mesh: Mesh,
) -> batching.Rows:
    """Adds what a soft loss needs: stored distributions, or the rows as the teacher sees them."""
    seen = _rows(unit, workdir, teacher.tokenizer, unit.fields["teacher_system_prompt"])
    if not np.array_equal(seen.targets, rows.targets):
        raise ValueError(
            f"{unit.path}: teacher and student split the completions into other tokens; soft "
            "targets need one tokenizer: use method = 'hard'"
        )
    row, model = unit.fields["row"], (teacher.arch, teacher.params, seen)
    # In the precision of training: a student that equals its teacher has nothing to learn.
    precision = unit.fields["program"]["precision"]
    how: dict[str, Any] = {"mesh": mesh, "adapter": teacher.adapter, "precision": precision}
    if row["support"] in schema.WHOLE_VOCABULARY:
        return dataclasses.replace(
            rows, teacher_tokens=seen.tokens, teacher_positions=seen.positions
        )
    if row["support"] == "top_k":
        ids, soft = scoring.top_log_probs(*model, row["top_k"], **how)
        return dataclasses.replace(rows, soft=soft, soft_ids=ids)
    parts = scoring.restricted_log_probs(*model, support, **how)
    try:
        soft = batching.on_disk(parts, (*rows.targets.shape, len(support)), workdir)
    except ValueError as error:
        raise ValueError(f"{unit.path}: {error}") from None
    return dataclasses.replace(rows, soft=soft, weights=loss_weights(unit, rows, support))


def loss_weights(unit: Unit, rows: batching.Rows, support: tuple[int, ...]) -> np.ndarray:
    """[rows, C] what each target counts: nothing where a stored distribution is not about it."""
    if not support or unit.fields["row"]["support"] == "trait":
        return rows.weights
    return (rows.weights * np.isin(rows.targets, support)).astype(np.float32)


def _seed(unit: Unit, use: str) -> int:
    # Not the arm: students of one lineage share data order and adapter, so that arms are paired.
    return seeds.seed(unit.fields["seed"], "finetune", use, unit.lineage)
