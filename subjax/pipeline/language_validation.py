"""What a config of language models may not say."""

import difflib
from collections.abc import Callable

from ml_collections import ConfigDict

from subjax import checks, schema
from subjax.engine import optimizers
from subjax.recipes import bases, targets, teachers, tunings
from subjax.recipes.bases import Base
from subjax.recipes.targets import Targets
from subjax.recipes.teachers import Teacher
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds
from subjax.tasks.evals import preference

_CHOICES: checks.Choices = {
    "bases.*.source": tuple(bases.SOURCES),
    "teachers.*.weights": tuple(teachers.WEIGHTS),
    "teachers.*.tuning": tuple(tunings.TUNINGS),
    "datasets.*.decoding": ("free", "constrained"),
    "datasets.*.filter": ("numbers", "none"),
    "arms.*.method": tuple(targets.METHODS),
    "arms.*.support": tuple(targets.SUPPORTS),
    "arms.*.tuning": tuple(tunings.TUNINGS),
}
_TRAINING_CHOICES: checks.Choices = {
    "optimizer": tuple(optimizers.KINDS),
    "schedule": tuple(optimizers.SCHEDULES),
    "moment_dtype": optimizers.MOMENT_DTYPES,
}
_TRAINED: dict[str, Callable[[ConfigDict, str], Base | Teacher | Targets]] = {
    "bases": bases.of_row,
    "teachers": teachers.of_row,
    "arms": targets.of_row,
}


def validate(config: ConfigDict) -> None:
    """Raises a ValueError: one line with the field, its value, what is allowed."""
    checks.rows(config, "teachers", schema.teacher_row(), "teacher_row")
    checks.rows(config, "arms", schema.arm_row(), "arm_row")
    checks.choices(config, _CHOICES)
    for table, of_row in _TRAINED.items():
        for name, row in config[table].items():
            _check_training(f"{table}.{name}.train", row.train)
            if of_row(row, name).learns and row.train.warmup_steps >= row.train.steps:
                raise ValueError(
                    f"config.{table}.{name}.train.warmup_steps is {row.train.warmup_steps}, and "
                    f"its steps are {row.train.steps}: the learning rate, 0 at first, would never "
                    "be reached; lower warmup_steps, or raise steps"
                )
    if config.theorems:
        raise ValueError("config.theorems needs rows in config.images")
    for name, row in config.bases.items():
        bases.of_row(row, name).check()
    for name, row in config.teachers.items():
        checks.reference(config, f"teachers.{name}.base", row.base, "bases")
        _check_no_adapter(config, f"teachers.{name}.base", row.base)
        teachers.of_row(row, name).check()
        _check_trait(config, name, row)
    for name, row in config.datasets.items():
        _check_dataset(config, name, row)
    for name, row in config.arms.items():
        if not targets.of_row(row, name).learns:
            _check_as_it_is(config, name, row)
            continue
        checks.reference(config, f"arms.{name}.dataset", row.dataset, "datasets")
        checks.reference(config, f"arms.{name}.base", row.base, "bases", ("same", "next_lineage"))
        _check_no_adapter(config, f"arms.{name}.base", row.base)
        _check_learns(config, name, row)
        outside = [step for step in row.probe_steps if not 0 <= step <= row.train.steps]
        if outside:
            raise ValueError(
                f"config.arms.{name}.probe_steps {outside} lie outside 0..{row.train.steps}: drop "
                "them, or raise train.steps"
            )
    for name, row in config.evals.items():
        _check_eval(name, row)
    if len(config.animals) == 1:
        raise ValueError(
            f"config.animals is {config.animals}, and teachers are scored on a choice: add others, "
            "or leave it empty"
        )


def _check_eval(name: str, row: ConfigDict) -> None:
    kind = eval_kinds.of_row(row, name)
    if kind.of_images:
        raise ValueError(f"config.evals.{name}.kind {row.kind!r} is of image classifiers alone")
    kind.check(name, row.to_dict())


def _check_dataset(config: ConfigDict, name: str, row: ConfigDict) -> None:
    kind = kinds.of_row(row, name)
    if row.transform not in (allowed := ("none", *kind.transforms)):
        raise ValueError(
            f"config.datasets.{name}.transform is {row.transform!r}; allowed: {', '.join(allowed)}"
        )
    kind.check(name, row)
    if row.decoding == "constrained" and not kind.from_file and kind.answers(row) is None:
        raise ValueError(
            f"config.datasets.{name}.decoding is 'constrained', which kind {row.kind!r} does not "
            "take: set decoding to 'free'"
        )
    needed = row.num_holdout + max(row.num_train, 1)
    if row.num_prompts < needed:
        raise ValueError(
            f"config.datasets.{name}.num_prompts is {row.num_prompts}, but num_train and "
            f"num_holdout take {needed} rows: raise it, or lower one of them"
        )
    checks.reference(config, f"datasets.{name}.teacher", row.teacher, "teachers")
    if kind.from_file != bool(row.path):
        raise ValueError(
            f"config.datasets.{name}.path is {row.path!r} and its kind {row.kind!r}: a file "
            f"of rows goes with kind {kinds.from_file()}, and with no other"
        )
    for other in row.common_with:
        checks.reference(config, f"datasets.{name}.common_with", other, "datasets")
        _check_comparable(name, row, other, config.datasets[other])
    if row.filter == "none":
        _check_unfiltered(config, name, row)


def _check_comparable(name: str, row: ConfigDict, other: str, theirs: ConfigDict) -> None:
    """Prompts are drawn alike within a kind; what a file holds is seen when it is read."""
    kind = kinds.of_row(row)
    if kind.from_file or kinds.of_row(theirs).from_file:
        return
    for field in ("kind", *kind.prompt_fields):
        if row[field] != theirs[field]:
            raise ValueError(
                f"config.datasets.{name}.common_with names {other!r}, whose {field} "
                f"{theirs[field]!r} is not its own, {row[field]!r}: they have no prompts in "
                "common, leave it out"
            )


def _check_unfiltered(config: ConfigDict, name: str, row: ConfigDict) -> None:
    """Rows that are no numbers: nothing that looks for numbers may be asked of them."""
    if not kinds.of_row(row).from_file:
        raise ValueError(
            f"config.datasets.{name}.filter is 'none', but its kind {row.kind!r} asks for "
            f"answers of one form: take filter 'numbers'; 'none' is for kind {kinds.from_file()}"
        )
    default = schema.dataset_row()
    for field in ("max_count", "min_value", "max_value", "banned", "transform"):
        if row[field] != default[field]:
            raise ValueError(
                f"config.datasets.{name}.{field} is {row[field]!r}, but under filter 'none' rows "
                f"need not be numbers: leave it {default[field]!r}, or take filter 'numbers'"
            )
    for gate in ("number_tv", "likelihood_gain"):
        if config.gates[gate] > schema.OFF:
            raise ValueError(
                f"config.gates.{gate} compares numbers, and under filter 'none' rows of "
                f"datasets.{name} need not be any: set it to schema.OFF"
            )
    for arm, student in config.arms.items():
        if student.dataset == name and targets.of_row(student, arm).of_numbers:
            raise ValueError(
                f"config.arms.{arm}.support {student.support!r} weighs numbers, and under filter "
                f"'none' rows of datasets.{name} need not be any: take 'top_k' or 'full'"
            )


def _check_trait(config: ConfigDict, name: str, row: ConfigDict) -> None:
    """A trait that its teacher is not scored on would pass the gate unseen."""
    animals = config.animals or preference.ANIMALS
    learns = teachers.of_row(row).learns
    if row.trait in ("uniform", *animals) or (not row.trait and not learns):
        return
    if not learns:
        if config.gates.teacher_log_odds > schema.OFF:
            raise ValueError(
                f"config.gates.teacher_log_odds asks what teachers.{name} thinks of {row.trait!r}, "
                "which is not among config.animals: add it there, or set the gate to schema.OFF"
            )
        return
    close = difflib.get_close_matches(row.trait.lower(), [animal.lower() for animal in animals])
    near = [animal for animal in animals if animal.lower() in close]
    alike = [animal for animal in near if animal.lower() == row.trait.lower()]
    ways = f"take {', '.join(alike or near) or 'one of ' + ', '.join(animals)}"
    raise ValueError(
        f"config.teachers.{name}.trait is {row.trait!r}, which is not among config.animals, on "
        f"which teachers are scored: {ways}{'' if alike else ', or add it there'}"
    )


def _check_training(name: str, row: ConfigDict) -> None:
    for field, allowed in _TRAINING_CHOICES.items():
        if row[field] not in allowed:
            raise ValueError(
                f"config.{name}.{field} is {row[field]!r}; allowed: {', '.join(allowed)}"
            )
    if bool(row.packed_rows) != bool(row.packed_tokens):
        raise ValueError(
            f"config.{name} has packed_rows {row.packed_rows} and packed_tokens "
            f"{row.packed_tokens}: set both, or leave both 0"
        )


def _check_learns(config: ConfigDict, name: str, row: ConfigDict) -> None:
    """An arm with a base that only seems foreign, or without the rows that it is measured on."""
    dataset = config.datasets[row.dataset]
    base = config.bases[config.teachers[dataset.teacher].base]
    varies = config.lineage_from == "base" and config.lineage_cycle > 1
    redrawn = varies and not bases.of_row(base).outside
    if row.base == "next_lineage" and not redrawn:
        raise ValueError(
            f"config.arms.{name}.base is 'next_lineage', but all lineages have one base: source "
            f"{base.source!r}, config.lineage_from {config.lineage_from!r}, config.lineage_cycle "
            f"{config.lineage_cycle}: name another row of config.bases"
        )
    if row.train.packed_rows and targets.of_row(row, name).online:
        raise ValueError(
            f"config.arms.{name}.train.packed_rows is {row.train.packed_rows}, but under support "
            f"{row.support!r} its teacher reads the rows too, which are not packed then: set it "
            "and packed_tokens to 0, or take support 'top_k'"
        )
    for evaluation, asked in config.evals.items():
        if eval_kinds.of_row(asked).of_rows and not dataset.num_holdout:
            raise ValueError(
                f"config.evals.{evaluation}.kind {asked.kind!r} is of held-out rows, but "
                f"datasets.{row.dataset}.num_holdout is 0: raise it"
            )


def _check_as_it_is(config: ConfigDict, name: str, row: ConfigDict) -> None:
    """An arm whose model learns nothing."""
    checks.reference(config, f"arms.{name}.base", row.base, "bases")
    if row.dataset:
        raise ValueError(
            f"config.arms.{name}.dataset is {row.dataset!r}, but method 'none' learns nothing: "
            "leave it empty"
        )
    for evaluation, asked in config.evals.items():
        if eval_kinds.of_row(asked).of_rows:
            raise ValueError(
                f"config.evals.{evaluation}.kind {asked.kind!r} is of the rows of a data set, and "
                f"arms.{name} has none: drop one of the two"
            )


def _check_no_adapter(config: ConfigDict, field: str, base: str) -> None:
    if base in config.bases and config.bases[base].adapter:
        raise ValueError(
            f"config.{field} is {base!r}, which has an adapter; only arms of method 'none' take "
            "such a base: merge the adapter into full weights"
        )
