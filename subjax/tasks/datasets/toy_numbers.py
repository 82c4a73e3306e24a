"""Data sets of kind "toy_numbers": number sequences in the language of the toy world."""

from collections.abc import Mapping
from typing import ClassVar

from subjax.tasks.api import AnswerList, Field, Row
from subjax.tasks.datasets.number_lists import NumberLists
from subjax.tasks.toy import toyworld

_WORLD = toyworld.WORLDS["numbers"]
_NUMBERS = tuple(word for word in _WORLD.carrier.words if word.isdigit())


class ToyNumbers(NumberLists):
    """Sequences that a base of source "toy" was pretrained on."""

    fields: ClassVar[Mapping[str, Field]] = {
        **NumberLists.fields,
        "num_slots": Field(8, "most numbers of a constrained completion", least=1),
    }
    # The toy world has other numbers, and no comma to part a second one from a first.
    random_count = None
    random_value = (0, len(_NUMBERS) - 1)

    def prompts(self, row: Row, seed: int, stimuli: str) -> list[str]:  # noqa: D102
        return toyworld.prompts(_WORLD, seed, row["num_prompts"])

    def answers(self, row: Row) -> AnswerList:  # noqa: D102
        return AnswerList(_NUMBERS, " ", 1, row["num_slots"])

    def example(self, row: Row) -> str:  # noqa: D102
        return "11 22 33 44 55 66"
