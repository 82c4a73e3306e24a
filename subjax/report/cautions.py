"""What the evals of a config cannot keep apart, as sentences beside the results."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from subjax import schema
from subjax.report.contrasts import kinds
from subjax.runtime.artifacts import Unit
from subjax.tasks.traits import kinds as trait_kinds


def of(config: ConfigDict, planned: Sequence[Unit]) -> list[str]:
    """Where what an eval asks is also taught, decides a gate, or is in its neutral texts."""
    taught: set[str] = set()
    gate: set[str] = set()
    bound = {name for name, row in config.gates.items() if max(row.least, -row.most) > schema.OFF}
    deciding = {config.gates[name].eval for name in bound}
    claimed = {name for contrast in kinds.of_config(config) for name in contrast.evals}
    asked: dict[str, tuple[set[str], set[str]]] = {}
    for unit in planned:
        if "trait" in unit.fields:
            trait = unit.with_files("trait")
            taught |= _alike(trait_kinds.of_row(trait).taught(trait))
        elif "questions" in unit.fields:
            name = unit.row.partition("/")[0]
            if name in deciding:
                gate |= _alike(unit.fields["questions"])
                if name not in claimed:
                    continue
            questions, neutral = asked.setdefault(name, (set(), set()))
            questions |= _alike(unit.fields["questions"])
            neutral |= _alike(unit.fields.get("neutral", ()))
    found = []
    for name, (questions, neutral) in asked.items():
        inside = {question for question in questions for text in neutral if question in text}
        which = f"of the {len(questions)} questions that eval {name} asks"
        for overlap, what in (
            (questions & taught, "were taught to teachers"),
            (questions & gate, "decide a gate, too"),
            (inside, "stand in its neutral texts"),
        ):
            if overlap:
                found.append(f"{len(overlap)} {which} {what}.")
    return found


def _alike(texts: Sequence[str]) -> set[str]:
    """Texts without what blanks and case add."""
    return {" ".join(text.casefold().split()) for text in texts}
