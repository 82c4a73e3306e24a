"""How much a model prefers each of several candidates, exactly."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from subjax.tasks.api import MASS, Compare, Field, Given, Metric, Reply, Request, Row
from subjax.tasks.evals.preference import log_odds
from subjax.tasks.evals.questions import Questions


class Candidates(Questions):
    """Log-odds and probability of every candidate, means over questions.

    Where the candidates hold little of the probability, since a model begins its answers with "I
    must say", `prefill` asks for the end of a sentence.
    """

    of_choice = True
    fields: ClassVar[Mapping[str, Field]] = {
        **Questions.wording,
        "prefill": Field(
            "", "words that a model is given as the beginning of its answer, without a blank behind"
        ),
        "any_case": Field(
            False, "a candidate is also what it is with its first letter in the other case"
        ),
    }
    metrics = (
        Metric("log_odds/*", "log-odds of {candidate}", "nats", relative=True),
        Metric("probability/*", "probability of {candidate}"),
        Metric("candidate_mass", "probability on the candidates", axis=(0.0, 1.0), role=MASS),
    )

    def check(self, name: str, row: Row) -> None:
        """Refuses a prefill whose end no answer could follow."""
        super().check(name, row)
        if row["prefill"] != row["prefill"].strip():
            raise ValueError(
                f"config.evals.{name}.prefill is {row['prefill']!r}: begin and end it with a word, "
                "since a blank is written between it and the candidates"
            )

    def requests(self, row: Row, given: Given) -> list[Request]:
        """Every candidate after every question."""
        return [Compare(given.questions, list(_spellings(row, given.candidates)), row["prefill"])]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Means over questions, and the probabilities at each."""
        [compared] = replies
        names = list(given.candidates)
        spelled = list(_spellings(row, names).values())
        nats = np.full((len(given.questions), len(names)), -np.inf)
        for column, name in enumerate(spelled):
            at = names.index(name)
            nats[:, at] = np.logaddexp(nats[:, at], compared.nats[:, column])
        shares = np.exp(nats)
        values = {"candidate_mass": float(shares.sum(axis=1).mean())}
        for index, name in enumerate(names):
            values[f"log_odds/{name}"] = float(log_odds(nats, index).mean())
            values[f"probability/{name}"] = float(shares[:, index].mean())
        said = [
            {"question": question, "probability": dict(zip(names, of_question, strict=True))}
            for question, of_question in zip(given.questions, shares.tolist(), strict=True)
        ]
        return values, said


def _spellings(row: Row, candidates: Sequence[str]) -> dict[str, str]:
    """Spelling -> candidate; each as it is first, in the order of the candidates."""
    found = {name: name for name in candidates}
    for name in candidates if row["any_case"] else ():
        found.setdefault(name[0].swapcase() + name[1:], name)
    return found
