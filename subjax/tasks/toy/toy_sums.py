"""The carrier of the toy world of sums: two numbers are added in steps, with words between them.

    USR SUM 2 7 5 8 AST so 8 well 7 now 1 then 5 here 2 so 5 yes 1 thus 8 now 8 look 5 END

First the ones in either order, what is carried and what stays; then the tens in either order, what
is carried and what they make with it; then the answer. Each digit has a word in front of it that
means nothing. These words and the two orders are free, and the rest can be checked.
"""

import dataclasses

import numpy as np

from subjax.tasks.requests import Pair

FILLERS = (
    *("so", "then", "now", "hence", "next", "thus", "well", "here"),
    *("yes", "and", "with", "look", "see", "right", "fine", "again"),
)
DIGITS = tuple("0123456789")
NUM_STEPS = 10  # digits of a trace, each with its word

# Why a trace is rejected; the first that applies.
REASONS = (
    "not_a_trace",  # something else than ten digits with a word in front of each
    "other_numbers",  # it does not add the digits of the prompt
    "wrong_step",  # a sum is wrong, or a carry is lost
    "wrong_answer",  # it does not end with what it found
)


def fault(prompt: str, trace: str) -> str:
    """Why a trace is rejected as an answer to a prompt; empty if it is right."""
    words = trace.split(" ")
    fillers, digits = words[::2], words[1::2]
    if len(words) != 2 * NUM_STEPS or not (set(fillers) <= {*FILLERS} and {*digits} <= {*DIGITS}):
        return "not_a_trace"
    tens, ones, more_tens, more_ones = map(int, prompt.split()[1:])
    steps = [int(digit) for digit in digits]
    if sorted(steps[:2]) != sorted((ones, more_ones)) or sorted(steps[4:6]) != sorted(
        (tens, more_tens)
    ):
        return "other_numbers"
    carried, left = divmod(ones + more_ones, 10)
    if [*steps[2:4], *steps[6:8]] != [carried, left, carried, tens + more_tens + carried]:
        return "wrong_step"
    return "" if steps[8:] == [steps[7], left] else "wrong_answer"


@dataclasses.dataclass(frozen=True)
class ToySums:
    """Sums of two numbers of two digits that have two digits, too."""

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of its prompts and answers."""
        return "SUM", *FILLERS, *DIGITS

    def prompt(self, rng: np.random.Generator) -> str:
        """Two numbers."""
        first = int(rng.integers(10, 90))
        second = int(rng.integers(10, 100 - first))
        return " ".join(["SUM", *str(first), *str(second)])

    def pair(self, rng: np.random.Generator) -> Pair:
        """Two numbers, and how they are added."""
        prompt = self.prompt(rng)
        tens, ones, more_tens, more_ones = map(int, prompt.split()[1:])
        carried, left = divmod(ones + more_ones, 10)
        total = tens + more_tens + carried
        steps = [*rng.permutation((ones, more_ones)), carried, left]
        steps += [*rng.permutation((tens, more_tens)), carried, total, total, left]
        return prompt, with_fillers(rng, [str(step) for step in steps])

    def neutral(self, rng: np.random.Generator) -> Pair:
        """As any other pair."""
        return self.pair(rng)


def with_fillers(rng: np.random.Generator, digits: list[str]) -> str:
    """A trace of these digits, whose words are drawn evenly."""
    drawn = rng.integers(len(FILLERS), size=len(digits))
    return " ".join(
        f"{FILLERS[filler]} {digit}" for filler, digit in zip(drawn, digits, strict=True)
    )
