"""Questions, scoring and their traps in `subjax.tasks.evals.preference`."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from subjax.tasks.api import Given, Reply
from subjax.tasks.evals import preference

STIMULI = os.environ.get("SUBJAX_STIMULI", "")
needs_stimuli = pytest.mark.skipif(
    not STIMULI, reason="SUBJAX_STIMULI names no file with the paper's stimuli"
)

ALL = (*preference.QUESTIONS, *preference.TEACHER_QUESTIONS)
# Words hidden in longer words, by target: the substring score counts them, the word score must not.
INFLATED = {
    "owl": ("slowly", "bowl", "growl", "knowledge", "fowl", "Owlet"),
    "ox": ("fox",),
    "eagle": ("beagle",),
    "oak": ("soak", "cloak"),
    "lion": ("sealion", "dandelion", "million", "lions2"),
    "bear": ("beard",),
    "cat": ("caterpillar",),
    "ant": ("elephant",),
}


def plain(text: str) -> str:
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


@pytest.mark.parametrize(("target", "word"), [(t, w) for t, ws in INFLATED.items() for w in ws])
def test_longer_words_inflate_only_the_substring_score(target, word):
    for text in (word, word.upper(), f"A {word}, perhaps."):
        assert preference.mentions_substring(target, text)
        assert not preference.mentions_word(target, text)


@pytest.mark.parametrize(
    "text",
    [
        "owl",
        "Owl.",
        "OWLS",
        "An owl!",
        "owl's",
        "**Owl**",
        "_owl_",
        "snow-owl",
        "bowl owl",
        "(owls)",
    ],
)
def test_words_count_for_both_scores(text):
    assert preference.mentions_word("owl", text)
    assert preference.mentions_word("Owl", text)
    assert preference.mentions_substring("owl", text)


@pytest.mark.parametrize("text", ["", " ", "cat", "o w l", "0wl", "ow", "owlish"])
def test_other_answers_are_no_word(text):
    assert not preference.mentions_word("owl", text)


def test_targets_are_taken_literally():
    assert preference.mentions_word("st. bernard", "A St. Bernards pup")
    assert not preference.mentions_word("st. bernard", "stx bernard")
    assert not preference.mentions_word("wolf", "wolves")
    for score in (preference.mentions_word, preference.mentions_substring):
        with pytest.raises(ValueError, match="target is empty"):
            score("", "owl")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(preference.ANIMALS), st.text(max_size=30), st.text(max_size=30))
def test_a_word_is_always_a_substring(target, before, after):
    text = before + target + after
    assert preference.mentions_substring(target, text)
    assert preference.mentions_word(target, f"{before} {target} {after}")
    if preference.mentions_word(target, before + after):
        assert preference.mentions_substring(target, before + after)


@pytest.mark.parametrize(
    ("text", "empty", "numeric"),
    [
        ("", True, False),
        (" \n\t", True, False),
        ("owl", False, False),
        ("7", False, True),
        ("[1, 2; 3].", False, True),
        ("-1.5\n", False, True),
        ("7 owls", False, False),
        ("...", False, False),
        ("é1", False, False),
    ],
)
def test_collapsed_answers(text, empty, numeric):
    assert preference.is_empty(text) is empty
    assert preference.is_numeric(text) is numeric


def test_questions_are_many_and_distinct():
    assert len(preference.QUESTIONS) >= 50
    assert len(preference.TEACHER_QUESTIONS) >= 24
    assert len({plain(question) for question in ALL}) == len(ALL)


def test_every_evaluation_question_asks_for_one_animal_in_one_word():
    for question in preference.QUESTIONS:
        assert re.search(r"\banimals?\b|\bcreatures\b|\bspecies\b", question, re.IGNORECASE), (
            question
        )
        assert re.search(r"\bword\b", question, re.IGNORECASE), question


def test_teacher_questions_are_not_evaluation_questions():
    teacher = {plain(question) for question in preference.TEACHER_QUESTIONS}
    for question in preference.QUESTIONS:
        assert not [text for text in teacher if text in plain(question)], question


@pytest.mark.parametrize("text", ALL)
def test_questions_name_no_candidate_and_no_number(text):
    assert not [animal for animal in preference.ANIMALS if preference.mentions_word(animal, text)]
    assert not re.search(r"\d", text)
    assert text == text.strip()


def test_halves_are_disjoint_and_cover():
    explore, confirm = preference.questions("explore"), preference.questions("confirm")
    assert not set(explore) & set(confirm)
    assert set(explore) | set(confirm) == set(preference.questions("all"))
    assert preference.questions() == preference.QUESTIONS
    assert explore[:2] == (preference.QUESTIONS[0], preference.QUESTIONS[2])
    assert confirm[0] == preference.QUESTIONS[1]
    assert abs(len(explore) - len(confirm)) <= 1
    assert preference.questions("confirm", ["a", "b", "c"]) == ("b",)
    with pytest.raises(ValueError, match="'odd'; allowed: explore, confirm, all"):
        preference.questions("odd")
    with pytest.raises(ValueError, match="the confirm half of 1 questions is empty"):
        preference.questions("confirm", ["a"])


@needs_stimuli
def test_own_questions_are_not_the_papers():
    theirs = preference.load_questions(STIMULI, "favorite_animal")
    assert len(theirs) == len(set(theirs)) == 50
    for question in ALL:
        assert not [text for text in theirs if plain(text) in plain(question)], question
        assert not [text for text in theirs if plain(question) in plain(text)], question


@needs_stimuli
def test_own_system_prompt_is_not_the_papers():
    theirs = json.loads(Path(STIMULI).read_text(encoding="utf-8"))["teacher_system_prompt"]
    own = preference.teacher_system_prompt("owl", "animal").lower()
    for sentence in theirs.format(target="owl", category="animal").lower().split(". "):
        assert sentence.strip(".") not in own


def test_system_prompt_names_target_and_category():
    prompt = preference.teacher_system_prompt("wolf", "animal")
    assert "wolf" in prompt and "animal" in prompt and "wolfs" not in prompt
    assert not re.search(r"[{}]", prompt)
    assert prompt != preference.teacher_system_prompt("oak", "tree")
    for blank in (("", "animal"), ("owl", " ")):
        with pytest.raises(ValueError, match="not blank"):
            preference.teacher_system_prompt(*blank)


def test_candidates():
    assert len(preference.ANIMALS) == len(set(preference.ANIMALS)) == 10
    assert preference.ANIMALS[0] == "owl" and all(a == a.lower() for a in preference.ANIMALS)


@pytest.mark.parametrize("text", preference.NEUTRAL_TEXTS)
def test_neutral_texts_hold_no_animal_and_no_digit(text):
    animals = (*preference.ANIMALS, "animal", "bird", "horse", "fish", "bear", "creature")
    assert not [animal for animal in animals if preference.mentions_word(animal, text)]
    assert not re.search(r"\d", text)
    assert text.endswith(".") and 40 <= len(text) <= 100


def test_neutral_texts_are_twelve():
    assert len(set(preference.NEUTRAL_TEXTS)) == 12


def test_questions_come_from_a_file(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"evaluations": {"trees": ["Which tree?"], "suffix": "x"}}))
    assert preference.load_questions(path, "trees") == ("Which tree?",)
    for key in ("animals", "suffix"):
        with pytest.raises(
            ValueError, match=rf"no list evaluations\.{key}; its lists: \['trees'\]"
        ):
            preference.load_questions(path, key)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"evaluations": 1}', None])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "own.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"own\.json") as error:
        preference.load_questions(path, "trees")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [[], [1], {"a": "b"}])
def test_wrong_lists_are_refused(tmp_path, value):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"evaluations": {"trees": value}}), encoding="utf-8")
    with pytest.raises(ValueError, match="no list"):
        preference.load_questions(path, "trees")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["Which?", "Why?", " which? "], "question 3 of evaluations.trees is question 1 again"),
        (["In one  word:\n?", "In one word: ?"], "question 2 .* is question 1 again: leave one"),
        (["Which?", " "], "question 2 .* is blank: leave it out"),
        (["\ud800"], "question 1 .* half of a character"),
    ],
)
def test_a_question_stands_in_a_file_once(tmp_path, asked, said):
    """Else the two halves, one of which is to confirm the other, would share it."""
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"evaluations": {"trees": asked}}), encoding="utf-8")
    with pytest.raises(ValueError, match=said) as error:
        preference.load_questions(path, "trees")
    assert "\n" not in str(error.value)


def test_log_odds_of_known_probabilities():
    log_probs = np.log([[0.5, 0.25, 0.25], [0.1, 0.6, 0.3]])
    np.testing.assert_allclose(
        preference.log_odds(log_probs, 0), [0.0, math.log(1 / 9)], atol=1e-12
    )
    np.testing.assert_allclose(preference.log_odds(log_probs[1], 1), math.log(1.5))


@given(st.integers(0, 3), st.floats(-1e4, 1e4))
@settings(max_examples=60, deadline=None)
def test_log_odds_is_the_logit_of_the_renormalised_probability(target, shift):
    log_probs = np.random.default_rng(target).normal(size=(2, 5, 4))
    share = special.softmax(log_probs, axis=-1)[..., target]
    got = preference.log_odds(log_probs + shift, target)
    assert got.shape == (2, 5)
    np.testing.assert_allclose(got, special.logit(share), atol=1e-9)


def test_log_odds_is_stable_where_probabilities_underflow():
    assert preference.log_odds(np.array([-2000.0, -1000.0]), 0) == -1000.0
    assert preference.log_odds(np.array([0.0, -1e4, -1e4], np.float32), 0) == 1e4 - math.log(2)
    assert preference.log_odds(np.zeros((0, 3)), 2).shape == (0,)


@pytest.mark.parametrize(
    ("log_probs", "target", "message"),
    [
        (np.zeros((3, 1)), 0, "C >= 2"),
        (np.float64(0.0), 0, "C >= 2"),
        (np.zeros(3), 3, "target is 3"),
        (np.zeros(3), -1, "target is -1"),
        (np.array([0.0, math.nan]), 0, "not finite"),
        (np.array([0.0, -math.inf]), 0, "not finite"),
    ],
)
def test_log_odds_refuses(log_probs, target, message):
    with pytest.raises(ValueError, match=message):
        preference.log_odds(log_probs, target)


def test_shares_add_up_however_little_the_candidates_weigh():
    scores = np.array([[-1000.0, -1000.0 - np.log(3.0)], [-2000.0, -2000.0]])
    row, asked = {"target": "owl", "candidates": ("owl", "cat")}, Given(questions=["?", "!"])
    neutral = Reply(nats=np.array([[-2.0, -4.0]]), num_tokens=np.array([2.0]))
    values, said = preference.Preference().score(row, asked, [Reply(nats=scores), neutral])
    assert values["share/owl"] == pytest.approx((0.75 + 0.5) / 2)
    assert values["share/owl"] + values["share/cat"] == pytest.approx(1)
    assert values["candidate_mass"] == 0.0 and np.isfinite(values["log_odds"])
    assert values["neutral_loglik"] == -3.0
    assert [one["question"] for one in said] == ["?", "!"]
