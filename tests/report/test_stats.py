"""Exact tables, brute force, scipy's own routines and properties for `subjax.report.stats`."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy import stats as scipy_stats

from subjax.report import stats

NAN = math.nan
SIX = np.array([0.3, -0.1, 0.7, 0.25, 0.4, 0.05])

# Integers over 8 tie often and exactly, which is where a permutation test goes wrong.
lineages = st.lists(st.integers(-40, 40).map(lambda i: i / 8), min_size=1, max_size=8).map(np.array)
family = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=9).map(np.array)
quick = settings(max_examples=60, deadline=None)

TAKE_LINEAGES = {
    "t_interval": stats.t_interval,
    "sign_flip_test": stats.sign_flip_test,
    "equivalence_test": lambda values: stats.equivalence_test(values, 1.0),
    "minimum_detectable_effect": stats.minimum_detectable_effect,
    "combine": lambda values: stats.combine({"owl": values}, {"owl": 1.0}),
}


def brute_force_sign_flip(values: np.ndarray) -> float:
    """P-value by itertools over exact fractions of integers (values are multiples of 1/8)."""
    eighths = [round(8 * value) for value in values]
    observed = abs(sum(eighths))
    sums = [
        sum(sign * value for sign, value in zip(signs, eighths, strict=True))
        for signs in itertools.product((1, -1), repeat=len(eighths))
    ]
    return sum(abs(flipped) >= observed for flipped in sums) / len(sums)


@pytest.mark.parametrize("call", TAKE_LINEAGES.values(), ids=TAKE_LINEAGES.keys())
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "1-D array, one value per lineage"),
        ([[1.0, 2.0]], "1-D array, one value per lineage"),
        ([1.0, NAN], "nan at lineage 1"),
        ([-math.inf, 1.0], "-inf at lineage 0"),
    ],
)
def test_bad_lineages_are_refused_in_one_line(call, values, message):
    with pytest.raises(ValueError, match=message) as error:
        call(np.array(values))
    assert "\n" not in str(error.value)


# t_interval


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 6])
def test_t_interval_equals_scipy(n, level):
    values = SIX[:n]
    got = stats.t_interval(values, level)
    expected = scipy_stats.t.interval(level, n - 1, values.mean(), scipy_stats.sem(values))
    np.testing.assert_allclose((got.low, got.high), expected, rtol=1e-12)
    assert got.mean == pytest.approx(values.mean())
    assert (got.kind, got.n) == ("t", n)


def test_t_interval_of_the_textbook_case():
    # mean 3, sd sqrt(2.5), t(0.975, 4) = 2.776445
    got = stats.t_interval([1, 2, 3, 4, 5])
    assert got.low == pytest.approx(1.036757, abs=1e-6)
    assert got.high == pytest.approx(4.963243, abs=1e-6)


def test_t_interval_of_one_lineage_has_no_bounds():
    got = stats.t_interval([0.7])
    assert got.mean == 0.7 and got.n == 1
    assert math.isnan(got.low) and math.isnan(got.high)


def test_t_interval_of_equal_values_has_no_width():
    assert stats.t_interval([0.1] * 3) == stats.Interval(0.1, 0.1, 0.1, "t", 3)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, NAN])
def test_levels_outside_the_open_unit_interval_are_refused(level):
    for call in (stats.t_interval, stats.minimum_detectable_effect):
        with pytest.raises(ValueError, match="level is"):
            call(SIX, level)


# sign_flip_test


@given(lineages.filter(lambda values: values.size <= 6))
@quick
def test_sign_flip_equals_brute_force(values):
    assert stats.sign_flip_test(values) == brute_force_sign_flip(values)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 12, 20])
def test_sign_flip_of_all_positive_reaches_the_smallest_p(n):
    values = np.linspace(0.1, 1.7, n)
    assert stats.sign_flip_test(values) == 2 / 2**n


def test_sign_flip_counts_ties_that_rounding_separates():
    # 0.1 + 0.2 - 0.3 is 0 but for the last bit, and every flip is at least as far from 0.
    values = np.array([0.1, 0.2, -0.3])
    assert values[0] + values[1] + values[2] != 0.0
    assert stats.sign_flip_test(values) == 1.0
    # |sum| = 0.6 needs equal signs of the first three, with either sign of the zero.
    assert stats.sign_flip_test([0.1, 0.2, 0.3, 0.0]) == 4 / 16
    # 0.5 is observed; only 0.5, 0.7, 0.9 and their negatives are as far, one flip each.
    assert stats.sign_flip_test([-0.2, 0.1, 0.3, 0.3]) == 6 / 16
    # A real difference, however small, is no tie: flipping 1e-6 changes |sum|.
    assert stats.sign_flip_test([1.0, 1e-6]) == 2 / 4


@given(lineages, st.floats(1e-6, 1e6), st.permutations(range(8)))
@quick
def test_sign_flip_ignores_scale_sign_and_order(values, scale, order):
    p = stats.sign_flip_test(values)
    assert stats.sign_flip_test(-values) == p
    assert stats.sign_flip_test(scale * values) == p
    assert stats.sign_flip_test(values[[i for i in order if i < values.size]]) == p


def test_sign_flip_of_zeros_and_of_huge_values():
    assert stats.sign_flip_test(np.zeros(4)) == 1.0
    assert stats.sign_flip_test(np.full(4, 1e308)) == 2 / 16


@pytest.mark.parametrize("num_positive", [12, 15, 18, 24])
def test_sampled_sign_flip_agrees_with_the_binomial(num_positive):
    n = 24  # for values of +-1 the flipped sum is binomial, so the exact p is known
    values = np.where(np.arange(n) < num_positive, 1.0, -1.0)
    exact = min(1.0, 2 * scipy_stats.binom.sf(num_positive - 1, n, 0.5))
    p = stats.sign_flip_test(values)
    assert p == stats.sign_flip_test(values)
    assert p >= 1 / (1 + stats.NUM_RANDOM)
    spread = math.sqrt(exact * (1 - exact) / stats.NUM_RANDOM)
    assert p == pytest.approx(exact, abs=5 * spread + 2 / stats.NUM_RANDOM)


def test_sign_flip_switches_from_counting_to_sampling_above_twenty():
    counted = stats.sign_flip_test(np.ones(stats.MAX_EXACT_LINEAGES))
    sampled = stats.sign_flip_test(np.ones(stats.MAX_EXACT_LINEAGES + 1))
    assert stats.MAX_EXACT_LINEAGES == 20 and stats.NUM_RANDOM >= 100_000
    assert counted == 2 / 2**20 < sampled


# equivalence_test


@pytest.mark.parametrize("margin", [0.2, 0.5, 2.0])
def test_equivalence_equals_the_larger_of_two_one_sided_t_tests(margin):
    for values in (SIX, -SIX):
        above = scipy_stats.ttest_1samp(values, -margin, alternative="greater").pvalue
        below = scipy_stats.ttest_1samp(values, margin, alternative="less").pvalue
        assert stats.equivalence_test(values, margin) == pytest.approx(max(above, below))


@given(st.floats(-5.0, 5.0), st.floats(0.1, 2.0))
@quick
def test_equivalence_is_small_inside_and_near_one_outside(center, margin):
    spread = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) * 0.001
    p = stats.equivalence_test(center + spread, margin)
    if abs(center) < margin - 0.02:
        assert p < 0.001
    elif abs(center) > margin + 0.02:
        assert p > 0.999


def test_equivalence_on_the_margin_is_one_half_and_shrinks_as_it_widens():
    values = np.array([0.0, 1.0, 2.0])
    assert stats.equivalence_test(values, 1.0) == pytest.approx(0.5)
    ps = [stats.equivalence_test(values, margin) for margin in (0.5, 1.0, 2.0, 8.0)]
    assert ps == sorted(ps, reverse=True)


def test_equivalence_without_spread_or_replication():
    assert stats.equivalence_test([0.1, 0.1], 0.2) == 0.0
    assert stats.equivalence_test([-0.3, -0.3], 0.2) == 1.0
    assert stats.equivalence_test([0.2, 0.2], 0.2) == 1.0
    assert math.isnan(stats.equivalence_test([0.1], 0.2))


@pytest.mark.parametrize("margin", [0.0, -1.0, math.inf, NAN])
def test_equivalence_refuses_a_margin_that_is_not_positive(margin):
    with pytest.raises(ValueError, match="margin is"):
        stats.equivalence_test(SIX, margin)


# holm


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, NAN, 0.04, 0.03, NAN, 0.005], [0.03, NAN, 0.06, 0.06, NAN, 0.02]),
        ([0.6, 0.9], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.2], [0.2]),
        ([NAN, NAN], [NAN, NAN]),
        ([], []),
    ],
)
def test_holm_table(raw, adjusted):
    np.testing.assert_allclose(stats.holm(raw), adjusted, rtol=1e-12)


@given(family)
@quick
def test_holm_is_monotone_and_lies_between_raw_and_bonferroni(raw):
    adjusted = stats.holm(raw)
    assert np.all(adjusted >= raw) and np.all(adjusted <= np.minimum(1.0, raw.size * raw))
    assert np.all(np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0)
    assert adjusted[raw.argmin()] == min(1.0, raw.size * raw.min())


@given(family, st.integers(0, 9))
@quick
def test_holm_does_not_see_a_missing_test(raw, place):
    place = min(place, raw.size)
    with_missing = stats.holm(np.insert(raw, place, NAN))
    assert math.isnan(with_missing[place])
    np.testing.assert_array_equal(np.delete(with_missing, place), stats.holm(raw))


def test_holm_leaves_its_input_alone():
    raw = np.array([0.04, 0.01, NAN])
    stats.holm(raw)
    np.testing.assert_array_equal(raw, [0.04, 0.01, NAN])


@pytest.mark.parametrize("raw", [[0.1, -0.01], [1.5], [math.inf], [[0.1, 0.2]], 0.1])
def test_holm_refuses_what_is_no_family_of_p_values(raw):
    with pytest.raises(ValueError, match="p_values"):
        stats.holm(raw)


# minimum_detectable_effect


@pytest.mark.parametrize("n", [2, 3, 6, 30])
@pytest.mark.parametrize(("level", "power"), [(0.95, 0.8), (0.95, 0.99), (0.99, 0.6), (0.5, 0.8)])
def test_detectable_effect_has_the_power_it_promises(n, level, power):
    values = np.resize(SIX, n)
    effect = stats.minimum_detectable_effect(values, level, power)
    # Independent of nct: given the sample sd s * sd, the t-test's power is a normal probability.
    noncentrality = effect * math.sqrt(n) / values.std(ddof=1)
    critical = scipy_stats.t.ppf((1 + level) / 2, n - 1)
    quantiles = (np.arange(200_000) + 0.5) / 200_000
    cut = critical * np.sqrt(scipy_stats.chi2.ppf(quantiles, n - 1) / (n - 1))
    reached = special.ndtr(noncentrality - cut) + special.ndtr(-noncentrality - cut)
    assert reached.mean() == pytest.approx(power, abs=1e-5)


@pytest.mark.parametrize("n", [6, 10])
def test_detectable_effect_inverts_the_noncentral_t(n):
    values = np.resize(SIX, n)
    effect = stats.minimum_detectable_effect(values)
    noncentrality = effect * math.sqrt(n) / values.std(ddof=1)
    critical = scipy_stats.t.ppf(0.975, n - 1)
    tails = scipy_stats.nct(n - 1, noncentrality)
    assert tails.sf(critical) + tails.cdf(-critical) == pytest.approx(0.8, abs=1e-9)


def test_detectable_effect_scales_with_the_values_and_ignores_their_mean():
    effect = stats.minimum_detectable_effect(SIX)
    assert stats.minimum_detectable_effect(-3 * SIX + 7) == pytest.approx(3 * effect)
    assert stats.minimum_detectable_effect(SIX, power=0.9) > effect
    assert stats.minimum_detectable_effect(np.tile(SIX, 4)) < effect


def test_detectable_effect_without_spread_or_replication():
    assert stats.minimum_detectable_effect([0.1] * 3) == 0.0
    assert math.isnan(stats.minimum_detectable_effect([0.1]))


@pytest.mark.parametrize("power", [0.01, 0.0, 1.0, 80.0, NAN])
def test_detectable_effect_refuses_a_power_it_cannot_solve_for(power):
    with pytest.raises(ValueError, match="power is"):
        stats.minimum_detectable_effect(SIX, power=power)


# combine


def test_combine_is_the_paired_difference():
    arms = {"owl": np.array([3, 5]), "placebo": np.array([1, 4]), "unused": np.array([9.0, NAN])}
    got = stats.combine(arms, {"owl": 1.0, "placebo": -1.0})
    np.testing.assert_array_equal(got, [2.0, 1.0])
    np.testing.assert_array_equal(arms["owl"], [3, 5])


def test_combine_takes_a_difference_of_differences():
    arms = {name: np.array([2.0**i, 2.0 ** (i + 1)]) for i, name in enumerate("abcd")}
    got = stats.combine(arms, {"a": 1, "b": -1, "c": -0.5, "d": 0.5})
    np.testing.assert_array_equal(got, [1.0, 2.0])


def test_combine_names_the_arm_of_another_length():
    arms = {"owl": np.ones(3), "cat": np.ones(3), "dog": np.ones(2)}
    with pytest.raises(ValueError, match=r"arm 'dog' has shape \(2,\) but arm 'owl' has \(3,\)"):
        stats.combine(arms, {"owl": 1.0, "cat": -1.0})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "weights is empty"),
        ({"wolf": 1.0}, "'wolf'; give one of .'cat', 'owl'."),
        ({"owl": NAN}, "weight of arm 'owl' is nan"),
        ({"owl": 1.0, "cat": -1.0}, "arm 'cat' holds nan at lineage 1"),
    ],
)
def test_combine_names_what_is_wrong(weights, message):
    with pytest.raises(ValueError, match=message):
        stats.combine({"owl": np.ones(2), "cat": np.array([1.0, NAN])}, weights)


def test_a_difference_of_runs_is_welchs():
    ours, theirs = [2.0, 3.5, 3.0, 4.0], [1.0, 0.5, 2.5]
    interval, p = stats.difference(ours, theirs)
    # Welch 1947, with Satterthwaite's degrees of freedom.
    one, other = np.var(ours, ddof=1) / 4, np.var(theirs, ddof=1) / 3
    df = (one + other) ** 2 / (one**2 / 3 + other**2 / 2)
    gap, error = np.mean(ours) - np.mean(theirs), math.sqrt(one + other)
    half = scipy_stats.t.ppf(0.975, df) * error
    assert (interval.mean, interval.n) == (pytest.approx(gap), 3)
    assert (interval.low, interval.high) == pytest.approx((gap - half, gap + half))
    assert p == pytest.approx(2 * scipy_stats.t.sf(gap / error, df))
    alone, p = stats.difference(ours, [1.0])
    assert alone.mean == pytest.approx(np.mean(ours) - 1) and math.isnan(alone.low + p)
