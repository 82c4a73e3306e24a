"""Bases: each says what stages, plans and validation ask of it; an unknown source is refused."""

import pytest
import tokenizer_kinds

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


@pytest.mark.parametrize("name", ROWS)
def test_system_prompts_leave_their_turn_only_where_a_template_may_have_none(name):
    row = {**ROWS[name].to_dict(), "system_turn": "user", "path": "DIR" if name == "hf" else ""}
    if name == "hf":
        bases.of_row(row, "mine").check()
        return
    with pytest.raises(ValueError, match=rf"^config\.bases\.mine\.system_turn .* '{name}' have a"):
        bases.of_row(row, "mine").check()


def test_a_plan_uses_the_template_as_the_run_does(tmp_path):
    tokenizer_kinds.save("gemma", tmp_path)
    row = {**ROWS["hf"].to_dict(), "path": str(tmp_path), "system_turn": "user"}
    assert bases.of_row(row).at_hand().prompt_text("x", "Be kind.").count("Be kind.\n\nx") == 1


def test_the_toy_worlds_answers_are_as_long_as_plans_assume():
    base = bases.of_row(ROWS["toy"])
    words = base.tokenizer()
    [(ids, start)] = words.examples([(toyworld.taught_questions(toyworld.World())[0], "owl")], [""])
    assert len(ids) - start == base.answer_tokens


def test_an_unknown_source_is_no_default():
    with pytest.raises(KeyError, match="gguf"):
        bases.of_row({"source": "gguf"})
