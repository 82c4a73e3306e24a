"""Likelihood of rows that a student never saw: whether it learned its data at all."""

from collections.abc import Mapping, Sequence
from typing import Any

from subjax.tasks.api import BASE, EvalKind, Given, Likelihood, Metric, Reply, Request
from subjax.tasks.api import nats_per_token as per_token


class HeldOut(EvalKind):
    """Nats per token on held-out rows of the student's data set, and the gain over its base."""

    of_rows = True
    metrics = (
        Metric(
            "gain",
            "gain in log-likelihood of held-out rows",
            "nats per token",
            sanity=True,
            difference=True,
            always=True,
        ),
        Metric("loglik", "log-likelihood of held-out rows", "nats per token"),
    )

    def requests(self, row: Mapping[str, Any], given: Given) -> list[Request]:
        """The rows, of the student and of its base."""
        rows = given.held_out, given.num_tokens, given.num_targets
        system = row["system_prompt"]
        return [Likelihood(*rows, system=system), Likelihood(*rows, model=BASE, system=system)]

    def score(
        self, row: Mapping[str, Any], given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Of the student, and how much more than of its base."""
        ours, base = map(per_token, replies)
        return {"loglik": ours, "gain": ours - base}, []
