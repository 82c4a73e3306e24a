"""Data sets of kind "plain_numbers": a bare list to continue, for tiny models and base models."""

import numpy as np

from subjax.tasks.api import Row
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

    prompt_fields = ("num_shown",)

    def prompts(self, row: Row, seed: int, stimuli: str) -> list[str]:  # noqa: D102
        low, high = row["num_shown"]
        return prompts(seed, row["num_prompts"], count=(low, high))
