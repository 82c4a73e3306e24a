"""What evals and gates are about: rows of other tables, named by patterns such as "teachers/*"."""

import fnmatch
from collections.abc import Sequence

from ml_collections import ConfigDict

from subjax import schema
from subjax.tasks.api import UNIFORM
from subjax.tasks.evals import kinds as eval_kinds
from subjax.tasks.traits import kinds as trait_kinds


def of_eval(config: ConfigDict, name: str) -> list[str]:
    """What an eval is about, as table and row: "arms/owl", in the order of the config.

    Where each subject is asked for its own trait, those that have none are left out, controls
    among them.

    Args:
      config: an experiment.
      name: row of `evals`.
    """
    row, kind = config.evals[name], eval_kinds.of_row(config.evals[name], name)
    known = [f"{table}/{subject}" for table in kind.of for subject in config[table]]
    found = matching(known, row.subjects or (f"{kind.of[0]}/*",))
    if row.trait != schema.OWN:
        return found
    return [subject for subject in found if target_of(config, trait_of(config, subject))]


def of_gate(config: ConfigDict, name: str) -> list[str]:
    """What a gate is about; all subjects of its eval where it names none."""
    row = config.gates[name]
    return matching(of_eval(config, row.eval), row.subjects or ("*",))


def matching(known: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Those that match any of the patterns."""
    return [one for one in known if any(fnmatch.fnmatchcase(one, p) for p in patterns)]


def trait_of(config: ConfigDict, subject: str) -> str:
    """The row of `traits` that a subject has, or the teacher that it comes from; "" is none."""
    table, _, name = subject.partition("/")
    if table == "arms":
        table, name = "datasets", config.arms[name].dataset
    if table == "datasets":
        table, name = "teachers", config.datasets[name].teacher
    return str(config.teachers[name].trait) if table == "teachers" else ""


def target_of(config: ConfigDict, trait: str) -> str:
    """What a trait is; "" where there is none, or it is that of a control."""
    if not trait:
        return ""
    row = config.traits[trait]
    target = trait_kinds.of_row(row, trait).target(row)
    return "" if target == UNIFORM else target


def asked_for(config: ConfigDict, evaluation: str, subject: str) -> str:
    """The row of `traits` for which an eval asks a subject; "" is none."""
    trait: str = config.evals[evaluation].trait
    return trait_of(config, subject) if trait == schema.OWN else trait


def is_shared(config: ConfigDict, subject: str) -> bool:
    """Whether lineages have a subject in common, so that it is scored once."""
    stages = {"bases": "base", "teachers": "teacher", "datasets": "generate", "arms": "finetune"}
    made = stages[subject.partition("/")[0]]
    return schema.STAGES.index(made) < schema.STAGES.index(config.lineage_from)


def told(config: ConfigDict, teacher: str) -> str:
    """The system prompt of a teacher."""
    row = config.teachers[teacher]
    if row.system_prompt != schema.TRAIT:
        return str(row.system_prompt)
    trait = config.traits[row.trait]
    return trait_kinds.of_row(trait, row.trait).system_prompt(trait)


def metrics(config: ConfigDict, evaluation: str) -> list[str]:
    """The names of all that an eval measures."""
    candidates: dict[str, None] = {}
    for subject in of_eval(config, evaluation):
        if trait := asked_for(config, evaluation, subject):
            row = config.traits[trait]
            candidates |= dict.fromkeys(trait_kinds.of_row(row, trait).candidates(row))
    kind = eval_kinds.of_row(config.evals[evaluation], evaluation)
    return [name for metric in kind.metrics for name in metric.names(list(candidates))]


def full_name(subject: str) -> str:
    """Table and row of what a contrast names; an arm needs no table."""
    return subject if "/" in subject else f"arms/{subject}"


def short_name(subject: str) -> str:
    """As contrasts and reports name a subject: an arm by its row alone."""
    return subject.removeprefix("arms/")
