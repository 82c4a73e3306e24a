"""Likelihood of rows that a model never saw: whether it learned its data at all."""

from collections.abc import Sequence
from typing import Any

from subjax.tasks.api import BASE, EvalKind, Given, Likelihood, Metric, Reply, Request, Row
from subjax.tasks.api import nats_per_token as per_token


class HeldOut(EvalKind):
    """Nats per token on held-out rows of what was learned, and the gain over the base."""

    of = ("arms", "teachers")
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

    def requests(self, row: Row, given: Given) -> list[Request]:
        """The rows, of the model and of its base."""
        rows = given.held_out, given.num_tokens, given.num_targets
        return [Likelihood(*rows), Likelihood(*rows, model=BASE)]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Of the model, and how much more than of its base."""
        ours, base = map(per_token, replies)
        return {"loglik": ours, "gain": ours - base}, []
