"""How much a model prefers each of several candidates, exactly."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from subjax.tasks.api import MASS, SUBJECT, Given, Metric, Reply, Request, Row
from subjax.tasks.evals.comparing import Comparing
from subjax.tasks.evals.preference import log_odds


class Candidates(Comparing):
    """Log-odds and probability of every candidate, means over questions."""

    metrics = (
        Metric("log_odds/*", "log-odds of {candidate}", "nats", relative=True),
        Metric("probability/*", "probability of {candidate}"),
        Metric("candidate_mass", "probability on the candidates", axis=(0.0, 1.0), role=MASS),
    )

    def requests(self, row: Row, given: Given) -> list[Request]:
        """Every candidate after every question."""
        return [self.compare(row, given, SUBJECT)]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Means over questions, and the probabilities at each."""
        names, nats = list(given.candidates), self.nats(row, given, replies[0])
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
