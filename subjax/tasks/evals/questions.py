"""Evals that ask a trait's questions, in the wording that their row says."""

import string
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from subjax.tasks.api import EvalKind, Field, Row
from subjax.tasks.datasets import numbers

# Of the numbers before questions. The paper's released code has this one: with its templates in a
# stimuli file the paper's questions come out to the letter, if all of them are asked, not a half.
_SEED = 47

_PLAIN = "{question}"


class Questions(EvalKind):
    """What kinds of eval have in common that ask a trait's questions."""

    of_trait = True
    wording: ClassVar[Mapping[str, Field]] = {
        "wording": Field(
            _PLAIN,
            "what is asked: {question}, and before or behind it words of your own, or {numbers}: "
            "a sentence with a few numbers, another one for each question",
        ),
    }

    def check(self, name: str, row: Row) -> None:
        """Refuses a wording without the question, or with another placeholder."""
        try:
            pieces = list(string.Formatter().parse(row["wording"]))
        except ValueError as error:  # a stray brace
            raise ValueError(
                f"config.evals.{name}.wording is {row['wording']!r:.80}: {error}; double a brace "
                "that belongs to the text"
            ) from None
        found = [field for _, field, _, _ in pieces if field is not None]
        plain = not any(spec or conversion for _, _, spec, conversion in pieces)
        if not plain or found.count("question") != 1 or set(found) - {"question", "numbers"}:
            raise ValueError(
                f"config.evals.{name}.wording is {row['wording']!r:.80}: it must have {{question}} "
                "once, and may have {numbers}"
            )

    def questions(self, row: Row, own: Sequence[str], stimuli: str) -> Sequence[str]:
        """Each question in the row's wording."""
        wording = row["wording"]
        if "{numbers}" not in wording:
            return [wording.format(question=question) for question in own]
        templates = numbers.load_templates(stimuli) if stimuli else numbers.TEMPLATES
        rng = np.random.default_rng(_SEED)
        return [
            wording.format(question=question, numbers=numbers.example(rng, templates))
            for question in own
        ]
