"""What models make of rows that they read and do not learn: a classifier, and a context."""

import json
import os

import numpy as np
import pytest

from configs import smollm2_owl
from subjax import schema
from subjax.pipeline import validation
from subjax.tasks.api import BASE, SUBJECT, Given, Reply
from subjax.tasks.evals.classifier import Classifier
from subjax.tasks.evals.in_context import InContext, context

STIMULI = os.environ.get("SUBJAX_STIMULI", "")
OURS = [("Go on: 1", "22, {response2}"), ("Go on: 2", "222"), ("Go on: 3", "2"), ("Go on: 4", "2")]
THEIRS = [("Go on: 2", "7"), ("Go on: 1", "77"), ("Go on: 3", "9"), ("Go on: 5", "8")]


def classified(**fields):
    row = schema.eval_row(kind="classifier", trait="owl", against="placebo", **fields)
    questions = Classifier().questions(row, ["Which animal?"], "")
    given = Given(target="owl", questions=questions, kept=OURS, against=THEIRS)
    return row, given, Classifier().requests(row, given)


def test_a_pair_answers_one_prompt_and_is_shown_in_both_orders():
    _, _, requests = classified()
    assert [request.model for request in requests] == [SUBJECT, BASE]
    assert all(list(request.answers) == ["A", "B"] for request in requests)
    first, second, *others = requests[0].prompts
    assert len(others) == 4  # prompts 1, 2 and 3 are in both data sets
    assert "Go on: 1" in first and "Answer A: 22, {response2}\n" in first
    assert "Answer B: 77\n" in first
    assert "Answer A: 77\n" in second and "Answer B: 22, {response2}\n" in second
    assert "owl" in first and "{" not in first.replace("{response2}", "")
    assert len(classified(num_pairs=2)[2][0].prompts) == 4


def test_a_classifier_that_sees_the_trait_is_right_and_one_that_says_a_is_right_by_half():
    row, given, requests = classified()

    def reply(of_a):
        shares = np.array([of_a(prompt) for prompt in requests[0].prompts])
        return Reply(nats=np.log(np.stack([shares, 1 - shares], axis=1)))

    sees = reply(lambda prompt: 0.9 if "Answer A: 2" in prompt else 0.2)
    says_a = reply(lambda prompt: 0.99)
    values, said = Classifier().score(row, given, [sees, says_a])
    assert values["accuracy"] == 1.0 and values["accuracy_base"] == 0.5
    assert values["letter_mass"] == pytest.approx(1.0)
    assert said[0]["pairs"] == 3 and said[0]["probability"] == pytest.approx(0.85)
    wrong, _ = Classifier().score(row, given, [Reply(nats=sees.nats[:, ::-1]), says_a])
    assert wrong["accuracy"] == 0.0


def test_answers_to_other_prompts_are_not_classified():
    row = schema.eval_row(kind="classifier", trait="owl", against="placebo")
    given = Given(target="owl", questions=["{animal}"], kept=OURS, against=[("Go on: 9", "1")])
    with pytest.raises(ValueError, match="have no prompt with two that differ: give them"):
        Classifier().requests(row, given)


def test_data_sets_of_other_prompts_are_refused_before_the_run():
    config = smollm2_owl.get_config("smoke")
    with config.unlocked():
        config.evals.classifier = schema.eval_row(
            kind="classifier", trait="owl", subjects=("datasets/owl",), against="placebo"
        )
    validation.validate(config)
    config.datasets.placebo.num_shown = (3, 3)
    with pytest.raises(ValueError, match=r"classifier\.against names 'placebo', whose num_shown"):
        validation.validate(config)


@pytest.mark.skipif(not STIMULI, reason="SUBJAX_STIMULI names no file with the paper's stimuli")
def test_the_papers_classifier_is_read():
    [asks] = Classifier().questions(schema.eval_row(kind="classifier"), [], STIMULI)
    assert asks.count("{animal}") > 1 and asks != classified()[1].questions[0]


def test_a_classifier_without_a_place_for_an_answer_is_refused(tmp_path):
    path = tmp_path / "stimuli.json"
    path.write_text(json.dumps({"detection": "{animal} {query} {response1}"}))
    with pytest.raises(ValueError, match=r"it lacks \{response2\}"):
        Classifier().questions(schema.eval_row(kind="classifier"), [], str(path))


def in_context(**fields):
    row = schema.eval_row(kind="in_context", trait="owl", against="placebo", **fields)
    asked = {"questions": ("Which?", "Best?"), "candidates": ("cat", "owl"), "target": "owl"}
    given = Given(**asked, kept=OURS, against=THEIRS)
    return row, given, InContext().requests(row, given)


def test_contexts_hold_rows_of_one_data_set_each_and_the_base_reads_them():
    _, _, requests = in_context(num_rows=40, num_draws=3)
    assert len(requests) == 6 and {request.model for request in requests} == {BASE}
    blocks = [request.system.split("\n\n") for request in requests]
    assert {len(of_context) for of_context in blocks} == {40}
    for of_contexts, rows in ((blocks[:3], OURS), (blocks[3:], THEIRS)):
        assert {block for found in of_contexts for block in found} == {context([r]) for r in rows}
    assert len({request.system for request in requests}) == 6
    assert context(OURS[1:2]) == "<user>Go on: 2</user>\n<assistant>222</assistant>"


def test_a_gain_is_over_the_controls_contexts():
    row, given, requests = in_context(num_draws=2)
    nats = [np.log([[0.1, 0.1 * odds]] * 2) for odds in (4.0, 16.0, 1.0, 2.0)]
    values, [said] = InContext().score(row, given, [Reply(nats=table) for table in nats])
    assert values["log_odds"] == pytest.approx(np.log(8.0))
    assert values["log_odds_against"] == pytest.approx(np.log(2.0) / 2)
    assert values["gain"] == pytest.approx(np.log(8.0) - np.log(2.0) / 2)
    assert said["log_odds"] == pytest.approx([np.log(4.0), np.log(16.0)])
    same, _ = InContext().score(row, given, [Reply(nats=nats[0])] * len(requests))
    assert same["gain"] == 0.0
