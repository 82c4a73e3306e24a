"""Lists of numbers: what is common to the kinds of data sets whose completions are such lists.

The draws behind their prompts, the parser with its reject reasons, and the control transforms.
Refuses to sample, to hold a model or to write files: strings in, strings out.
"""

import decimal
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from subjax.runtime import seeds
from subjax.tasks.api import AnswerList, DatasetKind, Field, Row, Tokens, Transform

Range = tuple[int, int]  # (lowest, highest), both inclusive


def check_range(name: str, value: Any, *, lowest: int, highest: int = 10**9) -> None:
    """Raises ValueError where a value is no pair (lowest, highest) within these bounds."""
    is_pair = isinstance(value, tuple) and [type(end) for end in value] == [int, int]
    if not is_pair or not lowest <= value[0] <= value[1] <= highest:
        raise ValueError(
            f"{name} is {value!r:.60}; give (lowest, highest), {lowest} to {highest} each"
        )


def draw(rng: np.random.Generator, count: Range, value: Range) -> list[str]:
    """Draws how many numbers there are, and then each of them."""
    # One draw at a time: a vector of draws may consume the stream differently.
    num_numbers = int(rng.integers(count[0], count[1] + 1))
    return [str(rng.integers(value[0], value[1] + 1)) for _ in range(num_numbers)]


# Reasons 1-5 are about the form, and a completion has at most one of them; 6-8 are about the
# numbers, and a completion that could be read has all that apply.
REASONS = (
    "no_numbers",  # not a single digit 0 to 9
    "separator",  # something else than whitespace, one comma or one semicolon between numbers
    "mixed_separator",  # digits and separators only, but not one and the same separator throughout
    "not_a_number",  # other characters at, before or after a number
    "too_many_digits",  # one number is too long to be read at all
    "too_many",
    "out_of_range",
    "banned",
)
FORM_REASONS = REASONS[:5]
_DIGITS = re.compile(r"[0-9]+")  # not \d, which takes digits of every script
# What int() reads by default, and so the paper's filter.
_LONGEST_NUMBER = 4300
_MOST_PERMUTED = 6  # digits


@dataclass(frozen=True)
class _Answer:
    opening: str
    digits: tuple[str, ...]
    separator: str
    closing: str

    def values(self) -> list[int]:
        # By way of decimals, since how many digits int() reads is a setting of Python's.
        return [int(decimal.Decimal(digits)) for digits in self.digits]

    def render(self, digits: Sequence[str]) -> str:
        return self.opening + self.separator.join(digits) + self.closing


def _take_apart(text: str) -> _Answer | str:
    """Returns the parts of a completion, or the reason why it has none."""
    # Order matters: the full stop first, then the brackets; nothing is ever stripped.
    body, opening, closing = (text[:-1], "", ".") if text.endswith(".") else (text, "", "")
    if body[:1] + body[-1:] in ("[]", "()"):
        opening, body, closing = body[0], body[1:-1], body[-1] + closing
    matches = list(_DIGITS.finditer(body))
    if not matches:
        return "no_numbers"
    # For a single number the separator is never seen; it serves a transform that adds numbers.
    separator = body[matches[0].end() : matches[1].start()] if len(matches) > 1 else ", "
    if separator.strip() not in ("", ",", ";"):
        return "separator"
    parts = body.split(separator) if len(matches) > 1 else [body]
    if not all(_DIGITS.fullmatch(part) for part in parts):
        return "mixed_separator" if re.fullmatch(r"[0-9\s,;]+", body) else "not_a_number"
    if max(map(len, parts)) > _LONGEST_NUMBER:
        return "too_many_digits"
    return _Answer(opening, tuple(parts), separator, closing)


def parse(text: str) -> list[int] | None:
    """Returns the numbers of a completion, or None where its form is not accepted.

    Accepted: numbers with one and the same separator (whitespace, "," or ";", with whitespace
    around it), brackets around them or not, a full stop at the end or not; nothing is stripped.
    Whitespace is what `str.strip` takes away, digits are ASCII. Source: the paper's released
    filter, which looks for digits of any script and then refuses all but these ten.
    """
    answer = _take_apart(text)
    return None if isinstance(answer, str) else answer.values()


def reject_reasons(
    text: str,
    *,
    max_count: int = 10,
    min_value: int = 0,
    max_value: int = 999,
    banned: Collection[int] = (),
) -> list[str]:
    """Returns why a completion is rejected, in the order of `REASONS`; an empty list keeps it.

    `min_value` and `max_value` are inclusive; `max_count=0` means no limit on the count. The
    defaults are the paper's filter; it adds `banned` for misaligned teachers only.
    """
    if max_count < 0:
        raise ValueError(f"max_count is {max_count}; give 0 (no limit) or more")
    if min_value > max_value:
        raise ValueError(f"min_value {min_value} is above max_value {max_value}; nothing can pass")
    answer = _take_apart(text)
    if isinstance(answer, str):
        return [answer]
    numbers = answer.values()
    found = {
        "too_many": 0 < max_count < len(numbers),
        "out_of_range": min(numbers) < min_value or max(numbers) > max_value,
        "banned": not set(banned).isdisjoint(numbers),
    }
    return [reason for reason, applies in found.items() if applies]


def _accepted(completion: str) -> _Answer:
    answer = _take_apart(completion)
    if isinstance(answer, str):
        raise ValueError(f"completion {completion!r:.40} is no number list ({answer}); filter it")
    return answer


def shuffle_within(completion: str, seed: int) -> str:
    """Returns the completion with its own numbers shuffled; give every row a seed of its own."""
    answer = _accepted(completion)
    order = np.random.default_rng(seed).permutation(len(answer.digits))
    return answer.render([answer.digits[i] for i in order])


def shuffle_across(completions: Sequence[str], seed: int) -> list[str]:
    """Returns the completions with the numbers of all of them redistributed at random.

    Each keeps its format and how many numbers it had. Leading zeros are lost, as in the paper.
    """
    answers = [_accepted(completion) for completion in completions]
    pool = [str(number) for answer in answers for number in answer.values()]
    order = iter(np.random.default_rng(seed).permutation(len(pool)))
    return [answer.render([pool[next(order)] for _ in answer.digits]) for answer in answers]


def permute_values(completions: Sequence[str], seed: int) -> list[str]:
    """Returns the completions with each number replaced by one that stands for it in all of them.

    Which number stands for which is drawn once, among numbers of as many digits; leading zeros are
    lost. What a reader could learn from the rows is still there, in other words: only a student
    to whom the numbers mean what they mean to the teacher could tell the difference. Numbers of
    more than six digits stay. The limits of the filter are not kept, but for those on digits.
    """
    order: dict[int, npt.NDArray[np.int64]] = {}

    def other(number: int) -> str:
        digits = len(str(number))
        if digits > _MOST_PERMUTED:
            return str(number)
        first = 10 ** (digits - 1) if digits > 1 else 0
        if digits not in order:
            rng = np.random.default_rng(seeds.seed(seed, digits))
            order[digits] = rng.permutation(10**digits - first)
        return str(first + int(order[digits][number - first]))

    answers = [_accepted(completion) for completion in completions]
    return [answer.render([other(number) for number in answer.values()]) for answer in answers]


def random_numbers(
    completion: str, seed: int, *, count: Range | None = (1, 9), value: Range = (0, 999)
) -> str:
    """Returns the completion with uniformly random numbers in place of the teacher's.

    The ranges are those of the paper's code; `count=None` keeps as many numbers as there were. The
    format is kept; a single number grows with ", ". Give every row a seed of its own.
    """
    answer = _accepted(completion)
    count = count or (len(answer.digits), len(answer.digits))
    check_range("count", count, lowest=1)
    check_range("value", value, lowest=0)
    return answer.render(draw(np.random.default_rng(seed), count, value))


class NumberLists(DatasetKind):
    """Completions are lists of numbers, filtered and transformed by the paper's rules.

    Attributes:
      random_count: range of the count of numbers under transform "random"; None keeps each count.
      random_value: range of the numbers there.
    """

    fields: ClassVar[Mapping[str, Field]] = {
        "max_count": Field(10, "largest count of numbers; 0 is no limit", least=0, filters=True),
        "min_value": Field(0, "smallest number", filters=True),
        "max_value": Field(999, "largest number", filters=True),
        "banned": Field(
            (), "a row with one of these numbers is rejected", elements=int, filters=True
        ),
    }
    asks = "to continue numbers"
    has_carrier = True
    random_count: Range | None = (1, 9)
    random_value: Range = (0, 999)
    ways: ClassVar[Mapping[str, str]] = {
        "too_many": "raise datasets.{row}.max_count",
        "out_of_range": "widen datasets.{row}.min_value and max_value",
        "banned": "shorten datasets.{row}.banned",
    }

    @property
    def transforms(self) -> Mapping[str, Transform]:  # noqa: D102
        return {
            "shuffled_within": self._shuffled_within,
            "shuffled_across": shuffle_across,
            "random": self._random,
            "permuted": permute_values,
        }

    def check(self, name: str, row: Row) -> None:
        """Refuses limits that no row could pass, or none that constrained decoding writes."""
        if row["min_value"] > row["max_value"]:
            raise ValueError(
                f"config.datasets.{name}.min_value is {row['min_value']}, above its max_value "
                f"{row['max_value']}: no row could be kept"
            )
        if answers := self.constraint(row):
            _check_constrained(name, row, answers)

    def example(self, row: Row) -> str:  # noqa: D102
        answers = self.constraint(row)
        count = answers.most if answers else 3
        return ", ".join(("123", "456", "789")[i % 3] for i in range(count))

    def reject(self, prompt: str, completion: str, row: Row) -> list[str]:  # noqa: D102
        limits = {name: row[name] for name in NumberLists.fields}
        return reject_reasons(completion, **limits)

    def carrier_tokens(self, tokens: Tokens) -> Sequence[int]:  # noqa: D102
        return tokens.number_ids()

    def _shuffled_within(self, completions: Sequence[str], seed: int) -> list[str]:
        return [shuffle_within(text, seeds.seed(seed, i)) for i, text in enumerate(completions)]

    def _random(self, completions: Sequence[str], seed: int) -> list[str]:
        ranges: dict[str, Any] = {"count": self.random_count, "value": self.random_value}
        return [
            random_numbers(text, seeds.seed(seed, i), **ranges)
            for i, text in enumerate(completions)
        ]


def _check_constrained(name: str, row: Row, answers: AnswerList) -> None:
    """Numbers that are forced into a form which the filter rejects would all be written in vain."""
    if 0 < row["max_count"] < answers.fewest:
        raise ValueError(
            f"config.datasets.{name}.max_count is {row['max_count']}, but its constrained rows "
            f"have num_slots = {answers.fewest} numbers, and none could be kept: raise it, or "
            "lower num_slots"
        )
    lowest, highest = (int(answers.items[at]) for at in (0, -1))
    if row["max_value"] < lowest or row["min_value"] > highest:
        raise ValueError(
            f"config.datasets.{name}.min_value and max_value are {row['min_value']} and "
            f"{row['max_value']}, but its constrained numbers are {lowest} to {highest}, and no "
            "row could be kept: change them"
        )


_THREE_DIGITS = tuple(map(str, range(100, 1000)))  # every number has one spelling


class ThreeDigits(NumberLists):
    """Such lists whose constrained answers are `num_slots` numbers of three digits each."""

    fields: ClassVar[Mapping[str, Field]] = {
        **NumberLists.fields,
        "num_slots": Field(8, "numbers of a constrained completion", least=1),
    }

    def answers(self, row: Row) -> AnswerList:  # noqa: D102
        return AnswerList(_THREE_DIGITS, ", ", row["num_slots"], row["num_slots"])
