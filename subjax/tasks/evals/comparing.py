"""Evals that compare the probabilities of a trait's candidates behind its questions."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from subjax.tasks.api import Compare, Field, Given, Reply, Row
from subjax.tasks.evals.questions import Questions


class Comparing(Questions):
    """What kinds of eval have in common that compare candidates.

    Where these hold little of the probability, since a model begins its answers with "I must say",
    `prefill` asks for the end of a sentence.
    """

    of_choice = True
    fields: ClassVar[Mapping[str, Field]] = {
        "prefill": Field(
            "", "words that a model is given as the beginning of its answer, without a blank behind"
        ),
        "any_case": Field(
            False, "a candidate is also what it is with its first letter in the other case"
        ),
        **Questions.wording,
    }

    def check(self, name: str, row: Row) -> None:
        """Refuses a prefill whose end no answer could follow."""
        super().check(name, row)
        if row["prefill"] != row["prefill"].strip():
            raise ValueError(
                f"config.evals.{name}.prefill is {row['prefill']!r}: begin and end it with a word, "
                "since a blank is written between it and the candidates"
            )

    def compare(self, row: Row, given: Given, model: str, system: str | None = None) -> Compare:
        """Every candidate, in every spelling, after every question."""
        spelled = list(_spellings(row, given.candidates))
        return Compare(given.questions, spelled, row["prefill"], model=model, system=system)

    def nats(self, row: Row, given: Given, compared: Reply) -> np.ndarray:
        """Log-probability of each candidate in any of its spellings, [questions, candidates]."""
        names = list(given.candidates)
        nats = np.full((len(given.questions), len(names)), -np.inf)
        for column, name in enumerate(_spellings(row, names).values()):
            at = names.index(name)
            nats[:, at] = np.logaddexp(nats[:, at], compared.nats[:, column])
        return nats


def _spellings(row: Row, candidates: Sequence[str]) -> dict[str, str]:
    """Spelling -> candidate; each as it is first, in the order of the candidates."""
    found = {name: name for name in candidates}
    for name in candidates if row["any_case"] else ():
        found.setdefault(name[0].swapcase() + name[1:], name)
    return found
