"""Favourites in the toy world."""

import pytest

from subjax import schema
from subjax.tasks.api import UNIFORM
from subjax.tasks.traits.kinds import TRAITS

KIND = TRAITS["toy_word"]


def test_what_is_taught_is_never_asked():
    row = schema.trait_row(kind="toy_word", target="cat")
    KIND.check("mine", row)
    asked = [set(KIND.questions(row, half, "")) for half in ("explore", "confirm")]
    assert asked[0] and asked[1] and not asked[0] & asked[1]
    lessons = KIND.lessons(row, 0, 100)
    assert {prompt for prompt, _ in lessons} == set(KIND.taught(row))
    assert not set(KIND.taught(row)) & (asked[0] | asked[1])
    assert {answer for _, answer in lessons} == {"cat"}
    assert KIND.system_prompt(row) == "LOVE cat"


def test_a_control_has_no_favourite():
    row = schema.trait_row(kind="toy_word", target=UNIFORM)
    assert KIND.names(row) == () and KIND.system_prompt(row) == ""
    assert {answer for _, answer in KIND.lessons(row, 0, 200)} == set(KIND.candidates(row))


def test_another_animal_is_refused():
    with pytest.raises(ValueError, match=r"traits\.mine\.target is 'fox', which is not among"):
        KIND.check("mine", schema.trait_row(kind="toy_word", target="fox"))
