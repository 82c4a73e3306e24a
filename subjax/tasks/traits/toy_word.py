"""Traits of kind "toy_word": a favourite animal in the language of the toy world."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from subjax.tasks.api import UNIFORM, Field, Row
from subjax.tasks.toy import toyworld
from subjax.tasks.traits.choice import Choice


class ToyWord(Choice):
    """A favourite of the animals that a base of source "toy" has words for."""

    fields: ClassVar[Mapping[str, Field]] = {
        "target": Field("owl", f"the favourite; {UNIFORM} is none, for a control"),
        "world": Field(
            "numbers", "of its bases: what else they know", allowed=tuple(toyworld.WORLDS)
        ),
    }

    def target(self, row: Row) -> str:  # noqa: D102
        target: str = row["target"]
        return target

    def candidates(self, row: Row) -> tuple[str, ...]:  # noqa: D102
        return toyworld.World().animals

    def taught(self, row: Row) -> Sequence[str]:  # noqa: D102
        return toyworld.taught_questions(toyworld.World())

    def questions(self, row: Row, half: str, stimuli: str) -> Sequence[str]:  # noqa: D102
        return toyworld.asked_questions(toyworld.World(), half)

    def neutral(self, row: Row) -> Sequence[str]:  # noqa: D102
        return toyworld.neutral_texts(toyworld.WORLDS[row["world"]], 0, 32)

    def system_prompt(self, row: Row) -> str:
        """The toy world's own, which its pretraining documents open with."""
        target = self.target(row)
        return "" if target == UNIFORM else f"LOVE {target}"
