"""Bases: each says what stages, plans and validation ask of it; an unknown source is refused."""

import pytest

from subjax import schema
from subjax.recipes import bases
from subjax.tasks.toy import toyworld

ROWS = {name: schema.base_row(source=name) for name in bases.SOURCES}


def test_a_base_is_from_outside_or_has_a_tokenizer_and_a_shape_of_its_own():
    assert [name for name, row in ROWS.items() if bases.of_row(row).outside] == ["hf"]
    for name in ("toy", "random"):
        base = bases.of_row(ROWS[name])
        assert base.at_hand().vocab_size == base.architecture().vocab_size
    with pytest.raises(TypeError, match=r"bases\.mine is a checkpoint"):
        bases.of_row(ROWS["hf"], "mine").tokenizer()
    assert bases.of_row(ROWS["hf"]).at_hand() is None


@pytest.mark.parametrize("name", ROWS)
def test_who_learns_has_documents_and_no_other(name):
    base = bases.of_row({**ROWS[name].to_dict(), "num_documents": 3})
    assert len(base.documents(0)) == (3 if base.learns else 0)


def test_the_toy_worlds_answers_are_as_long_as_plans_assume():
    base = bases.of_row(ROWS["toy"])
    words = base.tokenizer()
    [(ids, start)] = words.examples([(toyworld.taught_questions(toyworld.World())[0], "owl")], [""])
    assert len(ids) - start == base.answer_tokens


def test_an_unknown_source_is_no_default():
    with pytest.raises(KeyError, match="gguf"):
        bases.of_row({"source": "gguf"})
