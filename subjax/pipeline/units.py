"""A config as a list of units, each with what it depends on; the only reader of whole configs.

A unit's fields are exactly what its stage may look at, texts of questions included, so that a
fingerprint changes when and only when the result could. A field of a row that has the value with
which it was released is left out of the fingerprint, so that a new field makes nothing stale. Of
files that a config names, the content counts and not where they lie: their paths are settings.
Paths of models count, since they may be names of a hub; that the same lies there is for
`model_store.check_same` to see.
"""

import functools
import hashlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from subjax import schema, subjects
from subjax.images import image_files
from subjax.recipes import bases, targets, teachers
from subjax.runtime.artifacts import Unit, dumps, make_unit
from subjax.tasks import own
from subjax.tasks.api import BASE, SUBJECT, Kind
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds
from subjax.tasks.traits import kinds as trait_kinds
from subjax.tokens import chat_templates

_GENERATE_FIELDS = (
    *("kind", "num_prompts", "num_shown", "decoding", "num_slots", "temperature", "rows_per_part"),
    *("slots", "prompt_tokens", "max_new_tokens"),
)
_LIMITS = ("filter", "strip", "max_count", "min_value", "max_value", "banned")
_FILTER_FIELDS = ("transform", "num_train", "num_holdout")
# Fields of evals that say what is asked of whom; a unit has the answers to that by themselves.
_RESOLVED = ("trait", "subjects", "at_steps", "questions", "system_prompt")
# Stage -> field of its units that is a row -> what makes such rows.
_ROWS: Mapping[str, Mapping[str, schema.Maker]] = {
    "base": {"row": schema.base_row},
    "teacher": {"row": schema.teacher_row, "trait": schema.trait_row},
    "generate": {"row": schema.dataset_row},
    "filter": {"row": schema.dataset_row},
    "finetune": {"row": schema.arm_row},
    "evaluate": {"row": schema.eval_row},
    "images": {"row": schema.images_row},
    "mlp_teacher": {"row": schema.mlp_teacher_row},
    "mlp": {"row": schema.mlp_arm_row, "teacher": schema.mlp_teacher_row},
    "theorem": {"row": schema.theorem_row, "teacher": schema.mlp_teacher_row},
}
# These fields are always in the fingerprint, even with their default value.
_ALWAYS = ("kind", "source", "weights", "method")


def build(config: ConfigDict) -> list[Unit]:
    """All units of a validated config, every unit after its inputs.

    Args:
      config: as `validation.validate` accepts it.

    Returns:
      Units in the order of what they need; of one stage by row, then by lineage.
    """
    builder = _Builder(config)
    for name in config.arms:
        for lineage in config.lineages:
            if config.images:
                builder.scored_mlp(name, lineage)
            else:
                builder.student(name, lineage)
    for name in () if config.images else config.evals:
        for subject in subjects.of_eval(config, name):
            for lineage in config.lineages:
                builder.evaluation(name, subject, lineage)
    for name in config.theorems:
        for lineage in config.lineages:
            builder.theorem(name, lineage)
    for name in config.teachers:
        for lineage in config.lineages:
            if config.images:
                builder.mlp_teacher(name, lineage)
            else:
                builder.teacher(name, lineage)
    rows = [name for table in schema.TABLES for name in config[table]]

    def order(unit: Unit) -> tuple[Any, ...]:
        names = [part for part in unit.row.split("/") if part in rows]
        return phase(unit), [rows.index(name) for name in names], unit.lineage

    return sorted(builder.units.values(), key=order)


def phase(unit: Unit) -> tuple[int, int]:
    """Sort key of units: by stage; evals come right after the stage of their subject."""
    order = schema.STAGES.index
    if unit.stage == "evaluate":
        return max(order(path.partition("/")[0]) for path in unit.inputs.values()), 1
    return order(unit.stage), 0


class _Builder:
    """Makes units on demand and remembers them by path."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.units: dict[str, Unit] = {}
        self.files: dict[str, dict[str, str]] = {}  # row of `images` -> digest of each file

    def base(self, name: str, lineage: int) -> Unit:
        row = self.config.bases[name]
        made = {field: value for field, value in row.to_dict().items() if field != "shape"}
        fields = {"row": made, **self._training(row)}
        return self._add("base", name, lineage, fields | self._dated(bases.of_row(row).outside), {})

    def teacher(self, name: str, lineage: int) -> Unit:
        row = self.config.teachers[name]
        kind = teachers.of_row(row, name)
        made = {field: value for field, value in row.to_dict().items() if field != "trait"}
        made["system_prompt"] = subjects.told(self.config, name)
        fields = {"row": made, **self._training(row), **self._dated(kind.outside)}
        paths: dict[str, str] = {}
        if kind.learns:
            trait = self.config.traits[row.trait]
            fields["trait"], more, paths = _of_kind(
                f"traits.{row.trait}", trait, trait_kinds.of_row(trait)
            )
            fields |= more
        inputs = {"base": self.base(row.base, lineage)}
        return self._add("teacher", name, lineage, fields, inputs, paths)

    def written(self, name: str, lineage: int) -> Unit:
        row = self.config.datasets[name]
        kind, teacher = kinds.of_row(row), self.config.teachers[row.teacher]
        asked = [field for field, told in kind.fields.items() if not told.filters]
        made, more, paths = _of_kind(f"datasets.{name}", row, kind)
        fields = {
            "row": {field: made[field] for field in (*_GENERATE_FIELDS, *asked)},
            "system_prompt": subjects.told(self.config, row.teacher),
            "stimuli_digest": _digest("stimuli", self.config.stimuli),
            **self._program(),
            **more,
        }
        files = {"stimuli": self.config.stimuli, **paths}
        if kind.from_file:
            of_rows = {"path": _digest(f"datasets.{name}.path", row.path)}
            fields["digests"] = {**fields.get("digests", {}), **of_rows}
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
        dataset, learned = self.config.datasets[row.dataset], targets.of_row(row, name)
        fields = {"row": row.to_dict(), **self._training(row)}
        inputs = {
            "filter": self.kept(row.dataset, lineage),
            "base": self._student_base(row, lineage),
        }
        if learned.of_teacher:
            inputs["teacher"] = self.teacher(dataset.teacher, lineage)
            system = subjects.told(self.config, dataset.teacher)
            fields["teacher_system_prompt"] = system or row.system_prompt
        if learned.of_trait:
            trait = self.config.traits[self.config.teachers[dataset.teacher].trait]
            fields["names"] = list(trait_kinds.of_row(trait).candidates(trait))
        return self._add("finetune", name, lineage, fields, inputs)

    def evaluation(self, name: str, subject: str, lineage: int) -> Unit:
        """What one eval says of one subject: a row of any of the tables below."""
        row, (table, _, of) = self.config.evals[name], subject.partition("/")
        kind = eval_kinds.of_row(row)
        about = {
            "arms": self._of_arm,
            "teachers": self._of_teacher,
            "bases": self._of_base,
            "datasets": self._of_dataset,
        }
        found, inputs = about[table](row, of, lineage)
        made, more, paths = _of_kind(f"evals.{name}", row, kind)
        fields: dict[str, Any] = {
            "row": {field: value for field, value in made.items() if field not in _RESOLVED},
            "steps": [0],
            **found,
            **self._about(row, subjects.asked_for(self.config, name, subject)),
            **self._program(),
            **more,
        }
        settings = {**paths, "system_field": f"config.evals.{name}.system_prompt"}
        if row.system_prompt != schema.OWN:
            fields["systems"] = dict.fromkeys((SUBJECT, BASE), row.system_prompt)
        elif table in ("arms", "teachers"):
            settings["system_field"] = f"config.{table}.{of}.system_prompt"
        # A subject that lineages share has one unit.
        shared = inputs[fields["of"]].lineage
        return self._add("evaluate", f"{name}/{subject}", shared, fields, inputs, settings)

    def _of_arm(
        self, row: ConfigDict, name: str, lineage: int
    ) -> tuple[dict[str, Any], dict[str, Unit]]:
        arm = self.config.arms[name]
        steps = sorted({*arm.probe_steps, arm.train.steps})
        fields = {
            "of": "student",
            "steps": steps[-1:] if row.at_steps == "final" else steps,
            "systems": dict.fromkeys((SUBJECT, BASE), arm.system_prompt),
        }
        inputs = {
            "student": self.student(name, lineage),
            "base": self._student_base(arm, lineage),
        }
        if eval_kinds.of_row(row).of_rows:
            inputs["filter"] = self.kept(arm.dataset, lineage)
            fields |= {"num_tokens": arm.num_tokens, "num_targets": arm.num_targets}
        return fields, inputs

    def _of_teacher(
        self, row: ConfigDict, name: str, lineage: int
    ) -> tuple[dict[str, Any], dict[str, Unit]]:
        teacher = self.config.teachers[name]
        told = subjects.told(self.config, name)
        fields: dict[str, Any] = {
            "of": "teacher",
            "systems": dict.fromkeys((SUBJECT, BASE), told),
        }
        if eval_kinds.of_row(row).of_rows:
            trait = self.config.traits[teacher.trait]
            held = trait_kinds.of_row(trait).held_out(trait)
            fields |= {"held_out": [list(pair) for pair in held]}
            fields |= {"num_tokens": teacher.num_tokens}
        inputs = {"teacher": self.teacher(name, lineage), "base": self.base(teacher.base, lineage)}
        return fields, inputs

    def _of_base(
        self, row: ConfigDict, name: str, lineage: int
    ) -> tuple[dict[str, Any], dict[str, Unit]]:
        return {"of": "base", "systems": {}}, {"base": self.base(name, lineage)}

    def _of_dataset(
        self, row: ConfigDict, name: str, lineage: int
    ) -> tuple[dict[str, Any], dict[str, Unit]]:
        dataset = self.config.datasets[name]
        written = self.written(name, lineage)
        # As many as the sampled ones have, so that one program serves all data sets.
        num_targets = dataset.max_new_tokens + 2
        fields = {
            "of": "generate",
            "dataset": dataset.kind,
            "systems": {
                SUBJECT: written.fields["system_prompt"],
                BASE: dataset.base_system_prompt,
            },
            "num_tokens": dataset.prompt_tokens + num_targets,
            "num_targets": num_targets,
        }
        inputs = {
            "generate": written,
            "teacher": self.teacher(dataset.teacher, lineage),
            "base": self.base(self.config.teachers[dataset.teacher].base, lineage),
        }
        return fields, inputs

    def _about(self, row: ConfigDict, trait: str) -> dict[str, Any]:
        """What an eval needs of its trait; empty if it has none."""
        if not trait:
            return {}
        of = self.config.traits[trait]
        kind = trait_kinds.of_row(of)
        return {
            "target": kind.target(of),
            "candidates": list(kind.candidates(of)),
            "names": list(kind.names(of)),
            "questions": list(kind.questions(of, row.questions, self.config.stimuli)),
            "neutral": list(kind.neutral(of)),
        }

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
        files: Mapping[str, Any] = types.MappingProxyType({}),
    ) -> Unit:
        order = schema.STAGES.index
        if order(stage) < order(self.config.lineage_from):
            lineage = 0
        told = ("checkpoint_minutes", "keep_checkpoints", "log_seconds", "tensorboard")
        settings = {**{name: self.config.compute[name] for name in told}, **files}
        unit = make_unit(stage, row, lineage, fields, inputs, settings, _told(stage, fields))
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
        return {
            "seed": self.config.seed,
            "program": {"precision": compute.precision, "remat": compute.remat},
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


def _limits(row: ConfigDict) -> dict[str, Any]:
    """What decides by itself whether a row of a data set is kept."""
    own_limits = [name for name, field in kinds.of_row(row).fields.items() if field.filters]
    return {name: row[name] for name in ("kind", *_LIMITS, *own_limits)}


def _of_kind(
    table: str, row: ConfigDict, kind: Kind
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """A row whose kind may name files.

    Args:
      table: and row, for errors: "traits.owl".
      row: of a table whose rows have kinds.
      kind: what it names.

    Returns:
      The row with the files' names left out; fields of a unit for what decides the kind's results
      beside it; and the names of the files by field, which are settings.
    """
    files = [name for name, field in kind.fields.items() if field.is_file]
    paths = {name: row[name] for name in files}
    more: dict[str, Any] = {"version": kind.version, **own.code(row.kind)}
    if files:
        more["digests"] = {name: _digest(f"{table}.{name}", path) for name, path in paths.items()}
    return {**row.to_dict(), **dict.fromkeys(files, "")}, more, paths


def _told(stage: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as a fingerprint counts them: rows without what they were released with."""
    told = dict(fields)
    for name, maker in _ROWS[stage].items():
        if name in fields:
            told[name] = _counted(fields[name], maker)
    if "common" in fields:
        limits = fields["common"].items()
        told["common"] = {name: _counted(row, schema.dataset_row) for name, row in limits}
    return told


def _counted(row: Mapping[str, Any], maker: schema.Maker) -> dict[str, Any]:
    return _changed(row, schema.released(maker, row.get("kind", "")))


def _changed(row: Mapping[str, Any], released: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that are not as they were released, in rows inside it likewise."""
    changed: dict[str, Any] = {}
    for name, value in row.items():
        before = released.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            value, before = _changed(value, before), {}
        if name in _ALWAYS or name not in released or dumps(value) != dumps(before):
            changed[name] = value
    return changed


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
