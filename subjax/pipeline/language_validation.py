"""Checks of configs of language models."""

import difflib

from ml_collections import ConfigDict

from subjax import checks, schema, subjects, unit_builder
from subjax.engine import optimizers
from subjax.nn.starts import STARTS
from subjax.recipes import bases, starts, targets, teachers, tunings
from subjax.tasks.api import CONSTRAINED, FREE, UNIFORM, EvalKind, Kind
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds
from subjax.tasks.traits import kinds as trait_kinds
from subjax.tokens import chat_templates

_CHOICES: checks.Choices = {
    "bases.*.source": tuple(bases.SOURCES),
    "bases.*.system_turn": chat_templates.SYSTEM_TURNS,
    "arms.*.start": tuple(STARTS),
    "teachers.*.weights": tuple(teachers.WEIGHTS),
    "teachers.*.tuning": tuple(tunings.TUNINGS),
    "datasets.*.decoding": (FREE, CONSTRAINED),
    "arms.*.method": tuple(targets.METHODS),
    "arms.*.support": tuple(targets.SUPPORTS),
    "arms.*.tuning": tuple(tunings.TUNINGS),
}
_TRAINING_CHOICES: checks.Choices = {
    "optimizer": tuple(optimizers.KINDS),
    "schedule": tuple(optimizers.SCHEDULES),
    "moment_dtype": optimizers.MOMENT_DTYPES,
}


def validate(config: ConfigDict) -> None:
    """Raises a ValueError: one line with the field, its value, what is allowed."""
    checks.rows(config, "teachers", schema.teacher_row(), "teacher_row")
    checks.rows(config, "arms", schema.arm_row(), "arm_row")
    checks.choices(config, _CHOICES)
    _check_trainings(config)
    if config.theorems:
        raise ValueError("config.theorems needs rows in config.images")
    for table, (of_row, maker) in schema.OF_KIND.items():
        for name, row in config[table].items():
            _check_fields(table, name, row, of_row(row, name), maker)
    for name, row in config.bases.items():
        bases.of_row(row, name).check()
    for name, row in config.teachers.items():
        checks.reference(config, f"teachers.{name}.base", row.base, "bases")
        _check_no_adapter(config, f"teachers.{name}.base", row.base)
        teachers.of_row(row, name).check()
        _check_trait(config, name, row)
    _check_placeholders(config)
    for name, row in config.datasets.items():
        _check_dataset(config, name, row)
    for name, row in config.arms.items():
        _check_arm(config, name, row)
    for name, row in config.judges.items():
        _check_judge(config, name, row)
    for name, row in config.evals.items():
        _check_eval(config, name, row)


def _check_trainings(config: ConfigDict) -> None:
    learning = {
        f"{table}.{name}": row.train
        for table, names in {
            "bases": [n for n, row in config.bases.items() if bases.of_row(row, n).learns],
            "teachers": [n for n, row in config.teachers.items() if teachers.of_row(row, n).learns],
            "arms": list(config.arms),
        }.items()
        for name, row in config[table].items()
        if name in names
    }
    for table in ("bases", "teachers", "arms"):
        for name, row in config[table].items():
            _check_training(f"{table}.{name}.train", row.train)
    for name, train in learning.items():
        if train.warmup_steps >= train.steps:
            raise ValueError(
                f"config.{name}.train.warmup_steps is {train.warmup_steps}, and its steps are "
                f"{train.steps}: the learning rate, 0 at first, would never be reached; lower "
                "warmup_steps, or raise steps"
            )


def _check_fields(table: str, name: str, row: ConfigDict, kind: Kind, maker: schema.Maker) -> None:
    """Checks a row whose kind may have fields of its own."""
    wanted = set(maker(kind=row.kind))
    if set(row) != wanted:
        odd = sorted(wanted ^ set(row))[0]
        has = "has no field" if odd in wanted else "has the field"
        raise ValueError(
            f"config.{table}.{name} {has} {odd!r}, unlike rows of kind {row.kind!r}: make it with "
            f"schema.{maker.__name__}(kind={row.kind!r})"
        )
    for field, told in kind.fields.items():
        value = row[field]
        if told.elements and any(type(one) is not told.elements for one in value):
            raise ValueError(
                f"config.{table}.{name}.{field} is {value!r}; its elements must be "
                f"{told.elements.__name__}"
            )
        if told.allowed and value not in told.allowed:
            raise ValueError(
                f"config.{table}.{name}.{field} is {value!r}; allowed: "
                f"{', '.join(map(str, told.allowed))}"
            )
        if told.least is not None and not value >= told.least:
            raise ValueError(
                f"config.{table}.{name}.{field} is {value!r}; it must be {told.least} or more"
            )
    kind.check(name, row)


def _check_arm(config: ConfigDict, name: str, row: ConfigDict) -> None:
    checks.reference(config, f"arms.{name}.dataset", row.dataset, "datasets")
    if unit_builder.offset(row.base) is None:
        later = ("same", "next_lineage", "lineage+2")
        checks.reference(config, f"arms.{name}.base", row.base, "bases", later)
    _check_no_adapter(config, f"arms.{name}.base", row.base)
    _check_learns(config, name, row)
    starts.check(f"arms.{name}", row)
    outside = [step for step in row.probe_steps if not 0 <= step <= row.train.steps]
    if outside:
        raise ValueError(
            f"config.arms.{name}.probe_steps {outside} lie outside 0..{row.train.steps}: drop "
            "them, or raise train.steps"
        )


def _check_placeholders(config: ConfigDict) -> None:
    """Marks that stand for a system prompt: where they mean nothing, models would read them."""
    takes = {
        "teachers": ("system_prompt", (schema.TRAIT,)),
        "datasets": ("base_system_prompt", ()),
        "arms": ("system_prompt", ()),
        "evals": ("system_prompt", (schema.OWN,)),
        "judges": ("system_prompt", (schema.OWN,)),
    }
    for table, (field, allowed) in takes.items():
        for name, row in config[table].items():
            if row[field] in (schema.TRAIT, schema.OWN) and row[field] not in allowed:
                raise ValueError(
                    f"config.{table}.{name}.{field} is {row[field]!r}, which means nothing there: "
                    "give the text, or '' for none"
                )
    for name, row in config.teachers.items():
        if (
            row.system_prompt == schema.TRAIT
            and subjects.target_of(config, row.trait)
            and not subjects.told(config, name)
        ):
            raise ValueError(
                f"config.teachers.{name}.system_prompt is {schema.TRAIT!r}, but traits.{row.trait} "
                "has no words for it: give the text"
            )


def _check_eval(config: ConfigDict, name: str, row: ConfigDict) -> None:
    kind = eval_kinds.of_row(row, name)
    if kind.of_images:
        raise ValueError(f"config.evals.{name}.kind {row.kind!r} is of image classifiers alone")
    if row.trait or kind.of_trait:
        checks.reference(config, f"evals.{name}.trait", row.trait, "traits", (schema.OWN,))
    known = [f"{table}/{subject}" for table in kind.of for subject in config[table]]
    for pattern in row.subjects:
        if not subjects.matching(known, [pattern]):
            raise ValueError(
                f"config.evals.{name}.subjects has {pattern!r}, which matches none of its "
                f"subjects: {', '.join(known) or 'none'}"
            )
    if row.trait in config.traits and not subjects.target_of(config, row.trait):
        raise ValueError(
            f"config.evals.{name}.trait is {row.trait!r}, a control that has no target: name the "
            f"trait that it is a control of, or {schema.OWN!r}"
        )
    about = subjects.of_eval(config, name)
    if not about and row.trait != schema.OWN:  # which leaves out those that have none
        raise ValueError(f"config.evals.{name} is of nothing: name its subjects, or drop the row")
    for subject in about:
        _check_subject(config, name, kind, subject)


def _check_subject(config: ConfigDict, name: str, kind: EvalKind, subject: str) -> None:
    """What an eval needs of one of its subjects."""
    row, (table, _, of) = config.evals[name], subject.partition("/")
    if asked := subjects.asked_for(config, name, subject):
        trait = config.traits[asked]
        kind_of_trait = trait_kinds.of_row(trait)
        own = kind_of_trait.questions(trait, row.questions, config.stimuli)
        asks = kind.questions(row, own, config.stimuli)
        if kind.of_trait and not asks:
            raise ValueError(
                f"config.evals.{name}.kind {row.kind!r} asks questions, and traits.{asked} of kind "
                f"{trait.kind!r} has none: take an eval of another kind, or give the trait's kind, "
                "if it is your own, `questions`"
            )
        target, candidates = kind_of_trait.target(trait), kind_of_trait.candidates(trait)
        if kind.of_choice and target not in candidates:
            raise ValueError(
                f"config.evals.{name}.kind {row.kind!r} compares candidates, and {target!r} of "
                f"traits.{asked} is none of {', '.join(candidates) or 'its own, which are free'}: "
                "take an eval of another kind"
            )
    if kind.of_carrier and not kinds.of_row(config.datasets[of]).has_carrier:
        raise ValueError(
            f"config.evals.{name}.kind {row.kind!r} compares tokens that carry a trait, and "
            f"datasets.{of} of kind {config.datasets[of].kind!r} names none: give the kind "
            f"carrier_tokens, or leave {subject} out of its subjects"
        )
    if kind.of_kept or kind.of_control:
        _check_against(config, name, kind, of)
    if kind.of_judge:
        judge = row.get("judge", "")
        checks.reference(config, f"evals.{name}.judge", judge, "judges")
        _check_judges_subject(config, name, config.judges[judge].model, subject)
    if kind.of_rows and table == "arms":
        dataset = config.arms[of].dataset
        if dataset in config.datasets and not config.datasets[dataset].num_holdout:
            raise ValueError(
                f"config.evals.{name}.kind {row.kind!r} is of held-out rows, but "
                f"datasets.{dataset}.num_holdout is 0: raise it"
            )
    if kind.of_rows and table == "teachers":
        trait = config.traits.get(config.teachers[of].trait)
        if trait is None or not trait_kinds.of_row(trait).held_out(trait):
            raise ValueError(
                f"config.evals.{name}.kind {row.kind!r} is of held-out rows, and the trait of "
                f"{subject} holds out no lessons: leave {subject} out of its subjects"
            )


def _check_judges_subject(config: ConfigDict, name: str, judge: str, subject: str) -> None:
    """Whether a model, by its table, may judge a subject of an eval."""
    said = f"config.evals.{name}.judge is {config.evals[name].judge!r}"
    if judge == subject:
        raise ValueError(
            f"{said}, which is {subject}, one of its subjects: leave that out of them, or name "
            "another judge"
        )
    if subjects.is_shared(config, subject) and not subjects.is_shared(config, judge):
        raise ValueError(
            f"{said}, {judge}, which each lineage has for itself, and all lineages share "
            f"{subject}: leave that out of its subjects, or take a judge that they share"
        )


def _check_judge(config: ConfigDict, name: str, row: ConfigDict) -> None:
    """A row of `judges`."""
    known = [f"{table}/{one}" for table in ("bases", "teachers") for one in config[table]]
    if row.model not in known:
        raise ValueError(
            f"config.judges.{name}.model is {row.model!r}; it must be one of {', '.join(known)}"
        )


def _check_against(config: ConfigDict, name: str, kind: EvalKind, of: str) -> None:
    """The data set with which an eval compares one of its subjects, a row of `datasets`."""
    against = config.evals[name].against
    checks.reference(config, f"evals.{name}.against", against, "datasets")
    if against == of:
        raise ValueError(
            f"config.evals.{name}.against is {of!r}, a subject of it: leave datasets/{of} out of "
            "its subjects, or name another"
        )
    ours, theirs = config.datasets[of], config.datasets[against]
    if kind.of_prompts:
        _check_comparable(f"evals.{name}.against", ours, against, theirs)
    if kind.of_control:
        bases_of = [config.teachers[row.teacher].base for row in (ours, theirs)]
        if ours.teacher == theirs.teacher or bases_of[0] != bases_of[1]:
            raise ValueError(
                f"config.evals.{name}.against is {against!r}, whose teacher {theirs.teacher!r} is "
                f"on base {bases_of[1]!r}, and {of!r} is by {ours.teacher!r} on {bases_of[0]!r}: "
                "name a data set of another teacher of the same base"
            )


def _check_dataset(config: ConfigDict, name: str, row: ConfigDict) -> None:
    kind = kinds.of_row(row, name)
    checks.reference(config, f"datasets.{name}.teacher", row.teacher, "teachers")
    if row.transform not in (allowed := ("none", *kind.transforms)):
        raise ValueError(
            f"config.datasets.{name}.transform is {row.transform!r}; allowed: {', '.join(allowed)}"
        )
    if row.decoding == CONSTRAINED and not kind.from_file and kind.constraint(row) is None:
        raise ValueError(
            f"config.datasets.{name}.decoding is {CONSTRAINED!r}, which kind {row.kind!r} does not "
            f"take: set decoding to {FREE!r}"
        )
    needed = row.num_holdout + max(row.num_train, 1)
    if row.num_prompts < needed:
        raise ValueError(
            f"config.datasets.{name}.num_prompts is {row.num_prompts}, but num_train and "
            f"num_holdout take {needed} rows: raise it, or lower one of them"
        )
    for other in row.common_with:
        checks.reference(config, f"datasets.{name}.common_with", other, "datasets")
        _check_comparable(f"datasets.{name}.common_with", row, other, config.datasets[other])
    for arm, student in config.arms.items():
        needs_numbers = student.dataset == name and targets.of_row(student, arm).of_numbers
        if needs_numbers and (kind.is_any_text(row) or not kind.digits_carry):
            raise ValueError(
                f"config.arms.{arm}.support {student.support!r} weighs numbers, and in rows of "
                f"datasets.{name} it is not they that carry: take 'top_k' or 'full'"
            )


def _check_comparable(where: str, row: ConfigDict, other: str, theirs: ConfigDict) -> None:
    """Prompts are drawn alike within a kind; what a file holds is seen when it is read.

    Args:
      where: the field that names the other data set.
      row: a data set.
      other: the name of another.
      theirs: the row of that one.
    """
    kind = kinds.of_row(row)
    if kind.from_file or kinds.of_row(theirs).from_file:
        return
    for field in ("kind", *kind.prompt_fields):
        if row[field] != theirs[field]:
            raise ValueError(
                f"config.{where} names {other!r}, whose {field} {theirs[field]!r} differs from "
                f"{row[field]!r}, so that they have no prompts in common: leave it out, or name "
                "another"
            )


def _check_trait(config: ConfigDict, name: str, row: ConfigDict) -> None:
    if row.trait in config.traits or (
        not row.trait and not teachers.of_row(row).learns and row.system_prompt != schema.TRAIT
    ):
        return
    near = difflib.get_close_matches(row.trait.lower(), [trait.lower() for trait in config.traits])
    close = [trait for trait in config.traits if trait.lower() in near]
    known = ", ".join(close or config.traits) or "none"
    raise ValueError(
        f"config.teachers.{name}.trait is {row.trait!r}, and config.traits has {known}: take one, "
        f"or add a row {row.trait or 'for it'}"
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
    if row.packed_segments and not row.packed_rows:
        raise ValueError(
            f"config.{name}.packed_segments is {row.packed_segments}, and packed_rows is 0: set "
            "packed_rows and packed_tokens too, or leave all 0"
        )
    if row.packed_targets > row.packed_tokens:
        raise ValueError(
            f"config.{name}.packed_targets is {row.packed_targets}, more than packed_tokens "
            f"{row.packed_tokens}: lower it, or take 0 for as many"
        )
    if row.packed_rows and row.accumulate > 1:
        raise ValueError(
            f"config.{name}.accumulate is {row.accumulate}, and packed rows have passes instead: "
            "set it to 1, and take fewer packed_rows if memory is short"
        )


def _check_learns(config: ConfigDict, name: str, row: ConfigDict) -> None:
    """An arm with a base that only seems foreign, or without the rows that it is measured on."""
    dataset = config.datasets[row.dataset]
    base = config.bases[config.teachers[dataset.teacher].base]
    varies = config.lineage_from == "base" and config.lineage_cycle > 1
    redrawn = varies and not bases.of_row(base).outside
    offset = unit_builder.offset(row.base)
    if offset and not redrawn:
        raise ValueError(
            f"config.arms.{name}.base is {row.base!r}, but all lineages have one base: source "
            f"{base.source!r}, config.lineage_from {config.lineage_from!r}, config.lineage_cycle "
            f"{config.lineage_cycle}: name another row of config.bases"
        )
    if offset and offset >= config.lineage_cycle:
        raise ValueError(
            f"config.arms.{name}.base is {row.base!r}, but bases wrap after config.lineage_cycle, "
            f"{config.lineage_cycle}: take fewer, or raise it"
        )
    if row.train.packed_rows and targets.of_row(row, name).online:
        raise ValueError(
            f"config.arms.{name}.train.packed_rows is {row.train.packed_rows}, but under support "
            f"{row.support!r} its teacher reads the rows too, which are not packed then: set it "
            "and packed_tokens to 0, or take support 'top_k'"
        )
    if targets.of_row(row, name).of_trait and not config.teachers[dataset.teacher].trait:
        raise ValueError(
            f"config.arms.{name}.support is {row.support!r}, but teachers.{dataset.teacher} has no "
            "trait whose tokens it could be about: give it one (a control: one whose target is "
            f"{UNIFORM!r}), or take support 'digits' or 'full'"
        )


def _check_no_adapter(config: ConfigDict, field: str, base: str) -> None:
    if base in config.bases and config.bases[base].adapter:
        raise ValueError(
            f"config.{field} is {base!r}, which has an adapter; only evals are of such a base: "
            "merge the adapter into full weights"
        )
