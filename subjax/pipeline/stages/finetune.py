"""Students: a base finetuned on kept rows, hard labels or the teacher's distribution."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from subjax.engine import batching, scoring, train
from subjax.engine.model import Model
from subjax.nn import starts
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.pipeline import model_store
from subjax.pipeline.stages import lessons, training
from subjax.recipes import targets, tunings
from subjax.recipes.targets import Targets
from subjax.runtime import artifacts, seeds
from subjax.runtime.artifacts import Unit
from subjax.tokens.tokenizer import Tokenizer


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Trains students of one shape, one lane each; yields each unit when it is done."""
    row, tuning = units[0].fields["row"], tunings.of_row(units[0].fields["row"])
    bases = training.bases(units, workdir, mesh, tuning)
    bases = [_started(unit, base) for unit, base in zip(units, bases, strict=True)]
    arch = bases[0].arch
    rows = [_rows(unit, workdir, base.tokenizer) for unit, base in zip(units, bases, strict=True)]
    learned = targets_of(units[0])
    support = learned.support(bases[0].tokenizer)
    teachers = _prepare(units, workdir, arch, rows, support, mesh) if learned.of_teacher else []
    stacked = train.stack(teachers) if teachers else None
    teachers.clear()  # each is as large as the student

    def keep(lane: int, step: int, trained: Params) -> None:
        base, out = bases[lane], workdir / units[lane].path / model_store.step_name(step)
        # What is the base lies there already.
        if step == 0 and not tuning.is_adapter and not base.is_changed:
            model_store.refer(out, base.directory, options=base.tokenizer.template.options)
        else:
            training.save(out, base, tuning, trained)

    population = training.Population(units, workdir, mesh, _seed)
    yield from population.fit(
        arch,
        *population.initial(tuning, bases),
        rows,
        keep,
        probe_steps=row["probe_steps"],
        teachers=stacked,
        lora_scale=tuning.scale,
        support=support,
        distils=learned.online,
        excluded=learned.excluded(bases[0].tokenizer),
    )


def check_start(unit: Unit, arch: Architecture) -> None:
    """Raises a ValueError where a student cannot start from its base as its row says."""
    try:
        starts.check_arch(unit.fields["row"]["start"], arch)
    except ValueError as error:
        raise ValueError(f"config.arms.{unit.row}: {error}") from None


def _started(unit: Unit, base: Model) -> Model:
    """The model that a student is before its first update."""
    row = unit.fields["row"]
    key = jax.random.key(_seed(unit, "start"))
    params = starts.change(row["start"], base.arch, base.params, key, row["start_size"])
    return (
        base if params is base.params else dataclasses.replace(base, params=params, is_changed=True)
    )


def _prepare(
    units: Sequence[Unit],
    workdir: Path,
    arch: Architecture,
    rows: list[batching.Rows],
    support: tuple[int, ...],
    mesh: Mesh,
) -> list[Any]:
    """Gives each lane's rows what a soft loss needs; returns teachers of online distillation."""
    along = []
    for lane, unit in enumerate(units):
        online = targets_of(unit).online
        # An adapter is merged into weights that are not rounded.
        precision = "float32" if online else unit.fields["program"]["precision"]
        teacher = model_store.load(workdir / unit.inputs["teacher"], mesh, precision=precision)
        if online and teacher.arch != arch:
            raise ValueError(
                f"{unit.path}: its teacher has another architecture, and support "
                f"{unit.fields['row']['support']!r} computes both as one: take support 'top_k', or "
                "method 'hard'"
            )
        rows[lane] = _with_teacher(unit, workdir, rows[lane], teacher, support, mesh)
        if online:
            along.append(teacher.merged())
    return along


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


def targets_of(unit: Unit) -> Targets:
    """What a unit's student learns from its rows."""
    return targets.of_row(unit.fields["row"], unit.row, unit.fields.get("names", ()))


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


@dataclasses.dataclass(frozen=True)
class _Teacher:
    """A unit's teacher, and the rows of its student as the teacher sees them."""

    unit: Unit
    model: Model
    seen: batching.Rows
    workdir: Path
    mesh: Mesh

    @property
    def _how(self) -> dict[str, Any]:
        # In the precision of training: a student that equals its teacher has nothing to learn.
        precision = self.unit.fields["program"]["precision"]
        return {"mesh": self.mesh, "adapter": self.model.adapter, "precision": precision}

    def likeliest(self, num_tokens: int) -> dict[str, Any]:
        found = self.model.arch, self.model.params, self.seen
        ids, soft = scoring.top_log_probs(*found, num_tokens, **self._how)
        return {"soft": soft, "soft_ids": ids}

    def over(self, tokens: Sequence[int]) -> dict[str, Any]:
        found = self.model.arch, self.model.params, self.seen
        parts = scoring.restricted_log_probs(*found, tuple(tokens), **self._how)
        try:
            shape = (*self.seen.targets.shape, len(tokens))
            return {"soft": batching.on_disk(parts, shape, self.workdir)}
        except ValueError as error:
            raise ValueError(f"{self.unit.path}: {error}") from None

    def reading(self) -> dict[str, Any]:
        return {
            "teacher_tokens": self.seen.tokens,
            "teacher_positions": self.seen.positions,
        }


def _with_teacher(
    unit: Unit,
    workdir: Path,
    rows: batching.Rows,
    teacher: Model,
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
    learned = targets_of(unit)
    added = learned.fields(support, _Teacher(unit, teacher, seen, workdir, mesh))
    return dataclasses.replace(rows, **added, weights=learned.weights(rows, support))


def _seed(unit: Unit, use: str) -> int:
    # Not the arm: students of one lineage share data order and adapter, so that arms are paired.
    return seeds.seed(unit.fields["seed"], "finetune", use, unit.lineage)
