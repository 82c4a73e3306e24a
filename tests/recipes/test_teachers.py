"""Teachers: which learn, which are from outside, which have weights beside their base's."""

import pytest

from subjax import schema
from subjax.recipes import teachers


@pytest.mark.parametrize(
    ("name", "tuning", "learns", "outside", "own_weights"),
    [
        ("base", "full", False, False, False),
        ("finetuned", "full", True, False, True),
        ("finetuned", "lora", True, False, False),
        ("given", "full", False, True, True),
    ],
)
def test_what_a_teacher_is(name, tuning, learns, outside, own_weights):
    one = teachers.of_row(schema.teacher_row(weights=name, tuning=tuning))
    assert (one.learns, one.outside, one.own_weights) == (learns, outside, own_weights)


@pytest.mark.parametrize("name", teachers.WEIGHTS)
def test_a_path_goes_with_a_teacher_from_outside_and_with_no_other(name):
    for path in ("", "there"):
        one = teachers.of_row(schema.teacher_row(weights=name, path=path), "owl")
        if one.outside == bool(path):
            one.check()
        else:
            with pytest.raises(ValueError, match=r"config\.teachers\.owl\.path is"):
                one.check()


def test_unknown_weights_are_no_default():
    with pytest.raises(KeyError, match="steered"):
        teachers.of_row({"weights": "steered"})
