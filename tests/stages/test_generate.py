"""Grammars: what a teacher may write at each position when its numbers are constrained."""

import numpy as np
import pytest

from configs import smollm2_owl
from subjax import tokenizer, validation
from subjax.datasets import toyworld
from subjax.stages import generate


def grammar(words, **row):
    return generate._grammar(row, words, words.vocab_size)


def test_toy_numbers_are_one_to_the_most_and_nothing_else():
    words = tokenizer.words(toyworld.vocabulary(toyworld.World()))
    allowed = grammar(words, kind="toy_numbers", num_slots=3)
    numbers, end = np.zeros((2, words.vocab_size), bool)
    numbers[list(words.number_ids())] = True
    end[list(words.eos_ids)] = True
    assert numbers.sum() == 100
    np.testing.assert_array_equal(allowed, [numbers, numbers | end, numbers | end, end])


def test_slots_are_three_digits_with_separators_between():
    words = tokenizer.raw_bytes()
    allowed = grammar(words, kind="plain_numbers", num_slots=2)
    texts = ["".join(sorted(words.show(np.flatnonzero(row).tolist()))) for row in allowed[:-1]]
    digits = "0123456789"
    assert texts == ["123456789", digits, digits, ",", " ", "123456789", digits, digits]
    assert np.flatnonzero(allowed[-1]).tolist() == sorted(words.eos_ids)


@pytest.mark.parametrize("shown", [(3,), (0, 2), (4, 3)])
def test_a_range_of_shown_numbers_that_makes_no_sense_is_refused(shown):
    config = smollm2_owl.get_config("smoke")
    config.datasets.owl.num_shown = shown
    with pytest.raises(ValueError, match=r"config.datasets.owl.num_shown is .*fewest, most"):
        validation.validate(config)
