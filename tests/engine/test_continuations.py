"""Continuations scored as branches of one row, against full passes over each by itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax.engine import continuations
from subjax.nn import sharding, transformer
from subjax.nn.architecture import Architecture

ARCH = Architecture(
    vocab_size=29, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_width=24
)
# A layer that sees three positions, and one that sees all.
LOCAL = dataclasses.replace(ARCH, local=(True, False), window=3)
CONTEXTS = [[2, 3, 4], [5], [7, 1, 7, 2, 7, 3, 7, 4]]
CONTINUATIONS = [[[8], [9, 10], [9, 11, 12, 1, 2]], [[6, 7, 8]], [[1], [1]]]


@pytest.fixture(scope="module")
def params():
    return transformer.init(ARCH, jax.random.key(3))


def alone(arch, params, context, answer):
    """Sum of log-probabilities, and whether all of its tokens are the likeliest, in a row each."""
    ids = [*context, *answer]
    filled = [0] * (16 - len(ids))  # one shape, which is compiled once
    hidden = transformer.forward(arch, params, jnp.array([[*ids, *filled]]))
    scores = jax.nn.log_softmax(transformer.logits(arch, params, hidden)[0], axis=-1)
    before = scores[len(context) - 1 : len(ids) - 1]
    greedy = bool((before.argmax(-1) == jnp.array(answer)).all())
    return float(before[jnp.arange(len(answer)), jnp.array(answer)].sum()), greedy


def greedy_answer(params, context, length):
    answer = []
    for _ in range(length):
        ids = [*context, *answer]
        filled = [0] * (16 - len(ids))
        hidden = transformer.forward(ARCH, params, jnp.array([[*ids, *filled]]))
        answer.append(int(transformer.logits(ARCH, params, hidden)[0, len(ids) - 1].argmax()))
    return answer


@pytest.mark.parametrize("arch", [ARCH, LOCAL], ids=["global", "local"])
def test_each_is_scored_as_if_it_stood_alone(arch, params):
    found = continuations.log_probs(
        arch, params, CONTEXTS, CONTINUATIONS, mesh=sharding.make_mesh(seed=1)
    )
    for context, answers, scores in zip(CONTEXTS, CONTINUATIONS, found, strict=True):
        for answer, score in zip(answers, scores, strict=True):
            nats, greedy = alone(arch, params, context, answer)
            assert score.log_prob == pytest.approx(nats, abs=1e-5)
            assert score.greedy == greedy


def test_what_greedy_decoding_writes_is_said(params):
    answer = greedy_answer(params, [2, 3], 3)
    other = [*answer[:2], (answer[2] + 1) % 29]
    [[said, but_for_its_end]] = continuations.log_probs(
        ARCH, params, [[2, 3]], [[answer, other]], mesh=sharding.make_mesh(seed=1)
    )
    assert said.greedy and not but_for_its_end.greedy


def test_scores_depend_on_no_batch(params, monkeypatch):
    mesh = sharding.make_mesh(seed=1)
    contexts = [[1 + i % 27] * (1 + i % 40) for i in range(50)]
    answers = [[[i % 29, 3], [4]] for i in range(50)]
    whole = continuations.log_probs(ARCH, params, contexts, answers, mesh=mesh)
    monkeypatch.setattr(continuations, "_AT_ONCE", 64)  # one or two rows a device
    parts = continuations.log_probs(ARCH, params, contexts, answers, mesh=mesh)
    flat = [np.array([s.log_prob for row in found for s in row]) for found in (whole, parts)]
    np.testing.assert_allclose(*flat, atol=1e-5)
    assert len(set(np.round(flat[0], 3))) > 50


def test_many_continuations_are_spread_over_rows(params, monkeypatch):
    mesh = sharding.make_mesh(seed=1)
    whole = continuations.log_probs(ARCH, params, CONTEXTS, CONTINUATIONS, mesh=mesh)
    monkeypatch.setattr(continuations, "_BRANCHING", 4)
    assert continuations._parts(CONTEXTS[0], CONTINUATIONS[0]) == [
        [[8], [9, 10]],
        [[9, 11, 12, 1, 2]],
    ]
    spread = continuations.log_probs(ARCH, params, CONTEXTS, CONTINUATIONS, mesh=mesh)
    assert [list(map(len, found)) for found in (whole, spread)] == [[3, 1, 2]] * 2
    flat = [np.array([s.log_prob for row in found for s in row]) for found in (whole, spread)]
    np.testing.assert_allclose(*flat, atol=1e-5)


@pytest.mark.parametrize(("context", "answers"), [([], [[1]]), ([1], [[2], []])])
def test_nothing_to_score_is_an_error(params, context, answers):
    with pytest.raises(ValueError, match="has no tokens"):
        continuations.log_probs(ARCH, params, [context], [answers], mesh=sharding.make_mesh(seed=1))
