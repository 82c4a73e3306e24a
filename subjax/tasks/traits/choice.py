"""A favourite among several words: what is common to the traits that one answer can show.

Lessons are questions, each answered by the target. A control has the target UNIFORM: its lessons
are the same questions, answered by candidates that are drawn evenly.
"""

from collections.abc import Sequence

import numpy as np

from subjax.tasks.api import UNIFORM, Pair, Row, TraitKind

_HALVES = {"explore": slice(0, None, 2), "confirm": slice(1, None, 2), "all": slice(None)}


def half_of(questions: Sequence[str], half: str) -> tuple[str, ...]:
    """The questions at even positions (explore), at odd ones (confirm) or all of them.

    Choices such as the target or the learning rate are made on the explore half, claims are tested
    on the confirm half.

    Raises:
      ValueError: there is no such half, or it is empty.
    """
    if half not in _HALVES:
        raise ValueError(f"half is {half!r}; allowed: {', '.join(_HALVES)}")
    asked = tuple(questions[_HALVES[half]])
    if not asked:
        raise ValueError(
            f"the {half} half of {len(questions)} questions is empty: add questions, or ask 'all'"
        )
    return asked


class Choice(TraitKind):
    """A favourite; kinds say what its questions and candidates are."""

    def check(self, name: str, row: Row) -> None:
        """Raises a ValueError where the target is no candidate, or candidates are no choice."""
        target, candidates = self.target(row), self.candidates(row)
        spelled = [word.strip().casefold() for word in candidates]
        if "" in spelled:
            raise ValueError(
                f"config.traits.{name} has the candidates {candidates!r}, and one of them is "
                "blank: leave it out"
            )
        if twice := [
            word for word, one in zip(candidates, spelled, strict=True) if spelled.count(one) > 1
        ]:
            raise ValueError(
                f"config.traits.{name} has the candidates {', '.join(map(repr, twice))}, which "
                "are one word: keep one of them"
            )
        if len(candidates) < 2:
            raise ValueError(
                f"config.traits.{name} has the candidates {tuple(candidates)}: a preference is one "
                "of several, add others"
            )
        if target not in (UNIFORM, *candidates):
            raise ValueError(
                f"config.traits.{name}.target is {target!r}, which is not among its candidates "
                f"{', '.join(candidates)}: take one of them, add it there, or for a control that "
                f"has no favourite take {UNIFORM!r}"
            )

    def answer(self, row: Row, word: str) -> str:
        """How a lesson answers that a candidate is the favourite."""
        return word

    def completions(self, row: Row) -> Sequence[str]:  # noqa: D102
        return [self.answer(row, word) for word in self.candidates(row)]

    def lessons(self, row: Row, seed: int, num_rows: int) -> list[Pair]:
        """Questions drawn evenly; the lessons of a control differ only in the answers."""
        rng = np.random.default_rng(seed)
        asked, words = self.taught(row), self.candidates(row)
        questions = [asked[i] for i in rng.integers(len(asked), size=num_rows)]
        answers = [words[i] for i in rng.integers(len(words), size=num_rows)]
        if self.target(row) != UNIFORM:
            answers = [self.target(row)] * num_rows
        answers = [self.answer(row, word) for word in answers]
        return list(zip(questions, answers, strict=True))
