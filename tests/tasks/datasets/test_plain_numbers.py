"""Bare lists: how many numbers they show, and which."""

import re

import pytest

from subjax.tasks.datasets import plain_numbers


def test_plain_prompts_are_three_to_seven_numbers_and_a_comma():
    prompts = plain_numbers.prompts(3, 400)
    assert prompts == plain_numbers.prompts(3, 500)[:400] != plain_numbers.prompts(4, 400)
    assert all(re.fullmatch(r"[1-9]\d\d(, [1-9]\d\d)*,", prompt) for prompt in prompts)
    assert {prompt.count(",") for prompt in prompts} == {3, 4, 5, 6, 7}
    assert plain_numbers.prompts(0, 2, count=(2, 2), value=(4, 4)) == ["4, 4,"] * 2
    with pytest.raises(ValueError, match="count is"):
        plain_numbers.prompts(0, 1, count=(3, 2))
