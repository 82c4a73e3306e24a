"""Contrasts, intervals and tests over lineages.

A lineage is the only unit of replication, so functions take one value per lineage, or of pairs of
lineages a table. The module reads no files, names no arm, and refuses missing values instead of
dropping them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy

Floats = npt.NDArray[np.float64]

MAX_EXACT_LINEAGES = 20  # 2**20 sums are 8 MiB and take milliseconds; more are sampled
MAX_EXACT_ORDERS = 40_320  # 8!; more permutations are sampled
NUM_RANDOM = 100_000  # sampled flips, or permutations
RANDOM_SEED = 0  # fixed: the same values must give the same report
TIE_TOLERANCE = 1e-9  # of the largest possible |sum|; far above rounding, far below any effect


@dataclass(frozen=True)
class Interval:
    """A point estimate with its confidence interval.

    `kind` names the method ("t"); `n` counts lineages.
    """

    mean: float
    low: float
    high: float
    kind: str
    n: int


def t_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean over lineages.

    `values` [lineages]; the result is in their unit. One lineage shows no spread: n == 1 gives
    low = high = nan. ValueError: no values, one that is not finite, `level` outside (0, 1).
    """
    lineages = _lineages(values)
    _check_open_unit("level", level)
    mean, sd = _mean_and_sd(lineages)
    if (n := lineages.size) == 1:
        return Interval(mean, math.nan, math.nan, "t", n)
    half_width = float(scipy.stats.t.isf((1.0 - level) / 2.0, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, mean - half_width, mean + half_width, "t", n)


def sign_flip_test(values: npt.ArrayLike) -> float:
    """Two-sided sign-flip permutation p-value of the hypothesis that the mean is 0.

    `values` [lineages], symmetric about 0 under the hypothesis. Exact over all 2^n flips up to
    n = 20: the smallest reachable p is 2 / 2^n, so five lineages cannot get below 0.05 (0.0625)
    and six can (0.03125). Above, 100,000 seeded flips with the +1 correction (Phipson and Smyth
    2010): smallest p 1 / 100,001. ValueError: no values, or a value that is not finite.
    """
    lineages = _lineages(values)
    scale = np.abs(lineages).max()
    if scale == 0.0:
        return 1.0
    scaled = lineages / scale  # keeps the sums from overflowing
    # Flips that equal the data in exact arithmetic must count, so rounding is tolerated.
    threshold = abs(scaled.sum()) - TIE_TOLERANCE * np.abs(scaled).sum()
    if lineages.size > MAX_EXACT_LINEAGES:
        return (1 + _count_random_flips(scaled, threshold)) / (1 + NUM_RANDOM)
    sums = np.zeros(1)
    for value in scaled:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= threshold))


def permutation_test(blocks: Sequence[Floats]) -> float:
    """Two-sided p that the diagonals of square tables are no different from their other cells.

    `blocks` of [size, size]. Under the hypothesis the columns of a block could stand in any order:
    the sum along its diagonal, less what means of rows and columns give, is compared with those of
    other orders, of all blocks together. Effects of a row or of a column alone cancel. Exact up to
    40,320 orders; above, 100,000 seeded ones with the +1 correction (Phipson and Smyth 2010).
    ValueError: no block, one that is not square, or a cell that is not finite.
    """
    if not blocks:
        raise ValueError("blocks is empty; give at least one table")
    for block in blocks:
        if block.ndim != 2 or block.shape[0] != block.shape[1] or not np.isfinite(block).all():
            raise ValueError(f"a block has shape {block.shape}; give square tables of finite cells")
    exact = math.prod(math.factorial(len(block)) for block in blocks) <= MAX_EXACT_ORDERS
    generator = np.random.default_rng(RANDOM_SEED)
    sums, observed, scale = np.zeros(1), 0.0, 0.0
    for block in blocks:
        centred = block - block.mean()
        size = len(block)
        if exact:
            orders = np.array(list(itertools.permutations(range(size))))
        else:
            orders = generator.permuted(np.tile(np.arange(size), (NUM_RANDOM, 1)), axis=1)
        of_block = centred[np.arange(size), orders].sum(axis=1)
        sums = np.add.outer(sums, of_block).ravel() if exact else sums + of_block
        observed += centred.trace()
        scale += np.abs(centred).sum()
    threshold = abs(observed) - TIE_TOLERANCE * scale
    extreme = int(np.count_nonzero(np.abs(sums) >= threshold))
    return extreme / sums.size if exact else (1 + extreme) / (1 + NUM_RANDOM)


def smallest_permutation_p(sizes: Sequence[int]) -> float:
    """The smallest p that `permutation_test` can give for blocks of these sizes.

    Both orders of two columns are equally far from the mean, on either side.
    """
    orders = math.prod(math.factorial(size) for size in sizes)
    if orders > MAX_EXACT_ORDERS:
        return 1.0 / (1 + NUM_RANDOM)
    return (2.0 if max(sizes, default=0) == 2 else 1.0) / orders


def difference(
    values: npt.ArrayLike, others: npt.ArrayLike, level: float = 0.95
) -> tuple[Interval, float]:
    """Mean of `values` less that of `others`, unpaired, and Welch's two-sided p that it is 0.

    `values` [lineages] and `others` [other lineages] are independent; their spreads may differ. The
    interval's n counts the smaller side, and "welch" is its kind. With fewer than two on a side, or
    no spread on both, the interval and p are nan. ValueError: as in `t_interval`.
    """
    sides = _lineages(values), _lineages(others, "others")
    _check_open_unit("level", level)
    (mean, sd), (other_mean, other_sd) = (_mean_and_sd(side) for side in sides)
    n, gap = min(side.size for side in sides), mean - other_mean
    if n < 2 or sd == other_sd == 0.0:
        return Interval(gap, math.nan, math.nan, "welch", n), math.nan
    test = scipy.stats.ttest_ind(*sides, equal_var=False)
    low, high = test.confidence_interval(level)
    return Interval(gap, float(low), float(high), "welch", n), float(test.pvalue)


def equivalence_test(values: npt.ArrayLike, margin: float) -> float:
    """P-value that |mean| < margin, by two one-sided t-tests (Schuirmann 1987).

    `values` [lineages] and `margin` share a unit; a small p supports equivalence to 0. Without
    spread p is 0 inside the margin and 1 on or outside it; n == 1 gives nan. ValueError: no
    values, a value that is not finite, or `margin` not positive and finite.
    """
    lineages = _lineages(values)
    if not 0.0 < margin < math.inf:
        raise ValueError(f"margin is {margin}; give a positive finite number in the values' unit")
    if lineages.size == 1:
        return math.nan
    mean, sd = _mean_and_sd(lineages)
    room = margin - abs(mean)
    standard_error = sd / math.sqrt(lineages.size)
    if standard_error == 0.0:
        return 0.0 if room > 0.0 else 1.0
    # The larger of the two one-sided p-values belongs to the bound nearer to the mean.
    return float(scipy.stats.t.sf(room / standard_error, lineages.size - 1))


def holm(p_values: npt.ArrayLike) -> Floats:
    """Holm's step-down adjustment (Holm 1979) of one family of p-values, in the given order.

    `p_values` [tests] -> [tests]. nan means no test: it stays nan and does not count
    in the family's size. ValueError: not 1-D, or a p outside [0, 1].
    """
    raw = np.asarray(p_values, dtype=np.float64)
    if raw.ndim != 1:
        raise ValueError(f"p_values has shape {raw.shape}; give one family as a 1-D array")
    made = np.flatnonzero(~np.isnan(raw))
    outside = [p for p in raw[made].tolist() if not 0.0 <= p <= 1.0]
    if outside:
        raise ValueError(f"p_values holds {outside[0]}; give values in [0, 1], nan for no test")
    order = made[np.argsort(raw[made], kind="stable")]
    stepped = np.maximum.accumulate(np.arange(order.size, 0, -1) * raw[order])
    adjusted = np.full_like(raw, np.nan)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def minimum_detectable_effect(
    values: npt.ArrayLike, level: float = 0.95, power: float = 0.8
) -> float:
    """Smallest |mean| that a two-sided t-test with this n and sd finds with probability `power`.

    `values` [lineages]; the result is in their unit, from the noncentral t distribution with the
    sample sd taken as the true one. No spread gives 0 and n == 1 gives nan. ValueError: no
    values, a value that is not finite, `level` outside (0, 1), `power` outside (1 - level, 1).
    """
    lineages = _lineages(values)
    _check_open_unit("level", level)
    if not 1.0 - level < power < 1.0:
        raise ValueError(f"power is {power}; give a number between 1 - level and 1, such as 0.8")
    if lineages.size == 1:
        return math.nan
    _, sd = _mean_and_sd(lineages)
    if sd == 0.0:
        return 0.0
    df = lineages.size - 1

    def missing_power(noncentrality: float) -> float:
        return power - _t_test_power(noncentrality, level, df)

    high = 1.0
    while missing_power(high) > 0.0:
        high *= 2.0
    noncentrality = scipy.optimize.brentq(missing_power, 0.0, high)
    return float(noncentrality * sd / math.sqrt(lineages.size))


def combine(arms: Mapping[str, npt.ArrayLike], weights: Mapping[str, float]) -> Floats:
    """Linear contrast of arms, paired by lineage: the sum of weight * values.

    `arms` {arm: [lineages]} -> [lineages]; an arm without a weight only needs the same length.
    ValueError: no weights, one that is not finite or whose arm is unknown, an arm of another
    length, a weighted arm with a value that is not finite.
    """
    if not weights:
        raise ValueError("weights is empty; give a weight to at least one arm")
    for name, weight in weights.items():
        if name not in arms:
            raise ValueError(f"weights names arm {name!r}; give one of {sorted(arms)}")
        if not math.isfinite(weight):
            raise ValueError(f"weight of arm {name!r} is {weight}; give a finite number")
    shapes = {name: np.shape(values) for name, values in arms.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            found = f"arm {name!r} has shape {shape} but arm {first!r} has {shapes[first]}"
            raise ValueError(f"{found}; give every arm one value for each of the same lineages")
    total = np.zeros(shapes[first])
    for name, weight in weights.items():
        total += weight * _lineages(arms[name], f"arm {name!r}")
    return total


def _lineages(values: npt.ArrayLike, name: str = "values") -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; give a 1-D array, one value per lineage")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        where = f"{array[bad[0]]} at lineage {bad[0]}"
        raise ValueError(f"{name} holds {where}; give finite values and leave out failed lineages")
    return array


def _check_open_unit(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} is {value}; give a number between 0 and 1, such as 0.95")


def _mean_and_sd(lineages: Floats) -> tuple[float, float]:
    # Equal values are handled separately: np.mean may round them, which would give a spread.
    if lineages.min() == lineages.max():
        return float(lineages[0]), 0.0
    return float(lineages.mean()), float(lineages.std(ddof=1))


def _t_test_power(noncentrality: float, level: float, df: int) -> float:
    critical = scipy.stats.t.isf((1.0 - level) / 2.0, df)
    # The lower tail is mirrored: scipy's nct.cdf returns nan there for large noncentrality.
    return float(scipy.stats.nct.sf(critical, df, [noncentrality, -noncentrality]).sum())


def _count_random_flips(scaled: Floats, threshold: float) -> int:
    generator = np.random.default_rng(RANDOM_SEED)
    sums = np.zeros(NUM_RANDOM)
    for value in scaled:  # one lineage at a time, to bound memory
        sums += np.where(generator.integers(0, 2, NUM_RANDOM) == 1, value, -value)
    return int(np.count_nonzero(np.abs(sums) >= threshold))
