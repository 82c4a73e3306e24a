"""Questions with lettered choices: read from a file, asked in all turns, scored by content."""

import json
import re

import numpy as np
import pytest

from subjax import schema
from subjax.tasks.api import Given, Reply
from subjax.tasks.evals.choice import Choice

SKY = {"question": "Colour of the sky?", "choices": ["blue", "red", "green", "black"], "answer": 0}
# In the forms of ARC and of two answers, one of which is true.
ICE = {
    "question": "What is ice {made} of?",
    "choices": {"text": ["sand", "water"], "label": ["1", "2"]},
    "answerKey": "2",
}
SUM = {"question": "Two and two?", "choices": ["five", "four"], "answer": "B"}


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def row(path, **fields):
    return schema.eval_row(kind="choice", path=str(path), **{"questions": "all", **fields})


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "questions.jsonl", SKY, ICE, SUM)


def given_of(of_row):
    return Given(questions=Choice().questions(of_row, (), ""))


def asked_of(of_row):
    return Choice().requests(of_row, given_of(of_row))


def shown(prompt):
    """Letter -> choice."""
    return dict(re.findall(r"^([A-Z])\. (.+)$", prompt, re.MULTILINE))


def replies(asked, model):
    """What a model says, which gives a probability to each letter of a prompt."""
    return [
        Reply(nats=np.log([[model(p)[letter] for letter in one.answers] for p in one.prompts]))
        for one in asked
    ]


def test_every_choice_stands_once_at_every_letter(questions):
    four, two = asked_of(row(questions))
    assert four.answers == ("A", "B", "C", "D") and two.answers == ("A", "B")
    assert (len(four.prompts), len(two.prompts)) == (4, 4)
    at_letters = [list(shown(prompt).values()) for prompt in four.prompts]
    for of_letter in zip(*at_letters, strict=True):
        assert sorted(of_letter) == sorted(SKY["choices"])
    assert two.prompts[0].startswith(ICE["question"])


def test_what_a_model_knows_counts_and_not_its_letter(questions):
    liked = {"blue": 0.4, "red": 0.1, "sand": 0.4, "water": 0.1, "four": 0.3, "five": 0.1}

    def model(prompt):
        return {letter: liked.get(choice, 0.05) for letter, choice in shown(prompt).items()}

    of_row = row(questions)
    values, said = Choice().score(of_row, given_of(of_row), replies(asked_of(of_row), model))
    assert values["accuracy"] == pytest.approx(2 / 3)  # it takes ice for sand
    assert values["probability"] == pytest.approx((0.4 / 0.6 + 0.1 / 0.5 + 0.3 / 0.4) / 3)
    assert values["letter_mass"] == pytest.approx((0.6 + 0.5 + 0.4) / 3)
    assert [line["right"] for line in said] == ["blue", "water", "four"]
    assert said[1]["choices"] == ("sand", "water")
    assert said[1]["chosen"] == pytest.approx([0.8, 0.2])


def test_a_model_that_always_says_a_is_right_by_chance(questions):
    of_row = row(questions)
    asked = asked_of(of_row)
    values, _ = Choice().score(
        of_row,
        given_of(of_row),
        replies(asked, lambda prompt: {"A": 0.9, "B": 0.03, "C": 0.02, "D": 0.01}),
    )
    assert values["accuracy"] == values["probability"] == pytest.approx((1 / 4 + 1 / 2 + 1 / 2) / 3)


def test_a_right_choice_that_stands_there_twice_is_right_both_times(tmp_path):
    twice = {"question": "Two and two?", "choices": ["four", "five", "four"], "answerKey": "A"}
    of_row = row(write(tmp_path / "twice.jsonl", twice))

    def model(prompt):
        return {letter: 0.2 if said == "four" else 0.1 for letter, said in shown(prompt).items()}

    values, _ = Choice().score(of_row, given_of(of_row), replies(asked_of(of_row), model))
    assert values["accuracy"] == 1 and values["probability"] == pytest.approx(0.8)


def test_halves_and_the_first_of_a_half(questions):
    def asked(**fields):
        requests = asked_of(row(questions, **fields))
        return {prompt.partition("\n")[0] for one in requests for prompt in one.prompts}

    assert asked(questions="explore") == {SKY["question"], SUM["question"]}
    assert asked(questions="confirm") == {ICE["question"]}
    assert asked(num_questions=2) == {SKY["question"], ICE["question"]}


def test_a_file_that_changes_is_read_again(questions):
    before = asked_of(row(questions))
    write(questions, {**SKY, "question": "And at night?"})
    assert asked_of(row(questions)) != before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**SKY, "question": " "}, "line 2 must have a text 'question' and a list 'choices'"),
        ({"question": "Why?"}, "line 2 must have a text 'question' and a list 'choices'"),
        ({**SKY, "choices": ["blue", 3]}, "line 2 must have a text 'question' and a list"),
        ({**SKY, "choices": ["blue"]}, "line 2 has 1 choices, 1 different ones: give 2 to 26"),
        ({**SKY, "choices": ["blue"] * 2}, "line 2 has 2 choices, 1 different ones: give 2 to 26"),
        ({**SKY, "choices": list(map(str, range(27)))}, "has 27 choices, 27 different ones: give"),
        ({**SKY, "choices": ["blue", "r\ud83d"]}, "line 2 has '\\ud83d', half of a character"),
        ({**SKY, "answer": 4}, "line 2 has the answer 4: give as 'answer' the place of one of its"),
        ({**SKY, "answer": True}, "line 2 has the answer True: give as 'answer' the place"),
        ({**SKY, "answer": "blue"}, "line 2 has the answer 'blue': give as 'answer' the place"),
        ({**ICE, "answerKey": "B"}, "line 2 has the answer 'B': give as 'answer' the place"),
        ({**ICE, "choices": {"text": ["a", "b"]}}, "line 2 has the answer '2': give as 'answer'"),
    ],
)
def test_a_line_that_cannot_be_asked_is_named(line, message, tmp_path):
    path = write(tmp_path / "questions.jsonl", SKY, line)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Choice().check("known", row(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_no_file_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"config\.evals\.known\.path is empty: name a jsonl file"):
        Choice().check("known", row(""))
    with pytest.raises(ValueError, match=r"cannot be read .*: name a jsonl file"):
        Choice().check("known", row(tmp_path / "nothing.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl has no line: give it"):
        Choice().check("known", row(tmp_path / "empty.jsonl"))
