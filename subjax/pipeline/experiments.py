"""Which kind of experiment a config is; and language models, as the pipeline runs them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from jax.sharding import Mesh
from ml_collections import ConfigDict

from subjax import schema, subjects, unit_builder
from subjax.experiment import Experiment, Run
from subjax.images.experiment import IMAGE_CLASSIFIERS
from subjax.pipeline import language_validation, preflight, units
from subjax.pipeline.stages import base, evaluate, filter, finetune, generate, teacher
from subjax.recipes import bases, teachers, tunings
from subjax.runtime import artifacts
from subjax.runtime.artifacts import Unit
from subjax.tasks.datasets import kinds
from subjax.tasks.traits import kinds as trait_kinds


class _LanguageModels(Experiment):
    """Teachers that write rows, and students that learn from them."""

    name = "language models"
    stages: ClassVar[Mapping[str, Run]] = {
        "base": base.run,
        "teacher": teacher.run,
        "generate": generate.run,
        "filter": filter.run,
        "finetune": finetune.run,
        "evaluate": evaluate.run,
    }
    student_stage = "finetune"
    step_name = "Training step"
    has_prompts = True
    has_gates = True
    is_planned = True

    def validate(self, config: ConfigDict) -> None:
        language_validation.validate(config)

    def build(self, config: ConfigDict) -> list[Unit]:
        return units.build(config)

    def preflight(
        self,
        planned: Sequence[Unit],
        todo: Sequence[Unit],
        workdir: Path,
        mesh: Mesh,
        max_unsharded: float,
    ) -> None:
        preflight.check(planned, todo, workdir, mesh, max_unsharded)

    def shape(self, unit: Unit) -> str:
        if "lanes" not in unit.fields:
            return ""
        row = dict(unit.fields["row"])
        for free in ("dataset", "base", "system_prompt", "start", "start_size"):
            row.pop(free, None)
        row["names"] = unit.fields.get("names", [])  # what a support is made of
        if trait := unit.fields.get("trait"):
            # Lessons of one population have the same room, whichever of them is there.
            trait = unit.with_files("trait")
            row["completions"] = list(trait_kinds.of_row(trait).completions(trait))
        base = unit.inputs.get("base", "")
        # Adapters stand on one base; full weights may differ, but not what they are weights of.
        shared = base if tunings.of_row(row).is_adapter else base.rpartition("/")[0]
        return artifacts.dumps([row, shared])

    def models(self, config: ConfigDict) -> dict[str, tuple[str, str]]:
        found = {}
        for name, row in config.bases.items():
            if bases.of_row(row).outside:
                found[f"bases.{name}"] = row.path, row.revision
                if row.adapter:
                    found[f"bases.{name}.adapter"] = row.adapter, ""
        for name, row in config.teachers.items():
            if teachers.of_row(row).outside:
                found[f"teachers.{name}"] = row.path, ""
        return found

    def files(self, config: ConfigDict) -> dict[str, str]:
        return {
            f"{table}.{name}.{field}": row[field]
            for table, (of_row, _) in schema.OF_KIND.items()
            for name, row in config[table].items()
            for field, told in of_row(row, name).fields.items()
            if told.is_file
        }

    def scored_as(self, config: ConfigDict, unit: Unit) -> tuple[str, str] | None:
        if unit.stage != "evaluate":
            return None
        evaluation, _, subject = unit.row.partition("/")
        return evaluation, subjects.short_name(subject)

    def replication(self, config: ConfigDict) -> str:
        learning = list(config.arms.values())
        sets = [config.datasets[name] for name in dict.fromkeys(row.dataset for row in learning)]
        writers = [config.teachers[name] for name in dict.fromkeys(row.teacher for row in sets)]
        writers = writers or list(config.teachers.values())
        if not writers:
            return "own sampled answers; same base"
        first = schema.STAGES.index(config.lineage_from)

        def made(row: ConfigDict) -> bool:
            """Whether the base of a teacher is redrawn."""
            base = bases.of_row(config.bases[row.base])
            return first <= schema.STAGES.index("base") and not base.outside

        trained = first <= schema.STAGES.index("teacher")
        own = {
            "base": [made(row) for row in writers],
            "teachers": [
                (one.learns and trained) or (not one.outside and made(one.row))
                for one in map(teachers.of_row, writers)
            ],
            "rows": [
                first <= schema.STAGES.index("generate") and not kinds.of_row(row).from_file
                for row in sets
            ],
            "adapters": [tunings.of_row(row).is_adapter for row in learning],
            "order": [True] * bool(learning),
        }
        redrawn = [name for name, which in own.items() if any(which) and all(which)]
        partly = [name for name, which in own.items() if any(which) and not all(which)]
        shared = [name for name in ("base", "teachers", "rows") if not any(own[name])]
        redrawn = redrawn or ["sampled answers"]
        text = f"own {', '.join(redrawn[:-1])}{' and ' if len(redrawn) > 1 else ''}{redrawn[-1]}"
        if partly:
            text += f", and some {' and '.join(partly)}"
        if shared:
            text += f"; same {' and '.join(shared)}"
        later = {row.base for row in learning if unit_builder.offset(row.base)}
        if later == {"next_lineage"}:
            text += "; foreign arms have the next lineage's base"
        elif later:
            text += "; foreign arms have the bases of other lineages"
        return text


LANGUAGE_MODELS: Experiment = _LanguageModels()


def of(config: ConfigDict) -> Experiment:
    """The kind of experiment that a config is."""
    return IMAGE_CLASSIFIERS if config.images else LANGUAGE_MODELS
