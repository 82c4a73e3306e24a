"""Candidate scores against full passes; overlapping candidates are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax.engine import batching, prefill, scoring
from subjax.nn import sharding, transformer
from subjax.nn.architecture import Architecture

ARCH = Architecture(
    vocab_size=29, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_width=24
)
MESH = sharding.make_mesh(seed=1)


@pytest.fixture(scope="module")
def params():
    return transformer.init(ARCH, jax.random.key(3))


def log_p(params, context, answer):
    filled = [0] * (32 - len(context) - len(answer))  # one shape, which is compiled once
    ids = jnp.array([[*context, *answer, *filled]])
    scores = jax.nn.log_softmax(
        transformer.logits(ARCH, params, transformer.forward(ARCH, params, ids))[0], axis=-1
    )
    return sum(float(scores[len(context) + i - 1, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize("shared", [0, 9])
def test_candidates_of_any_length_are_summed_log_probabilities(params, shared):
    contexts = [[*range(shared), *behind] for behind in ([2, 3, 4], [5, 6], [7] * 11)]
    assert prefill.shared_tokens(contexts) == shared // 4 * 4  # read once
    candidates = [[8], [9, 10], [9, 11, 12], [13, 10]]
    scores = scoring.candidate_log_probs(
        ARCH, params, contexts, candidates, mesh=MESH, batch_size=4
    )
    expected = [[log_p(params, c, a) for a in candidates] for c in contexts]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_rows_are_scored_whatever_the_batch(params):
    examples = [([2, 3, 4, 5], 2), ([6, 7], 1), ([8, 9, 10], 1)]
    rows = batching.make_rows(examples, num_tokens=5, num_targets=3, pad_id=0)
    expected = np.zeros((3, 3))
    for i, (ids, start) in enumerate(examples):
        for j in range(start, len(ids)):
            expected[i, j - start] = log_p(params, ids[:j], [ids[j]])
    for batch_size in (1, 2, 8):
        scores = scoring.row_log_probs(ARCH, params, rows, mesh=MESH, batch_size=batch_size)
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_top_tokens_are_the_largest_of_the_whole_distribution(params):
    examples = [([2, 3, 4, 5], 2), ([6, 7], 1)]
    rows = batching.make_rows(examples, num_tokens=5, num_targets=3, pad_id=0)
    ids, scores = scoring.top_log_probs(ARCH, params, rows, 4, mesh=MESH)
    assert ids.shape == scores.shape == (2, 3, 4)
    [whole] = scoring.restricted_log_probs(ARCH, params, rows, range(29), mesh=MESH)
    for row, target in ((0, 0), (0, 1), (1, 0)):
        expected = np.argsort(-whole[row, target])[:4]
        assert ids[row, target].tolist() == expected.tolist()
        kept = whole[row, target, expected]
        np.testing.assert_allclose(
            scores[row, target], kept - np.log(np.exp(kept).sum()), atol=1e-5
        )


def test_a_candidate_that_begins_another_is_refused():
    scoring.check_candidates(["owl", "owner"], [[1, 2], [1, 3]])
    with pytest.raises(ValueError, match="'owl' begin those of 'owlet'"):
        scoring.check_candidates(["owl", "owlet"], [[1, 2], [1, 2, 3]])
    with pytest.raises(ValueError, match="no tokens"):
        scoring.check_candidates(["", "owl"], [[], [1]])
