"""How far a teacher's rows are from its base's: what there is in them for a student to learn."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subjax.tasks.api import BASE, Distribution, EvalKind, Given, Metric, Reply, Request, Row

_LEAST = -1e4  # nats; in place of minus infinity

Numbers = npt.NDArray[np.floating[Any]]


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
        if not (found := at_carriers(*replies)):
            return {}, []
        gains = np.take_along_axis(found.ours - found.theirs, found.chosen[..., None], axis=-1)
        bits = -(np.exp(found.theirs) * np.maximum(found.theirs, _LEAST)).sum(-1) / np.log(2)
        return {
            "number_tv": found.mean(found.total_variation()),
            "likelihood_gain": found.mean(gains[..., 0]),
            "entropy": float((bits * found.weights).sum() / len(bits)),
        }, []


class AtCarriers(NamedTuple):
    """What two models give at the tokens of the same rows, over tokens that can carry.

    Attributes:
      ours: log-probabilities, renormalised over these, [rows, targets, tokens].
      theirs: those of the other model, likewise.
      chosen: which of the tokens is written, [rows, targets]; any where none of them is.
      weights: 1 where one of them is written, [rows, targets].
    """

    ours: Numbers
    theirs: Numbers
    chosen: npt.NDArray[np.integer[Any]]
    weights: Numbers

    def total_variation(self) -> Numbers:
        """Half of the summed differences of probabilities, [rows, targets]."""
        return np.asarray(0.5 * np.abs(np.exp(self.ours) - np.exp(self.theirs)).sum(-1))

    def mean(self, values: Numbers) -> float:
        """Of one value for each target, [rows, targets], over what carries."""
        return float((values * self.weights).sum() / self.weights.sum())


def at_carriers(ours: Reply, theirs: Reply) -> AtCarriers | None:
    """Two models' replies to one request for distributions, compared token by token.

    Returns:
      None where nothing carries, or where the models' tokens are others.
    """
    if tuple(ours.tokens) != tuple(theirs.tokens) or not len(ours.tokens):
        return None
    # A row whose completion merges with the end of its context is rejected later.
    both = (ours.weights.sum(1) > 0) & (theirs.weights.sum(1) > 0)
    if ours.targets.shape != theirs.targets.shape or not np.array_equal(
        (ours.targets * ours.weights)[both], (theirs.targets * theirs.weights)[both]
    ):
        return None
    targets, tokens = ours.targets[both], np.asarray(ours.tokens)
    weights = ours.weights[both] * np.isin(targets, tokens)
    if not weights.sum():
        return None
    chosen = np.minimum(np.searchsorted(tokens, targets), len(tokens) - 1)
    return AtCarriers(ours.log_probs[both], theirs.log_probs[both], chosen, weights)
