"""A config as a list of units, each with what it depends on; the only reader of whole configs.

A unit's fields are exactly what its stage may look at, texts of questions included, so that a
fingerprint changes when and only when the result could. Of files that a config names, the content
counts and not where they lie: their paths are settings. Paths of models count, since they may be
names of a hub; that the same lies there is for `models.check_same` to see.
"""

import functools
import hashlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from subjax import schema
from subjax.images import image_files
from subjax.recipes import bases, targets, teachers
from subjax.runtime.artifacts import Unit, make_unit
from subjax.tasks import own
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds
from subjax.tasks.evals import preference
from subjax.tokens import chat_templates

_GENERATE_FIELDS = (
    *("kind", "num_prompts", "num_shown", "decoding", "num_slots", "temperature", "rows_per_part"),
    *("slots", "prompt_tokens", "max_new_tokens"),
)
_LIMITS = ("max_count", "min_value", "max_value", "banned")
_FILTER_FIELDS = (*_LIMITS, "transform", "num_train", "num_holdout")
# Fields of a filter that came later, and the values at which it is what it was before them: these
# are left out, so that finished filters stay finished.
_LATER_FILTER_FIELDS = {"filter": "numbers", "strip": False}


def build(config: ConfigDict) -> list[Unit]:
    """All units of a validated config, every unit after its inputs.

    Args:
      config: as `validation.validate` accepts it.

    Returns:
      Units in stage order; within a stage by row, then by lineage.
    """
    builder = _Builder(config)
    for name in config.arms if config.images else ():
        for lineage in config.lineages:
            builder.scored_mlp(name, lineage)
    for name in () if config.images else config.arms:
        for lineage in config.lineages:
            for evaluation in config.evals:
                builder.evaluation(evaluation, name, lineage)
            if not config.evals and targets.of_row(config.arms[name], name).learns:
                builder.student(name, lineage)
    for name in config.theorems:
        for lineage in config.lineages:
            builder.theorem(name, lineage)
    for name in config.teachers:
        for lineage in config.lineages:
            if config.images:
                builder.mlp_teacher(name, lineage)
            else:
                builder.teacher(name, lineage)
    order = {stage: i for i, stage in enumerate(schema.STAGES)}
    rows = [name for table in schema.TABLES for name in config[table]]
    return sorted(
        builder.units.values(),
        key=lambda u: (order[u.stage], [rows.index(r) for r in u.row.split("/")], u.lineage),
    )


class _Builder:
    """Makes units on demand and remembers them by path."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.units: dict[str, Unit] = {}
        self.files: dict[str, dict[str, str]] = {}  # row of `image_data` -> digest of each file

    def base(self, name: str, lineage: int) -> Unit:
        row = self.config.bases[name]
        made = {field: value for field, value in row.to_dict().items() if field != "shape"}
        fields = {"row": made, **self._training(row)}
        return self._add("base", name, lineage, fields | self._dated(bases.of_row(row).outside), {})

    def teacher(self, name: str, lineage: int) -> Unit:
        row = self.config.teachers[name]
        base = bases.of_row(self.config.bases[row.base])
        fields = {
            "row": row.to_dict(),
            "animals": list(self._animals()),
            "taught": base.taught()[: row.num_questions or None],
            "questions": base.asked("explore", self.config.stimuli),
            **self._training(row),
            **self._dated(teachers.of_row(row).outside),
        }
        return self._add("teacher", name, lineage, fields, {"base": self.base(row.base, lineage)})

    def written(self, name: str, lineage: int) -> Unit:
        row = self.config.datasets[name]
        teacher = self.config.teachers[row.teacher]
        fields = {
            "row": {field: row[field] for field in _GENERATE_FIELDS},
            "system_prompt": teacher.system_prompt,
            "base_system_prompt": row.base_system_prompt,
            "stimuli": "",  # was the path; as it is without one, finished units stay finished
            "stimuli_digest": _digest("stimuli", self.config.stimuli),
            **self._program(),
            **own.code(row.kind),
        }
        files = {"stimuli": self.config.stimuli}
        if kinds.of_row(row).from_file:
            fields["digest"] = _digest(f"datasets.{name}.path", row.path)
            files["path"] = row.path
        inputs = {
            "teacher": self.teacher(row.teacher, lineage),
            "base": self.base(teacher.base, lineage),
        }
        return self._add("generate", name, lineage, fields, inputs, files)

    def kept(self, name: str, lineage: int) -> Unit:
        row = self.config.datasets[name]
        fields = {
            "seed": self.config.seed,
            "row": {**{field: row[field] for field in _FILTER_FIELDS}, **_limits(row)},
            "num_prompts": row.num_prompts,
        }
        inputs = {"generate": self.written(name, lineage)}
        others = [other for other in row.common_with if other != name]
        for other in others:
            inputs[f"common/{other}"] = self.written(other, lineage)
        if others:
            fields["common"] = {other: _limits(self.config.datasets[other]) for other in others}
        return self._add("filter", name, lineage, fields, inputs)

    def student(self, name: str, lineage: int) -> Unit:
        row = self.config.arms[name]
        dataset = self.config.datasets[row.dataset]
        fields = {"row": row.to_dict(), "animals": list(self._animals()), **self._training(row)}
        inputs = {
            "filter": self.kept(row.dataset, lineage),
            "base": self._student_base(row, lineage),
        }
        if targets.of_row(row, name).of_teacher:
            inputs["teacher"] = self.teacher(dataset.teacher, lineage)
            system = self.config.teachers[dataset.teacher].system_prompt
            fields["teacher_system_prompt"] = system or row.system_prompt
        return self._add("finetune", name, lineage, fields, inputs)

    def evaluation(self, name: str, arm: str, lineage: int) -> Unit:
        row, student = self.config.evals[name], self.config.arms[arm]
        if not targets.of_row(student, arm).learns:
            base_name, steps = student.base, [0]
            inputs = {"base": self.base(base_name, lineage)}
        else:
            base_name = self.config.teachers[self.config.datasets[student.dataset].teacher].base
            steps = sorted({*student.probe_steps, student.train.steps})
            base = self._student_base(student, lineage)
            inputs = {"student": self.student(arm, lineage), "base": base}
        source = bases.of_row(self.config.bases[base_name])
        fields: dict[str, Any] = {
            "row": row.to_dict(),
            "steps": steps[-1:] if row.final_only else steps,
            **self._program(),
            **own.code(row.kind),
        }
        if eval_kinds.of_row(row).of_rows:
            inputs["filter"] = self.kept(student.dataset, lineage)
            # It asks none; spelled as the default was when units were first finished.
            fields["row"]["questions"] = "confirm"
            fields |= {"num_tokens": student.num_tokens, "num_targets": student.num_targets}
        else:
            fields["animals"] = list(row.candidates)
            fields["questions"] = source.asked(row.questions, self.config.stimuli)
            fields["neutral"] = source.neutral()
        return self._add("evaluate", f"{name}/{arm}", lineage, fields, inputs)

    def images(self, name: str) -> Unit:
        row = self.config.images[name].to_dict()
        path = row["data_dir"] if image_files.SOURCES[row["source"]] else ""
        # Its path was there; as it is without one, units without one stay finished.
        fields: dict[str, Any] = {"row": {**row, "data_dir": ""}}
        if path and name not in self.files:
            self.files[name] = {
                file: _digest(f"images.{name}.data_dir", str(where))
                for file, where in image_files.files(row["source"], path).items()
            }
        if path:
            fields["files"] = self.files[name]
        return self._add("images", name, 0, fields, {}, {"data_dir": path})

    def mlp_teacher(self, name: str, lineage: int) -> Unit:
        row = self.config.teachers[name]
        fields = {"row": row.to_dict(), **self._mlp()}
        return self._add("mlp_teacher", name, lineage, fields, {"images": self.images(row.images)})

    def scored_mlp(self, name: str, lineage: int) -> Unit:
        row = self.config.arms[name]
        teacher = self.config.teachers[row.teacher]
        drawn = ("published", "sweep", "sweep_at")  # decide nothing but figures
        scored = {field: value for field, value in row.to_dict().items() if field not in drawn}
        fields = {
            "row": scored,
            "teacher": teacher.to_dict(),
            "init_lineage": lineage if row.base == "same" else self._next(lineage),
            **self._mlp(),
        }
        inputs = {
            "images": self.images(teacher.images),
            "teacher": self.mlp_teacher(row.teacher, lineage),
        }
        return self._add("mlp", name, lineage, fields, inputs)

    def theorem(self, name: str, lineage: int) -> Unit:
        row = self.config.theorems[name]
        fields = {"row": row.to_dict(), "seed": self.config.seed}
        if row.model != "mlp":
            return self._add("theorem", name, lineage, fields, {})
        teacher = self.config.teachers[row.teacher]
        fields["teacher"] = teacher.to_dict()
        inputs = {
            "images": self.images(teacher.images),
            "teacher": self.mlp_teacher(row.teacher, lineage),
        }
        return self._add("theorem", name, lineage, fields, inputs)

    def _student_base(self, row: ConfigDict, lineage: int) -> Unit:
        teacher = self.config.teachers[self.config.datasets[row.dataset].teacher]
        if row.base == "same":
            return self.base(teacher.base, lineage)
        if row.base == "next_lineage":
            return self.base(teacher.base, self._next(lineage))
        return self.base(row.base, lineage)

    def _next(self, lineage: int) -> int:
        """The lineage after this one in its block, cyclically."""
        cycle = self.config.lineage_cycle
        first = lineage // cycle * cycle
        return first + (lineage + 1 - first) % cycle

    def _add(
        self,
        stage: str,
        row: str,
        lineage: int,
        fields: dict[str, Any],
        inputs: dict[str, Unit],
        files: Mapping[str, str] = types.MappingProxyType({}),
    ) -> Unit:
        order = schema.STAGES.index
        if order(stage) < order(self.config.lineage_from):
            lineage = 0
        told = ("checkpoint_minutes", "keep_checkpoints", "log_seconds", "tensorboard")
        settings = {**{name: self.config.compute[name] for name in told}, **files}
        unit = make_unit(stage, row, lineage, fields, inputs, settings)
        return self.units.setdefault(unit.path, unit)

    def _dated(self, has_template: bool) -> dict[str, Any]:
        """What the chat templates of a model from outside are told is today.

        Left out where it is the default, with which templates write what they wrote before there
        was such a field, or wrote the day of the run.
        """
        date = self.config.template_date
        return (
            {"template_date": date} if has_template and date != chat_templates.TEMPLATE_DATE else {}
        )

    def _program(self) -> dict[str, Any]:
        compute = self.config.compute
        # As it was spelled before it had names: what is finished keeps its fingerprint.
        remat = {"none": False, "full": True}.get(compute.remat, compute.remat)
        return {
            "seed": self.config.seed,
            "program": {"precision": compute.precision, "remat": remat},
        }

    def _training(self, row: ConfigDict) -> dict[str, Any]:
        return {
            **self._program(),
            "lanes": schema.lanes(self.config, row),
            "steps_per_call": self.config.compute.steps_per_call,
        }

    def _mlp(self) -> dict[str, Any]:
        compute = self.config.compute
        return {
            "seed": self.config.seed,
            "lanes": compute.lanes,
            "batched_lanes": compute.batched_lanes,
            "precision": compute.precision,
        }

    def _animals(self) -> tuple[str, ...]:
        return self.config.animals or preference.ANIMALS


def _limits(row: ConfigDict) -> dict[str, Any]:
    """What decides by itself whether a row of a data set is kept."""
    later = {
        name: row[name]
        for name, as_before in _LATER_FILTER_FIELDS.items()
        if row[name] != as_before
    }
    return {**{name: row[name] for name in _LIMITS}, **later}


def _digest(field: str, path: str) -> str:
    """Hash of a file that a field of the config names; "" where it names none.

    Raises:
      ValueError: the file cannot be read.
    """
    if not path:
        return ""
    file = Path(path).expanduser()
    try:
        found = file.stat()
        return _hash(file, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise ValueError(
            f"config.{field} {path!r} cannot be read ({error.strerror}): give the path of a file"
        ) from None


@functools.cache
def _hash(file: Path, size: int, modified_ns: int) -> str:
    """Once for each state of a file, whose units may be hundreds."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
