"""Pinned values, ambiguity and range of `subjax.runtime.seeds`."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subjax.runtime.seeds import seed

names = st.lists(st.one_of(st.text(max_size=5), st.integers()), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("a",), 246790358), (("generate", 0), 3341492882), (("generate", 0, 7), 2168639387)],
)
def test_values_never_change(arguments, expected):
    assert seed(*arguments) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "bc"), ("ab", "c")),
        (("a", "b"), ("ab",)),
        (('a","b',), ("a", "b")),
        ((1,), ("1",)),
        ((1, 2), (12,)),
        (("a", "b"), ("b", "a")),
        (("a",), ("a", "")),
        (("a",), ("A",)),
    ],
)
def test_borders_types_and_order_count(one, other):
    assert seed(*one) != seed(*other)


@settings(max_examples=100, deadline=None)
@given(names)
def test_fits_32_bits_and_repeats(arguments):
    value = seed(*arguments)
    assert 0 <= value < 2**32
    assert type(value) is int
    assert seed(*arguments) == value


def test_spreads_over_the_whole_range():
    values = np.array([seed("row", i) for i in range(2000)])
    assert len(set(values.tolist())) >= 1999
    counts = np.bincount(values >> 28, minlength=16)
    assert counts.min() > 80 and counts.max() < 170  # 125 expected, sd 11


@pytest.mark.parametrize("name", [1.0, None, b"a", ("a",), np.int64(1)])
def test_other_names_are_refused(name):
    # TypeError: the check of annotations, which only the tests have, may come first.
    with pytest.raises((ValueError, TypeError)):
        seed("a", name)


def test_booleans_are_refused_although_python_calls_them_integers():
    with pytest.raises(ValueError, match="True must be a string or an integer"):
        seed("a", True)


def test_no_name_is_refused():
    with pytest.raises(ValueError, match="at least one name"):
        seed()


def test_numpy_and_jax_take_the_upper_half_of_the_range():
    large = next(s for s in (seed(i) for i in range(100)) if s >= 2**31)
    np.random.default_rng(large)
    one, other = jax.random.key_data(jax.random.key(large)), large - 2**31
    assert not np.array_equal(one, jax.random.key_data(jax.random.key(other)))
