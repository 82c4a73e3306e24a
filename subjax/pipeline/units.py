"""A config of language models as a list of units, each with what it depends on.

A unit's fields are exactly what its stage may look at, texts of questions included, so that a
fingerprint changes when and only when the result could; `unit_builder` says what of them a
fingerprint counts. Paths of models count, since they may be names of a hub; that the same lies
there is for `model_store.check_same` to see.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from subjax import schema, subjects, unit_builder
from subjax.recipes import bases, targets, teachers
from subjax.runtime.artifacts import Unit
from subjax.tasks import own
from subjax.tasks.api import BASE, CONTROL, JUDGE, SUBJECT, Kind
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds
from subjax.tasks.traits import kinds as trait_kinds
from subjax.tokens.chat_templates import TemplateOptions

_GENERATE_FIELDS = (
    *("kind", "num_prompts", "decoding", "temperature", "rows_per_part", "slots", "prompt_tokens"),
    "max_new_tokens",
)
_FILTER_FIELDS = ("transform", "num_train", "num_holdout")
# Fields of evals that say what is asked of whom; a unit has the answers to that by themselves.
_RESOLVED = ("trait", "subjects", "at_steps", "questions", "system_prompt")


def build(config: ConfigDict) -> list[Unit]:
    """All units of a config that `validation.validate` accepts, every unit after its inputs."""
    builder = _Builder(config)
    for lineage in config.lineages:
        for name in config.arms:
            builder.student(name, lineage)
        for name in config.evals:
            for subject in subjects.of_eval(config, name):
                builder.evaluation(name, subject, lineage)
        for name in config.teachers:
            builder.teacher(name, lineage)
    return builder.ordered()


class _Builder(unit_builder.UnitBuilder):
    """Knows what bases, teachers, rows, students and scores are made from."""

    rows: ClassVar[Mapping[str, Mapping[str, schema.Maker]]] = {
        "base": {"row": schema.base_row},
        "teacher": {"row": schema.teacher_row, "trait": schema.trait_row},
        "generate": {"row": schema.dataset_row},
        "filter": {"row": schema.dataset_row},
        "finetune": {"row": schema.arm_row},
        "evaluate": {"row": schema.eval_row},
    }

    def told(self, stage: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        told = super().told(stage, fields)
        if "common" in fields:
            limits = fields["common"].items()
            told["common"] = {
                name: unit_builder.counted(row, schema.dataset_row) for name, row in limits
            }
        return told

    @unit_builder.once
    def base(self, name: str, lineage: int) -> Unit:
        row = self.config.bases[name]
        made = row.to_dict()
        del made["shape"], made["system_turn"]  # the latter is of its chat template
        fields = {"row": made, **self._training(row)}
        if bases.of_row(row).outside:
            fields |= self._template_options(name)
        return self.add("base", name, lineage, fields, {})

    @unit_builder.once
    def teacher(self, name: str, lineage: int) -> Unit:
        row = self.config.teachers[name]
        kind = teachers.of_row(row, name)
        made = {field: value for field, value in row.to_dict().items() if field != "trait"}
        made["system_prompt"] = subjects.told(self.config, name)
        fields = {"row": made, **self._training(row)}
        if kind.outside:
            fields |= self._template_options(row.base)
        paths: dict[str, str] = {}
        if kind.learns:
            trait = self.config.traits[row.trait]
            fields["trait"], more, paths = _of_kind(
                f"traits.{row.trait}", trait, trait_kinds.of_row(trait)
            )
            fields |= more
        inputs = {"base": self.base(row.base, lineage)}
        return self.add("teacher", name, lineage, fields, inputs, paths)

    @unit_builder.once
    def written(self, name: str, lineage: int) -> Unit:
        """The rows of a data set before its filter, written once for all sets that share them."""
        row = self.config.datasets[name]
        teacher = self.config.teachers[row.teacher]
        alike = next(
            other
            for other, one in self.config.datasets.items()
            if (one.kind, one.teacher) == (row.kind, row.teacher)
            and self._asked(other) == self._asked(name)
        )
        inputs = {
            "teacher": self.teacher(row.teacher, lineage),
            "base": self.base(teacher.base, lineage),
        }
        fields, files = self._asked(name)
        return self.add("generate", alike, lineage, fields, inputs, files)

    @unit_builder.once
    def _asked(self, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """What is asked of a data set's teacher, and from which files."""
        row = self.config.datasets[name]
        kind = kinds.of_row(row)
        asked = [field for field, told in kind.fields.items() if not told.filters]
        made, more, paths = _of_kind(f"datasets.{name}", row, kind)
        fields = {
            "row": {field: made[field] for field in (*_GENERATE_FIELDS, *asked)},
            "system_prompt": subjects.told(self.config, row.teacher),
            "stimuli_digest": unit_builder.digest("stimuli", self.config.stimuli),
            **self._program(),
            **more,
        }
        return fields, {"stimuli": self.config.stimuli, **paths}

    @unit_builder.once
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
        return self.add("filter", name, lineage, fields, inputs)

    @unit_builder.once
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
        return self.add("finetune", name, lineage, fields, inputs)

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
        if not self.config.compute.exact:
            fields["exact"] = False
        settings = {**paths, "system_field": f"config.evals.{name}.system_prompt"}
        if row.system_prompt != schema.OWN:
            asked = (SUBJECT, BASE, *fields["systems"])
            fields["systems"] = dict.fromkeys(asked, row.system_prompt)
        elif table in ("arms", "teachers"):
            settings["system_field"] = f"config.{table}.{of}.system_prompt"
        elif table == "datasets":
            settings["system_field"] = f"config.datasets.{of}.base_system_prompt"
        if kind.of_judge:
            inputs["judge"], told = self._judge(row.judge, lineage)
            fields["systems"] = {**fields["systems"], JUDGE: told}
            fields["rubrics"] = dict(kind.rubrics(row, self.config.stimuli))
            # What `compare` knows it by: rows of runs with other judges are not alike.
            del fields["row"]["judge"]
            fields["judge"] = {"row": inputs["judge"].fields["row"], "system_prompt": told}
            settings["judge_field"] = f"config.judges.{row.judge}.system_prompt"
        # A subject that lineages share has one unit.
        shared = inputs[fields["of"]].lineage
        return self.add("evaluate", f"{name}/{subject}", shared, fields, inputs, settings)

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
        kind = eval_kinds.of_row(row)
        if kind.of_kept:
            inputs |= {"kept": self.kept(name, lineage), "against": self.kept(row.against, lineage)}
        if kind.of_control:
            control = self.config.datasets[row.against].teacher
            inputs["control"] = self.teacher(control, lineage)
            fields["systems"][CONTROL] = subjects.told(self.config, control)
        return fields, inputs

    def _judge(self, name: str, lineage: int) -> tuple[Unit, str]:
        """The model that a row of `judges` names, and its system prompt."""
        row = self.config.judges[name]
        table, _, of = row.model.partition("/")
        unit = self.base(of, lineage) if table == "bases" else self.teacher(of, lineage)
        own = "" if table == "bases" else subjects.told(self.config, of)
        return unit, own if row.system_prompt == schema.OWN else row.system_prompt

    def _about(self, row: ConfigDict, trait: str) -> dict[str, Any]:
        """What is asked, and what an eval needs of its trait, if it has one."""
        if not trait:
            asks = eval_kinds.of_row(row).questions(row, (), self.config.stimuli)
            return {"questions": list(asks)} if asks else {}
        of = self.config.traits[trait]
        kind = trait_kinds.of_row(of)
        return {
            "target": kind.target(of),
            "candidates": list(kind.candidates(of)),
            "names": list(kind.names(of)),
            "questions": list(
                eval_kinds.of_row(row).questions(
                    row, kind.questions(of, row.questions, self.config.stimuli), self.config.stimuli
                )
            ),
            "neutral": list(kind.neutral(of)),
        }

    def _student_base(self, row: ConfigDict, lineage: int) -> Unit:
        teacher = self.config.teachers[self.config.datasets[row.dataset].teacher]
        offset = unit_builder.offset(row.base)
        if offset is None:
            return self.base(row.base, lineage)
        return self.base(teacher.base, self.later(lineage, offset))

    def _template_options(self, base: str) -> dict[str, str]:
        """How the chat template of a base from outside is used, or of a teacher given on a base.

        Left out where it is the default, with which templates write what they wrote before there
        were such fields, or wrote the day of the run.
        """
        turn = self.config.bases[base].system_turn
        return TemplateOptions(self.config.template_date, turn).changed()

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


def _limits(row: ConfigDict) -> dict[str, Any]:
    """What decides by itself whether a row of a data set is kept."""
    limits = [name for name, field in kinds.of_row(row).fields.items() if field.filters]
    return {name: row[name] for name in ("kind", "strip", *limits)}


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
        more["digests"] = {
            name: unit_builder.digest(f"{table}.{name}", path) for name, path in paths.items()
        }
    return {**row.to_dict(), **dict.fromkeys(files, "")}, more, paths
