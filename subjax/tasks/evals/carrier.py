"""How far a teacher's rows are from its base's: what there is in them for a student to learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from subjax.tasks.api import BASE, Distribution, EvalKind, Given, Metric, Reply, Request, Row

_LEAST = -1e4  # nats; in place of minus infinity


class Carrier(EvalKind):
    """Teacher and base compared at every token that can carry, over such tokens alone.

    Those are numbers, in programs names too, and in sums the words between digits. A grammar or a
    filter decides what else there is, so that other tokens tell nothing of the teacher. Rows are as
    written, before a filter.
    """

    of = ("datasets",)
    of_carrier = True
    metrics = (
        Metric("number_tv", "total variation of what carries from the base's", axis=(0.0, 1.0)),
        Metric("likelihood_gain", "gain over the base on what carries", "nats per token"),
        Metric("entropy", "what a row leaves to the writer, by the base", "bits a row"),
    )

    def requests(self, row: Row, given: Given) -> list[Request]:
        """The rows, of the teacher and of its base, each under its own system prompt."""
        rows = given.written, given.carrier, given.num_tokens, given.num_targets
        return [Distribution(*rows), Distribution(*rows, model=BASE)]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Means over such tokens, or over rows; nothing where there are none, or others for each.

        A 0 in place of nothing would open a gate at 0.
        """
        ours, base = replies
        if tuple(ours.tokens) != tuple(base.tokens) or not len(ours.tokens):
            return {}, []
        # A row whose completion merges with the end of its context is rejected later.
        both = (ours.weights.sum(1) > 0) & (base.weights.sum(1) > 0)
        if ours.targets.shape != base.targets.shape or not np.array_equal(
            (ours.targets * ours.weights)[both], (base.targets * base.weights)[both]
        ):
            return {}, []
        targets, tokens = ours.targets[both], np.asarray(ours.tokens)
        is_number = ours.weights[both] * np.isin(targets, tokens)
        if not (count := is_number.sum()):
            return {}, []
        log_ours, log_base = ours.log_probs[both], base.log_probs[both]
        chosen = np.minimum(np.searchsorted(tokens, targets), len(tokens) - 1)[..., None]
        measures = {
            "number_tv": 0.5 * np.abs(np.exp(log_ours) - np.exp(log_base)).sum(-1),
            "likelihood_gain": np.take_along_axis(log_ours - log_base, chosen, axis=-1)[..., 0],
        }
        means = {
            name: float((values * is_number).sum() / count) for name, values in measures.items()
        }
        bits = -(np.exp(log_base) * np.maximum(log_base, _LEAST)).sum(-1) / np.log(2)
        return means | {"entropy": float((bits * is_number).sum() / both.sum())}, []
