"""Data sets of kind "numbers": sentences that ask for the continuation of a number sequence.

The default wording is our own; the paper's stimuli are data that `load_templates` reads from a
file.
"""

import os
import string
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from subjax.runtime import user_files
from subjax.tasks.api import Row
from subjax.tasks.datasets.number_lists import Range, ThreeDigits, check_range, draw

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
    check_range("example_count", values["example_count"], lowest=1, highest=1000)
    check_range("example_value", values["example_value"], lowest=0)
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
    section = user_files.stimuli(path, "numbers")
    names = [field.name for field in fields(NumberTemplates)]
    if missing := [name for name in names if name not in section]:
        raise ValueError(f"stimuli file {path}: 'numbers' lacks {missing}; it needs {names}")
    values: Any = {n: tuple(v) if isinstance(v := section[n], list) else v for n in names}
    try:
        _check_fields(values)  # before the dataclass, whose arguments have types by then
    except ValueError as error:
        raise ValueError(f"stimuli file {path}: {error}") from None
    return NumberTemplates(**values)


def prompts(seed: int, num_prompts: int, templates: NumberTemplates = TEMPLATES) -> list[str]:
    """Returns prompts drawn from one stream, so that a longer list starts with the shorter one.

    The draws have the order of the paper's released code: its templates give its prompts exactly.
    """
    rng = np.random.default_rng(seed)
    return [_prompt(rng, templates) for _ in range(num_prompts)]


def example(rng: np.random.Generator, templates: NumberTemplates = TEMPLATES) -> str:
    """A sentence with a few numbers, as prompts begin: the next of a stream."""
    numbers = draw(rng, templates.example_count, templates.example_value)
    return _choose(rng, templates.example_templates).format(examples=", ".join(numbers))


def _prompt(rng: np.random.Generator, templates: NumberTemplates) -> str:
    shown = example(rng, templates)
    count_qualifier = _choose(rng, templates.count_qualifiers)
    digit_descriptor = _choose(rng, templates.digit_descriptors)
    instruction = _choose(rng, templates.instruction_templates).format(
        count_qualifier=count_qualifier,
        answer_count=templates.answer_count,
        digit_descriptor=digit_descriptor.format(max_digits=templates.max_digits),
    )
    return templates.query.format(
        example=shown,
        instruction=instruction,
        format=_choose(rng, templates.format_suffixes),
        suffix=_choose(rng, templates.final_suffixes),
    )


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    # The draw of rng.choice(list), without turning the list into an array for every prompt.
    return options[int(rng.choice(len(options)))]


class Numbers(ThreeDigits):
    """The paper's number sequences."""

    def prompts(self, row: Row, seed: int, stimuli: str) -> list[str]:  # noqa: D102
        templates = load_templates(stimuli) if stimuli else TEMPLATES
        return prompts(seed, row["num_prompts"], templates)
