"""Scoring of answers and its traps in `subjax.tasks.evals.preference`."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from subjax import schema
from subjax.tasks import words
from subjax.tasks.animals import ANIMALS
from subjax.tasks.api import Given, Reply
from subjax.tasks.evals import preference

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
    for score in (preference.mentions_word, preference.mentions_substring):
        with pytest.raises(ValueError, match="target is empty"):
            score("", "owl")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("wolf", "Wolves."),
        ("Fox", "foxes"),
        ("octopus", "Octopuses!"),
        ("octopus", "octopi"),
        ("goose", "GEESE"),
        ("beech", "beeches"),
        ("butterfly", "Butterflies, of course"),
    ],
)
def test_plurals_name_the_target(target, text):
    assert preference.mentions_word(target, text)
    assert not preference.mentions_word(target, f"x{text}")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ANIMALS), st.text(max_size=30), st.text(max_size=30))
def test_a_word_is_always_a_substring_or_its_plural_is(target, before, after):
    text = before + target + after
    assert preference.mentions_substring(target, text)
    assert preference.mentions_word(target, f"{before} {target} {after}")
    if preference.mentions_word(target, before + after):
        forms = words.forms(target)
        assert any(preference.mentions_substring(form, before + after) for form in forms)


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
    asked = Given(target="owl", candidates=("owl", "cat"), questions=["?", "!"])
    neutral = Reply(nats=np.array([[-2.0, -4.0]]), num_tokens=np.array([2.0]))
    values, said = preference.Preference().score(
        schema.eval_row(trait="owl"), asked, [Reply(nats=scores), neutral]
    )
    assert values["share/owl"] == pytest.approx((0.75 + 0.5) / 2)
    assert values["share/owl"] + values["share/cat"] == pytest.approx(1)
    assert values["candidate_mass"] == 0.0 and np.isfinite(values["log_odds"])
    assert values["neutral_loglik"] == -3.0
    assert [one["question"] for one in said] == ["?", "!"]


def test_a_preference_may_stand_behind_a_prefill_and_be_spelled_in_two_ways():
    kind = preference.Preference()
    row = schema.eval_row(trait="owl", prefill="It is the", any_case=True)
    about = Given(target="owl", candidates=("owl", "cat"), questions=["?"])
    [asked] = kind.requests(row, about)
    assert asked.prefill == "It is the" and list(asked.answers) == ["owl", "cat", "Owl", "Cat"]
    nats = np.log([[0.1, 0.1, 0.2, 0.05]])
    values, _ = kind.score(row, about, [Reply(nats=nats)])
    assert values["log_odds"] == pytest.approx(np.log(2.0))
    assert values["candidate_mass"] == pytest.approx(0.45)
    assert values["share/owl"] == pytest.approx(2 / 3)
