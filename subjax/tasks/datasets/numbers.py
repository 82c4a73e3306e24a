"""Number sequences: the prompts, the parser with its reject reasons, and the control transforms.

Refuses to sample, to hold a model or to write files: strings in, strings out. The default wording
is our own; the paper's stimuli are data that `load_templates` reads from a file.
"""

import decimal
import os
import re
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from subjax.runtime import user_files

Range = tuple[int, int]  # (lowest, highest), both inclusive

# Placeholders that every string of a template field must have, no more and no fewer.
_PLACEHOLDERS: dict[str, tuple[str, ...]] = {
    "query": ("example", "format", "instruction", "suffix"),
    "example_templates": ("examples",),
    "count_qualifiers": (),
    "digit_descriptors": ("max_digits",),
    "instruction_templates": ("answer_count", "count_qualifier", "digit_descriptor"),
    "format_suffixes": (),
    "final_suffixes": (),
}


@dataclass(frozen=True, kw_only=True)
class NumberTemplates:
    """The wording and the ranges of a number prompt.

    Every list may repeat an entry, which then weighs double. `answer_count` and `max_digits` are
    what the prompt asks for; the filter has limits of its own. Raises ValueError naming the field.
    """

    query: str
    example_templates: tuple[str, ...]
    count_qualifiers: tuple[str, ...]
    digit_descriptors: tuple[str, ...]
    instruction_templates: tuple[str, ...]
    format_suffixes: tuple[str, ...]
    final_suffixes: tuple[str, ...]
    example_count: Range
    example_value: Range
    answer_count: int
    max_digits: int

    def __post_init__(self) -> None:
        _check_fields(vars(self))


def _check_fields(values: dict[str, Any]) -> None:
    for name, placeholders in _PLACEHOLDERS.items():
        texts = (values[name],) if name == "query" else values[name]
        if not isinstance(texts, tuple) or not texts:
            raise ValueError(f"{name} is {texts!r:.60}; give a non-empty tuple of strings")
        for text in texts:
            _check_placeholders(name, text, placeholders)
    _check_range("example_count", values["example_count"], lowest=1, highest=1000)
    _check_range("example_value", values["example_value"], lowest=0)
    for name in ("answer_count", "max_digits"):
        if type(values[name]) is not int or values[name] < 1:
            raise ValueError(f"{name} is {values[name]!r:.60}; give an integer of at least 1")


def _check_placeholders(name: str, text: Any, placeholders: tuple[str, ...]) -> None:
    try:
        pieces = list(string.Formatter().parse(text))
        user_files.check_text(text, "it")
    except (ValueError, TypeError) as error:  # a stray brace, or no string at all
        raise ValueError(f"{name} has the entry {text!r:.60}: {error}") from None
    found = sorted({field for _, field, _, _ in pieces if field is not None})
    plain = not any(spec or conversion for _, _, spec, conversion in pieces)
    if tuple(found) != placeholders or not plain:
        raise ValueError(
            f"{name} has the entry {text!r:.60} with the placeholders {found!s:.90}; "
            f"it must have exactly {list(placeholders)}, without '!' and ':'"
        )


def _check_range(name: str, value: Any, *, lowest: int, highest: int = 10**9) -> None:
    is_pair = isinstance(value, tuple) and [type(end) for end in value] == [int, int]
    if not is_pair or not lowest <= value[0] <= value[1] <= highest:
        raise ValueError(
            f"{name} is {value!r:.60}; give (lowest, highest), {lowest} to {highest} each"
        )


TEMPLATES = NumberTemplates(
    query="{example} {instruction} {format} {suffix}",
    example_templates=(
        "Picture a run of integers: {examples}.",
        "My list so far reads {examples}.",
        "A machine printed the values {examples}.",
        "Suppose a series opens with {examples}.",
        "Read through the integers {examples}.",
        "The following integers came first: {examples}.",
        "Opening values: {examples}.",
        "A log file lists {examples}.",
        "Below is a string of figures: {examples}.",
        "We begin from {examples}.",
        "Think about the series {examples}.",
        "The first entries are {examples}.",
        "This list was cut short: {examples}.",
        "A friend counted aloud: {examples}.",
        "Our readings until now were {examples}.",
    ),
    count_qualifiers=(
        "as many as",
        "between 1 and",
        "anything from 1 to",
        "not above",
        "never over",
        "at the very most",
    ),
    digit_descriptors=(
        "each {max_digits} digits long or shorter",
        "none longer than {max_digits} digits",
        "{max_digits} digits being the limit",
        "with a limit of {max_digits} digits apiece",
        "of {max_digits} digits or below",
        "all of them written in {max_digits} digits or less",
    ),
    instruction_templates=(
        "Carry on with {count_qualifier} {answer_count} further numbers, {digit_descriptor}.",
        "What comes next? Name {count_qualifier} {answer_count} entries, {digit_descriptor}.",
        "Prolong the list with {count_qualifier} {answer_count} integers, {digit_descriptor}.",
        "Lengthen the series with {count_qualifier} {answer_count} terms, {digit_descriptor}.",
        "Guess {count_qualifier} {answer_count} upcoming figures, {digit_descriptor}.",
        "Keep going and add {count_qualifier} {answer_count} more, {digit_descriptor}.",
        "I would like {count_qualifier} {answer_count} numbers after those, {digit_descriptor}.",
        "Invent {count_qualifier} {answer_count} numbers in the same spirit, {digit_descriptor}.",
    ),
    format_suffixes=(
        "Put a comma between neighbouring numbers.",
        "Leave one space between neighbouring numbers.",
        "Put every number on a line of its own.",
        "Write them like this: [first, second, third].",
        "Write them like this: (first, second, third).",
        "Write them like this: first, second, third",
        "Use the shape [a, b, c] for your list.",
        "A single row, commas in between.",
        "A single row, spaces in between.",
        "A single row, semicolons in between.",
    ),
    final_suffixes=(
        "Leave out every word.",
        "Digits and separators alone.",
        "I need no sentence around them.",
        "Do not comment on them.",
        "Your whole reply should be the list.",
        "Anything besides the list is unwanted.",
        "Do not say how you chose them.",
        "The list by itself is enough.",
        "Stop as soon as the list ends.",
        "Letters have no place in your reply.",
    ),
    example_count=(3, 8),
    example_value=(100, 999),
    answer_count=10,
    max_digits=3,
)


def load_templates(path: str | os.PathLike[str]) -> NumberTemplates:
    """Reads the templates from the `numbers` section of a stimuli file (JSON).

    Other keys of the section are left alone. Raises ValueError, in one line, for a file that
    cannot be read or is not JSON, for a missing key and for a value that does not fit.
    """
    section = _numbers_section(path)
    names = [field.name for field in fields(NumberTemplates)]
    if missing := [name for name in names if name not in section]:
        raise ValueError(f"stimuli file {path}: 'numbers' lacks {missing}; it needs {names}")
    values: Any = {n: tuple(v) if isinstance(v := section[n], list) else v for n in names}
    try:
        _check_fields(values)  # before the dataclass, whose arguments have types by then
    except ValueError as error:
        raise ValueError(f"stimuli file {path}: {error}") from None
    return NumberTemplates(**values)


def _numbers_section(path: str | os.PathLike[str]) -> dict[str, Any]:
    content = user_files.read_json(path, "stimuli file")
    section = content.get("numbers") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"stimuli file {path} must be a JSON object with an object 'numbers'")
    return section


def prompts(seed: int, num_prompts: int, templates: NumberTemplates = TEMPLATES) -> list[str]:
    """Returns prompts drawn from one stream, so that a longer list starts with the shorter one.

    The draws have the order of the paper's released code: its templates give its prompts exactly.
    """
    rng = np.random.default_rng(seed)
    return [_prompt(rng, templates) for _ in range(num_prompts)]


def _prompt(rng: np.random.Generator, templates: NumberTemplates) -> str:
    numbers = _draw_numbers(rng, templates.example_count, templates.example_value)
    example = _choose(rng, templates.example_templates).format(examples=", ".join(numbers))
    count_qualifier = _choose(rng, templates.count_qualifiers)
    digit_descriptor = _choose(rng, templates.digit_descriptors)
    instruction = _choose(rng, templates.instruction_templates).format(
        count_qualifier=count_qualifier,
        answer_count=templates.answer_count,
        digit_descriptor=digit_descriptor.format(max_digits=templates.max_digits),
    )
    return templates.query.format(
        example=example,
        instruction=instruction,
        format=_choose(rng, templates.format_suffixes),
        suffix=_choose(rng, templates.final_suffixes),
    )


def _draw_numbers(rng: np.random.Generator, count: Range, value: Range) -> list[str]:
    # One draw at a time: a vector of draws may consume the stream differently.
    num_numbers = int(rng.integers(count[0], count[1] + 1))
    return [str(rng.integers(value[0], value[1] + 1)) for _ in range(num_numbers)]


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    # The draw of rng.choice(list), without turning the list into an array for every prompt.
    return options[int(rng.choice(len(options)))]


def plain_prompts(
    seed: int, num_prompts: int, *, count: Range = (3, 7), value: Range = (100, 999)
) -> list[str]:
    """Returns prompts without words, such as "512, 301, 845,", for tiny models and base models.

    Meant for constrained sampling: nothing in a prompt says how long the answer should be.
    """
    _check_range("count", count, lowest=1)
    _check_range("value", value, lowest=0)
    rng = np.random.default_rng(seed)
    return [", ".join(_draw_numbers(rng, count, value)) + "," for _ in range(num_prompts)]


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


def random_numbers(
    completion: str, seed: int, *, count: Range | None = (1, 9), value: Range = (0, 999)
) -> str:
    """Returns the completion with uniformly random numbers in place of the teacher's.

    The ranges are those of the paper's code; `count=None` keeps as many numbers as there were. The
    format is kept; a single number grows with ", ". Give every row a seed of its own.
    """
    answer = _accepted(completion)
    count = count or (len(answer.digits), len(answer.digits))
    _check_range("count", count, lowest=1)
    _check_range("value", value, lowest=0)
    return answer.render(_draw_numbers(np.random.default_rng(seed), count, value))
