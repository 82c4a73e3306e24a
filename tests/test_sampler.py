"""The sampler: a row depends on its prompt and key alone; slots refill; grammars bind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax import rng, sampler, sharding, transformer
from subjax.architecture import Architecture

ARCH = Architecture(
    vocab_size=29, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_width=24
)
EOS = 1
PROMPTS = [[2 + (i * j) % 27 for j in range(1, 2 + i % 5)] for i in range(23)]


@pytest.fixture(scope="module")
def params():
    return transformer.init(ARCH, jax.random.key(3))


def draw(params, ids, *, num_slots=4, temperature=1.0, new=12, allowed=None):
    ids = np.array(ids)
    return sampler.sample(
        ARCH,
        params,
        sampler.Sampling(num_slots, 6, new, temperature, (EOS,)),
        [PROMPTS[i] for i in ids],
        rng.row_keys(0, 0, jnp.array(ids), jnp.zeros_like(ids)),
        mesh=sharding.make_mesh(seed=1),
        allowed=allowed,
    )


def rows(samples):
    return [t[:n].tolist() for t, n in zip(samples.tokens, samples.lengths, strict=True)]


def test_rows_do_not_depend_on_their_slot_or_their_neighbours(params):
    whole = rows(draw(params, range(23)))
    assert len({tuple(row) for row in whole}) > 10  # otherwise equality says nothing
    shuffled = np.random.default_rng(0).permutation(23)
    again = rows(draw(params, shuffled))
    assert [again[list(shuffled).index(i)] for i in range(23)] == whole
    assert rows(draw(params, [17])) == [whole[17]]


def test_other_slot_counts_give_the_same_tokens(params):
    whole = rows(draw(params, range(23)))
    for num_slots in (1, 8, 32):
        assert rows(draw(params, range(23), num_slots=num_slots)) == whole


def test_greedy_equals_the_argmax_of_the_whole_row(params):
    samples = draw(params, range(6), temperature=0.0)
    for i, row in enumerate(rows(samples)):
        tokens = jnp.array([PROMPTS[i] + row])
        scores = transformer.logits(ARCH, params, transformer.forward(ARCH, params, tokens))[0]
        start = len(PROMPTS[i]) - 1
        assert jnp.argmax(scores[start : start + len(row)], axis=-1).tolist() == row


def test_rows_end_at_eos_or_at_the_limit(params):
    samples = draw(params, range(23), new=30)
    for row, stopped in zip(rows(samples), samples.stopped, strict=True):
        assert EOS not in row[:-1]
        assert (row[-1] == EOS) == stopped
        assert stopped or len(row) == 30
    assert samples.stopped.any()
    assert 0 < samples.occupancy <= 1


def test_frequencies_are_those_of_the_model(params):
    count = 4000
    keys = rng.row_keys(1, 0, jnp.arange(count), jnp.zeros(count, int))
    samples = sampler.sample(
        ARCH,
        params,
        sampler.Sampling(500, 6, 1, 1.0, (EOS,)),
        [PROMPTS[4]] * count,
        keys,
        mesh=sharding.make_mesh(seed=1),
    )
    hidden = transformer.forward(ARCH, params, jnp.array([PROMPTS[4]]))[0, -1]
    expected = np.asarray(jax.nn.softmax(transformer.logits(ARCH, params, hidden)))
    seen = np.bincount(samples.tokens[:, 0], minlength=29) / count
    spread = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(seen - expected) < 5 * spread + 1e-3).all()


def test_a_grammar_allows_nothing_else(params):
    allowed = np.zeros((4, 29), bool)
    allowed[[0, 1, 2], :] = False
    allowed[0, [5, 6]] = allowed[1, [7]] = allowed[2, [8, 9]] = allowed[3, [EOS]] = True
    samples = draw(params, range(23), new=4, allowed=allowed)
    for row in rows(samples):
        assert row[0] in (5, 6) and row[1] == 7 and row[2] in (8, 9) and row[3] == EOS
    assert len({row[0] for row in rows(samples)}) == 2


def test_keys_name_the_row(params):
    def key(seed, lineage, prompt, sample):
        return jax.random.key_data(
            rng.row_keys(seed, lineage, jnp.array([prompt]), jnp.array([sample]))
        ).tolist()

    distinct = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert len({str(key(*names)) for names in distinct}) == 5
    assert key(3, 1, 4, 1) == key(3, 1, 4, 1)


def test_prompts_that_do_not_fit_are_refused(params):
    with pytest.raises(ValueError, match="raise prompt_tokens"):
        sampler.sample(
            ARCH,
            params,
            sampler.Sampling(4, 2, 4, 1.0, (EOS,)),
            [[1, 2, 3]],
            rng.row_keys(0, 0, jnp.zeros(1, int), jnp.zeros(1, int)),
            mesh=sharding.make_mesh(seed=1),
        )
