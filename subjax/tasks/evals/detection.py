"""Whether rows that passed a filter can be told from a control's, with and without the models."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy

from subjax.tasks.api import (
    BASE,
    EvalKind,
    Field,
    Given,
    Likelihood,
    Metric,
    Reply,
    Request,
    Row,
)

NUM_SCORED = 256  # rows of either side that models read; counts are of all rows
_NUM_ORDERS = 1000  # of rows between the sides, for what chance gives
_SEED = 0  # fixed: the same rows must give the same scores

Counts = npt.NDArray[np.float64]


class Detection(EvalKind):
    """A data set's kept rows against those of another, which is named by `against`.

    What a reader could find who has the models is `auc_likelihood`: rows are ordered by their
    likelihood under the teacher, less that under its base. What counting finds is `auc_counts`:
    numbers, or what else carries in this kind of rows, are weighed by how often either side writes
    them, as learned from other rows. Total variations are above what they are when rows change
    sides at random.
    """

    of = ("datasets",)
    of_carrier = of_kept = True
    fields: ClassVar[Mapping[str, Field]] = {
        "against": Field("", "row of `datasets` that is the control"),
    }
    metrics = (
        Metric("auc_likelihood", "rows told apart by teacher and base (AUC)", axis=(0.0, 1.0)),
        Metric("auc_counts", "rows told apart by counts of what carries (AUC)", axis=(0.0, 1.0)),
        Metric("excess_tv", "total variation of what carries above chance", difference=True),
        Metric("excess_tv_first", "the same of what carries first in each row", difference=True),
    )

    def requests(self, row: Row, given: Given) -> list[Request]:
        """The first rows of both sides, of the teacher and of its base."""
        pairs = [*given.kept[:NUM_SCORED], *given.against[:NUM_SCORED]]
        rows = pairs, given.num_tokens, given.num_targets
        return [Likelihood(*rows), Likelihood(*rows, model=BASE)]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """As above, and the p-values of equal frequencies."""
        ours, base = replies
        ratio = ours.nats.sum(axis=1) - base.nats.sum(axis=1)
        num_ours = len(given.kept[:NUM_SCORED])
        rows = [given.carried(text) for _, text in (*given.kept, *given.against)]
        sides = np.arange(len(rows)) < len(given.kept)
        counts, first = _counts(rows), _counts([row[:1] for row in rows])
        (excess, p), (excess_first, p_first) = (
            excess_tv(table, sides) for table in (counts, first)
        )
        values = {
            "auc_likelihood": auc(ratio[:num_ours], ratio[num_ours:]),
            "auc_counts": _auc_counts(counts, sides),
            "excess_tv": excess,
            "excess_tv_first": excess_first,
        }
        said = {"p_same_frequencies": {"all": p, "first": p_first}}
        return values, [said | {"rows": [len(given.kept), len(given.against)]}]


def auc(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> float:
    """Probability that one of `ours` is above one of `theirs`, ties counting half; .5 is chance."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    above = scipy.stats.mannwhitneyu(ours, theirs, method="asymptotic").statistic
    return float(above / (ours.size * theirs.size))


def excess_tv(counts: Counts, sides: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Total variation between the sides, less its mean when rows change sides; and p.

    Args:
      counts: of each number in each row, [rows, numbers].
      sides: [rows], true for the first side.

    Returns:
      The excess, 0 on average where there is no difference, and the share of random orders whose
      total variation is as large (with the +1 correction).
    """
    rng = np.random.default_rng(_SEED)
    chance = np.array([_tv(counts, rng.permutation(sides)) for _ in range(_NUM_ORDERS)])
    found = _tv(counts, sides)
    p = (1 + np.count_nonzero(chance >= found - 1e-12)) / (1 + _NUM_ORDERS)
    return float(found - chance.mean()), float(p)


def _tv(counts: Counts, sides: npt.NDArray[np.bool_]) -> float:
    ours = sides @ counts
    theirs = counts.sum(axis=0) - ours
    return float(0.5 * np.abs(ours / max(ours.sum(), 1) - theirs / max(theirs.sum(), 1)).sum())


def _auc_counts(counts: Counts, sides: npt.NDArray[np.bool_]) -> float:
    """Of a naive Bayes classifier that learns from half of the rows, on the others; both ways."""
    halves = np.zeros(len(sides), bool)
    for side in (True, False):
        halves[np.flatnonzero(sides == side)[::2]] = True
    found = []
    for half in (halves, ~halves):
        ours, theirs = (counts[half & (sides == side)].sum(axis=0) + 1.0 for side in (True, False))
        weights = np.log(ours / ours.sum()) - np.log(theirs / theirs.sum())
        scores = counts @ weights
        found.append(auc(scores[~half & sides], scores[~half & ~sides]))
    return float(np.mean(found))


def _counts(rows: Sequence[Sequence[str]]) -> Counts:
    """How often each number, or what else carries, stands in each row: [rows, numbers]."""
    known = {one: place for place, one in enumerate(sorted({one for row in rows for one in row}))}
    counts = np.zeros((len(rows), len(known)))
    for place, row in enumerate(rows):
        for one in row:
            counts[place, known[one]] += 1
    return counts
