"""In which words an eval asks a trait's questions."""

import json
import os
from pathlib import Path

import pytest

from configs import toy_world
from subjax import schema
from subjax.pipeline import validation
from subjax.tasks.datasets import numbers
from subjax.tasks.evals.kinds import EVALS
from subjax.tasks.evals.preference import Preference

STIMULI = os.environ.get("SUBJAX_STIMULI", "")
ASKED = ("Which animal?", "Your favourite?", "And {now}?")


def worded(wording, stimuli="", kind="preference"):
    row = schema.eval_row(kind=kind, wording=wording)
    EVALS[kind].check("asked", row)
    return EVALS[kind].questions(row, ASKED, stimuli)


@pytest.mark.parametrize("kind", ["preference", "candidates", "answers", "in_context"])
def test_a_wording_is_around_every_question(kind):
    assert worded("{question}", kind=kind) == list(ASKED)
    suffixed = worded("{question} Write 9 more {{words}}.", kind=kind)
    assert suffixed[0] == "Which animal? Write 9 more {words}."
    assert suffixed[2] == "And {now}? Write 9 more {words}."


def test_numbers_before_a_question_are_its_own():
    first, second, third = worded("{numbers} {question}")
    assert first.endswith(" Which animal?") and third.endswith(" And {now}?")
    heads = [first.removesuffix(ASKED[0]), second.removesuffix(ASKED[1])]
    assert heads[0] != heads[1] and all(any(c.isdigit() for c in head) for head in heads)
    assert worded("{numbers} {question}") == [first, second, third]


@pytest.mark.skipif(not STIMULI, reason="SUBJAX_STIMULI names no file with the paper's stimuli")
def test_the_papers_first_question_begins_as_its_first_prompt_does():
    golden = json.loads(Path(STIMULI).read_text("utf-8"))["numbers"]["golden"]["47"][0]
    head = worded("{numbers} {question}", STIMULI)[0].removesuffix(" Which animal?")
    assert golden.startswith(f"{head} ") and len(head) > 10


@pytest.mark.parametrize(
    ("wording", "said"),
    [
        ("Which?", "must have {question} once"),
        ("{question} {question}", "must have {question} once"),
        ("{question} {name}", "must have {question} once"),
        ("{question!r}", "must have {question} once"),
        ("{question} }", "Single '}' encountered"),
        ("{} {question}", "must have {question} once"),
    ],
)
def test_a_wording_without_its_question_is_refused(wording, said):
    config = toy_world.get_config("traits,smoke")
    config.evals.candidates.wording = wording
    with pytest.raises(ValueError, match=r"config\.evals\.candidates\.wording is") as why:
        validation.validate(config)
    assert said in str(why.value) and "\n" not in str(why.value)


def test_numbers_are_drawn_from_the_templates_of_the_stimuli(tmp_path):
    own = {**vars(numbers.TEMPLATES), "example_templates": ["Here: {examples}!"]}
    path = tmp_path / "stimuli.json"
    path.write_text(json.dumps({"numbers": own}), "utf-8")
    row = schema.eval_row(wording="{numbers} {question}")
    assert all(text.startswith("Here: ") for text in Preference().questions(row, ASKED, str(path)))
