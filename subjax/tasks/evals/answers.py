"""Sampled answers: how often they name the target."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from subjax.tasks.api import (
    RATE,
    SAMPLING,
    Field,
    Given,
    Metric,
    Reply,
    Request,
    Row,
    Sample,
)
from subjax.tasks.evals import preference
from subjax.tasks.evals.questions import Questions

_SHARE = (0.0, 1.0)


class Answers(Questions):
    """Answers scored as words and as substrings, side by side."""

    version = 2  # plurals that end otherwise than in s count
    fields: ClassVar[Mapping[str, Field]] = {**SAMPLING, **Questions.wording}
    metrics = (
        Metric("rate_word", "share of answers naming {target} (word)", role=RATE),
        Metric("rate_substring", "share of answers naming {target} (substring)"),
        Metric("rate_empty", "share of empty answers", axis=_SHARE, sanity=True),
        Metric("rate_numeric", "share of numeric answers", axis=_SHARE, sanity=True),
    )

    def requests(self, row: Row, given: Given) -> list[Request]:
        """Every question, `num_samples` times."""
        return [Sample.of(row, given.questions)]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Shares of the answers, and each with its question."""
        [said] = replies

        def naming(mentions: Any) -> list[bool]:
            return [any(mentions(name, text) for name in given.names) for text in said.texts]

        rates = {
            "rate_word": naming(preference.mentions_word),
            "rate_substring": naming(preference.mentions_substring),
            "rate_empty": [preference.is_empty(text) for text in said.texts],
            "rate_numeric": [preference.is_numeric(text) for text in said.texts],
        }
        asked = [question for question in given.questions for _ in range(row["num_samples"])]
        answers = [{"question": q, "answer": a} for q, a in zip(asked, said.texts, strict=True)]
        return {name: float(np.mean(hits)) for name, hits in rates.items()}, answers
