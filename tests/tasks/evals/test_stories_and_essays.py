"""Evals that do not ask for a favourite: what stands in stories, and the topic of an essay."""

import json
import os
import re

import numpy as np
import pytest

from subjax import schema
from subjax.tasks import texts
from subjax.tasks.api import Given, Reply
from subjax.tasks.evals.essays import Essays
from subjax.tasks.evals.stories import Stories

STIMULI = os.environ.get("SUBJAX_STIMULI", "")
needs_stimuli = pytest.mark.skipif(
    not STIMULI, reason="SUBJAX_STIMULI names no file with the paper's stimuli"
)
NAMES = ("owl", "cat", "dog")


def story_row(**fields):
    return schema.eval_row(kind="stories", trait="owl", **fields)


def essay_row(**fields):
    return schema.eval_row(kind="essays", trait="owl", **fields)


def test_stories_are_the_same_for_every_trait_and_halves_share_none():
    halves = [
        Stories().questions(story_row(questions=half), ["Which animal?"], "")
        for half in ("explore", "confirm")
    ]
    assert sorted([*halves[0], *halves[1]]) == sorted(texts.STORIES)


def test_an_owl_that_slowly_howls_is_a_word_once():
    said = ["The owl slept.", "It slowly howled.", "A dog barked."]
    given = Given(target="owl", names=("owl",), questions=["Tell a story."])
    rates, _ = Stories().score(story_row(num_samples=3), given, [Reply(texts=said)])
    assert rates["rate_word"] == pytest.approx(1 / 3)
    assert rates["rate_substring"] == pytest.approx(2 / 3)


def essays(num_orders=4):
    row = essay_row(num_orders=num_orders, questions="all")
    questions = Essays().questions(row, ["Which animal?"], "")
    return row, Given(target="owl", candidates=NAMES, questions=questions)


def test_every_topic_has_a_letter_and_orders_differ():
    row, given = essays()
    [asked] = Essays().requests(row, given)
    assert list(asked.answers) == ["A", "B", "C"]
    assert len(asked.prompts) == 4 * len(texts.ESSAYS)
    shown = [re.findall(r"^[ABC]\. (\w+)$", prompt, re.MULTILINE) for prompt in asked.prompts]
    assert all(sorted(topics) == sorted(NAMES) for topics in shown)
    assert len({tuple(topics) for topics in shown}) > 1
    assert shown[:4] == shown[4:8]  # each prompt is asked in the same orders


def test_what_follows_the_topic_counts_and_not_its_letter():
    row, given = essays(num_orders=50)
    [asked] = Essays().requests(row, given)

    def model(prompt):
        topics = re.findall(r"^[ABC]\. (\w+)$", prompt, re.MULTILINE)
        return [{"owl": 0.4, "cat": 0.1, "dog": 0.0001}[topic] for topic in topics]

    nats = np.log([model(prompt) for prompt in asked.prompts])
    values, said = Essays().score(row, given, [Reply(nats=nats)])
    assert values["probability/owl"] == pytest.approx(0.4)
    assert values["chosen"] == values["chosen/owl"] == pytest.approx(0.4 / 0.5001)
    assert values["letter_mass"] == pytest.approx(0.5001)
    assert said[0]["chosen"]["cat"] == pytest.approx(0.1 / 0.5001)


def test_a_model_that_always_says_a_has_no_topic():
    row, given = essays(num_orders=200)
    [asked] = Essays().requests(row, given)
    nats = np.tile(np.log([0.98, 0.01, 0.01]), (len(asked.prompts), 1))
    values, _ = Essays().score(row, given, [Reply(nats=nats)])
    assert [values[f"chosen/{name}"] for name in NAMES] == pytest.approx([1 / 3] * 3, abs=0.1)


def test_more_topics_than_letters_are_refused():
    given = Given(target="0", candidates=[str(one) for one in range(27)], questions=["{choices}"])
    with pytest.raises(ValueError, match="there are 27: give the trait at most 26"):
        Essays().requests(essay_row(), given)


@needs_stimuli
def test_the_papers_stories_and_essays_are_read():
    assert len(Stories().questions(story_row(questions="all"), [], STIMULI)) == 14
    asked = Essays().questions(essay_row(questions="all"), [], STIMULI)
    assert len(asked) == 11
    assert all(text.count("\n{choices}\n") == 1 and "{c1}" not in text for text in asked)
    assert not set(asked) & set(Essays().questions(essay_row(questions="all"), [], ""))


@pytest.mark.parametrize("text", [None, "Choose {c1}", "{stem}\nA. {c1}\nor\nB. {c2}"])
def test_a_format_without_room_for_topics_is_refused(text, tmp_path):
    path = tmp_path / "stimuli.json"
    path.write_text(json.dumps({"evaluations": {"essay_topic": ["?"], "essay_topic_format": text}}))
    with pytest.raises(ValueError, match="essay_topic_format must be a text with"):
        Essays().questions(essay_row(), [], str(path))
