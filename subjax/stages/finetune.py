"""Students: a base finetuned on kept rows, hard labels or the teacher's distribution."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from subjax import artifacts, batching, lora, models, scoring, seeds, train
from subjax.artifacts import Unit
from subjax.tokenizer import Tokenizer


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Trains students of one shape, one lane each; yields each unit when it is done."""
    row, fields = units[0].fields["row"], units[0].fields["row"]["train"]
    bases = [models.load(workdir / unit.inputs["base"], mesh) for unit in units]
    arch, full = bases[0].arch, row["tuning"] == "full"
    rows = [
        _rows(unit, workdir, base.tokenizer, mesh) for unit, base in zip(units, bases, strict=True)
    ]
    support = _support(units[0], bases[0].tokenizer)
    if row["method"] == "soft":
        rows = [
            _with_soft_targets(unit, workdir, laid, support, mesh)
            for unit, laid in zip(units, rows, strict=True)
        ]
    program = train.Program(
        arch,
        train.Optimizer.of(fields),
        fields["steps"],
        lora_scale=0.0 if full else row["lora_alpha"] / row["lora_rank"],
        support=support,
        **units[0].fields["program"],
    )
    keys = [jax.random.key(_seed(unit, "adapter")) for unit in units]
    history = []
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
        probe_steps=row["probe_steps"],
        steps_per_call=units[0].fields["steps_per_call"],
        mesh=mesh,
        label=f"finetuning {', '.join(sorted({unit.row for unit in units}))}",
    ):
        history.append(progress)
        for lane, (unit, base) in enumerate(zip(units, bases, strict=True)):
            tree = train.lane(progress.trainable, lane)
            _keep(workdir / unit.path / models.step_name(progress.step), row, base, tree)
    for lane, unit in enumerate(units):
        metrics = train.metric_rows(history, lane)
        artifacts.write_jsonl(workdir / unit.path / "metrics.jsonl", metrics)
        yield unit


def _keep(out: Path, row: dict[str, Any], base: models.Model, tree: Any) -> None:
    if row["tuning"] == "full":
        models.save_weights(out, base.arch, tree, base.tokenizer)
    else:
        models.save_adapter(
            out, base.directory, tree, rank=row["lora_rank"], alpha=row["lora_alpha"]
        )


def _rows(
    unit: Unit, workdir: Path, words: Tokenizer, mesh: Mesh, system: str | None = None
) -> batching.Rows:
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


def _support(unit: Unit, words: Tokenizer) -> tuple[int, ...]:
    """The tokens that soft targets range over; none for hard labels."""
    row = unit.fields["row"]
    if row["method"] == "hard":
        return ()
    if row["support"] == "trait":
        return tuple(sorted({ids[0] for ids in words.answer_ids(unit.fields["animals"])}))
    digits = set(words.number_ids())
    if row["support"] == "digits_separators":
        digits |= {i for text in (",", " ", ";") for i in words.encode([text])[0]}
        digits |= set(words.eos_ids)
    return tuple(sorted(digits))


def _with_soft_targets(
    unit: Unit, workdir: Path, rows: batching.Rows, support: tuple[int, ...], mesh: Mesh
) -> batching.Rows:
    """Adds the teacher's distribution at every target; off the support a target does not count."""
    teacher = models.load(workdir / unit.inputs["teacher"], mesh)
    seen = _rows(unit, workdir, teacher.tokenizer, mesh, unit.fields["teacher_system_prompt"])
    if not np.array_equal(seen.targets, rows.targets):
        raise ValueError(
            f"{unit.path}: teacher and student split the completions into other tokens; soft "
            "targets need one tokenizer: use method = 'hard'"
        )
    soft = scoring.restricted_log_probs(
        teacher.arch, teacher.params, seen, support, mesh=mesh, adapter=teacher.adapter
    )
    weights = rows.weights
    if unit.fields["row"]["support"] != "trait":
        weights = weights * np.isin(rows.targets, support)
    return dataclasses.replace(rows, soft=soft, weights=weights.astype(np.float32))


def _seed(unit: Unit, use: str) -> int:
    # Not the arm: students of one lineage share data order and adapter, so that arms are paired.
    return seeds.seed(unit.fields["seed"], "finetune", use, unit.lineage)
