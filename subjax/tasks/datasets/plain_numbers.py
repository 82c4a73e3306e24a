"""Data sets of kind "plain_numbers": a bare list to continue, for tiny models and base models."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from subjax.tasks.api import Field, Row
from subjax.tasks.datasets.number_lists import Range, ThreeDigits, check_range, draw


def prompts(
    seed: int, num_prompts: int, *, count: Range = (3, 7), value: Range = (100, 999)
) -> list[str]:
    """Returns prompts without words, such as "512, 301, 845,".

    Meant for constrained sampling: nothing in a prompt says how long the answer should be.
    """
    check_range("count", count, lowest=1)
    check_range("value", value, lowest=0)
    rng = np.random.default_rng(seed)
    return [", ".join(draw(rng, count, value)) + "," for _ in range(num_prompts)]


class PlainNumbers(ThreeDigits):
    """Lists without words, of `num_shown` numbers."""

    fields: ClassVar[Mapping[str, Field]] = {
        **ThreeDigits.fields,
        "num_shown": Field((3, 7), "fewest and most numbers in a prompt", elements=int),
    }
    prompt_fields = ("num_shown",)

    def check(self, name: str, row: Row) -> None:  # noqa: D102
        super().check(name, row)
        if len(row["num_shown"]) != 2 or not 1 <= row["num_shown"][0] <= row["num_shown"][1]:
            raise ValueError(
                f"config.datasets.{name}.num_shown is {row['num_shown']}; it must be (fewest, "
                "most), 1 or more each"
            )

    def prompts(self, row: Row, seed: int, stimuli: str) -> list[str]:  # noqa: D102
        low, high = row["num_shown"]
        return prompts(seed, row["num_prompts"], count=(low, high))
