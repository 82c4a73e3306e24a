"""The sampler: a row depends on its prompt and key alone; slots refill; grammars bind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax.engine import prefill, sampler, slots, token_sampling
from subjax.nn import sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.tokens.grammars import Grammar

ARCH = Architecture(
    vocab_size=29, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_width=24
)
EOS = 1
PROMPTS = [[2 + (i * j) % 27 for j in range(1, 2 + i % 5)] for i in range(23)]


@pytest.fixture(scope="module")
def params():
    return transformer.init(ARCH, jax.random.key(3))


def draw(params, ids, samples=None, *, num_slots=4, room=6, temperature=1.0, new=12, **kwargs):
    ids = np.array(ids)
    return sampler.sample(
        ARCH,
        params,
        sampler.Sampling(num_slots, room, new, temperature, (EOS,)),
        [PROMPTS[i] for i in ids],
        token_sampling.row_keys(0, 0, jnp.array(ids), jnp.array(samples or [0] * len(ids))),
        mesh=sharding.make_mesh(seed=1),
        **kwargs,
    )


def by_position(*tokens, rows=23):
    """A grammar of which the states are the positions of a row, each with its own tokens."""
    ids = np.unique(np.concatenate(tokens)).astype(np.int32)
    allowed = np.stack([np.isin(ids, some) for some in tokens])
    last = len(tokens) - 1
    follow = np.minimum(np.arange(len(tokens)) + 1, last).astype(np.int32)[:, None]
    next_state = np.broadcast_to(follow, allowed.shape).copy()
    return Grammar(ids, allowed, next_state, np.zeros(rows, np.int32))


@jax.jit
def whole_row(params, tokens):
    return transformer.logits(ARCH, params, transformer.forward(ARCH, params, tokens))[0]


def scores_of(params, i, row):
    """What a full pass says of each token of a row, [its length, V]."""
    tokens = np.zeros((1, 20), np.int32)  # padding changes nothing, and one program serves all
    start = len(PROMPTS[i])
    tokens[0, : start + len(row)] = PROMPTS[i] + row
    return np.asarray(whole_row(params, tokens))[start - 1 : start - 1 + len(row)]


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


def blocks_read(monkeypatch):
    """Rows and tokens of each block of prompts that is read from now on."""
    read, block = [], prefill._block_read
    monkeypatch.setattr(
        prefill, "_block_read", lambda *args: [read.append(args[6].shape), block(*args)][1]
    )
    return read


@pytest.mark.parametrize(
    ("shared", "rooms"),
    [(0, (16, 32, 32)), (7, (16, 32, 32)), (8, (16, 24, 24)), (20, (16, 32, 32))],
)
def test_what_prompts_begin_with_is_read_once(params, monkeypatch, shared, rooms):
    monkeypatch.setattr(prefill, "_AT_ONCE", 360)
    read = blocks_read(monkeypatch)
    prompts = [[3] * shared + [4 + i % 9, *[5] * (i % 24)] for i in range(21)]
    prompts[7] = prompts[8]
    allowed = sampler.Sampling(8, 100, 5, 1.0, (EOS,))
    fitted = sampler.fitted(allowed, prompts)
    assert fitted.prefix_tokens == (shared if shared >= 8 else 0)

    def drawn(sampling):
        keys = token_sampling.row_keys(0, 0, jnp.arange(21), jnp.zeros(21, int))
        found = sampler.sample(ARCH, params, sampling, prompts, keys, mesh=sharding.make_mesh())
        return rows(found)

    once = drawn(fitted)
    # By length, eight at a time: the shorter ones take less room.
    assert read == [(8, room) for room in rooms]
    assert once == drawn(dataclasses.replace(fitted, prefix_tokens=0, prompt_tokens=64))
    if shared:
        with pytest.raises(ValueError, match="prompts differ in their first 21 tokens, or have no"):
            drawn(dataclasses.replace(fitted, prefix_tokens=21))


def test_one_token_loop_serves_prompts_of_all_prefixes(params):
    keys = token_sampling.row_keys(0, 0, jnp.arange(2), jnp.zeros(2, int))
    allowed = sampler.Sampling(2, 64, 3, 1.0, (EOS,))
    before = sampler._decode._cache_size()
    for shared in (0, 8, 9, 11, 13):
        prompts = [[3] * shared + [4 + i] * (15 - shared) for i in range(2)]
        fitted = sampler.fitted(allowed, prompts)
        assert fitted.prefix_tokens == (shared // 4 * 4)
        sampler.sample(ARCH, params, fitted, prompts, keys, mesh=sharding.make_mesh())
    assert sampler._decode._cache_size() == before + 1
    assert prefill.shared_tokens([[3] * 20] * 2) == 0  # one prompt: nothing is read twice
    long = [[3] * 600 + [i] for i in range(2)]
    assert prefill.shared_tokens(long) == 0 and prefill.room(601) == 640


def test_samples_of_a_prompt_share_its_prefill_and_not_their_tokens(params, monkeypatch):
    read = blocks_read(monkeypatch)
    ids, samples = [4, 3, 4, 4, 7, 3, 4, 9, 8, 4, 4, 3], [0, 1, 3, 2, 0, 0, 1, 0, 0, 5, 4, 2]
    together = rows(draw(params, ids, samples))
    assert read == [(8, 6)]  # five distinct prompts, in one block of one of few sizes
    assert len({tuple(row) for row in together}) > 8
    for i, sample, row in zip(ids, samples, together, strict=True):
        assert rows(draw(params, [i], [sample])) == [row]


def test_log_probs_are_those_of_the_whole_row(params):
    plain = draw(params, range(9), temperature=0.7)
    assert plain.log_probs is plain.top_ids is plain.top_log_probs is None
    samples = draw(params, range(9), temperature=0.7, log_probs=True, top_log_probs=5)
    np.testing.assert_array_equal(samples.tokens, plain.tokens)
    for i, row in enumerate(rows(samples)):
        expected = np.asarray(jax.nn.log_softmax(scores_of(params, i, row), axis=-1))
        found, length = samples.log_probs[i], len(row)
        np.testing.assert_allclose(found[:length], expected[range(length), row], atol=1e-5)
        assert not found[length:].any()
        order = np.argsort(-expected, axis=-1)[:, :5]
        assert samples.top_ids[i, :length].tolist() == order.tolist()
        top = np.take_along_axis(expected, order, axis=-1)
        np.testing.assert_allclose(samples.top_log_probs[i, :length], top, atol=1e-5)
    with pytest.raises(ValueError, match="must be 0 to 29"):
        draw(params, [0], top_log_probs=30)


def test_log_probs_under_a_grammar_are_shared_by_what_it_allows(params):
    tokens = [[5, 6, 8], [EOS, 7]]
    rules = by_position(*tokens, rows=9)
    samples = draw(params, range(9), new=2, grammar=rules, log_probs=True, top_log_probs=3)
    for i, row in enumerate(rows(samples)):
        scores = scores_of(params, i, row)
        for step, token in enumerate(row):
            ids = np.sort(tokens[step])
            of_step = jax.nn.log_softmax(scores[step, ids])
            expected = dict(zip(ids.tolist(), np.asarray(of_step), strict=True))
            np.testing.assert_allclose(samples.log_probs[i, step], expected[token], atol=1e-5)
            top = zip(samples.top_ids[i, step], samples.top_log_probs[i, step], strict=True)
            found = {int(t): value for t, value in top if np.isfinite(value)}
            assert found.keys() == expected.keys()
            np.testing.assert_allclose([found[t] for t in ids], list(expected.values()), atol=1e-5)


def test_greedy_equals_the_argmax_of_the_whole_row(params):
    samples = draw(params, range(6), temperature=0.0)
    for i, row in enumerate(rows(samples)):
        assert np.argmax(scores_of(params, i, row), axis=-1).tolist() == row


def test_each_row_may_have_its_own_temperature(params):
    shares = (0.0, 0.5, 1.0)
    own = [shares[i % 3] for i in range(23)]
    mixed = rows(draw(params, range(23), temperatures=own))
    for share in shares:
        alone = rows(draw(params, range(23), temperature=share))
        assert [mixed[i] for i in range(23) if own[i] == share] == [
            alone[i] for i in range(23) if own[i] == share
        ]
    assert rows(draw(params, range(23), temperature=0)) == rows(
        draw(params, range(23), temperature=0.0)
    )
    for wrong in (own[1:], *([number, *own[1:]] for number in (-1.0, np.nan, np.inf))):
        with pytest.raises(ValueError, match="temperatures must be 23, one for each row, finite"):
            draw(params, range(23), temperatures=wrong)


def test_rows_end_at_eos_or_at_the_limit(params):
    samples = draw(params, range(23), new=30)
    for row, stopped in zip(rows(samples), samples.stopped, strict=True):
        assert EOS not in row[:-1]
        assert (row[-1] == EOS) == stopped
        assert stopped or len(row) == 30
    assert samples.stopped.any()
    assert 0 < samples.occupancy <= 1


@pytest.mark.parametrize("rules", [None, by_position([5, 6], [7], [8, EOS])])
def test_the_last_rows_stand_in_fewer_slots(params, monkeypatch, rules):
    how = {"num_slots": 16, "new": 30, "grammar": rules}
    whole = draw(params, range(23), **how)
    monkeypatch.setattr(sampler, "_WORTH_A_PROGRAM", 0)
    found = draw(params, range(23), **how)
    assert rows(found) == rows(whole)
    few = draw(
        params, range(3), **{**how, "grammar": rules and rules._replace(start=rules.start[:3])}
    )
    assert rows(few) == rows(whole)[:3] and few.occupancy > 0.3
    assert found.occupancy > 1.1 * whole.occupancy


def test_slots_become_fewer_where_that_saves_more_than_a_program_costs():
    mesh, sampling = sharding.make_mesh(), sampler.Sampling(64, 128, 60, 1.0, (EOS,))
    assert sampler._slot_counts(ARCH, sampling, mesh) == [64]
    large = dataclasses.replace(ARCH, num_layers=30, width=576, ffn_width=1536)
    assert sampler._slot_counts(large, sampling, mesh) == [64, 32]
    odd = dataclasses.replace(sampling, num_slots=50)
    assert sampler._slot_counts(large, odd, mesh) == [50, 25]


def test_devices_share_the_weights_of_a_loop_as_its_rows_ask():
    arch = Architecture(
        vocab_size=32_000, num_layers=32, width=4096, num_heads=32, num_kv_heads=8, head_dim=128,
        ffn_width=14_336,
    )  # fmt: skip

    def parts(num_slots, num_devices=16, tensor=1, precision="bfloat16"):
        sizes = {"num_devices": num_devices, "tensor": tensor}
        return slots.loop_parts(arch, num_slots, precision, **sizes)

    assert parts(512) == 8
    # For few rows, weights are all that takes time; for many, activations are.
    assert parts(16) == 16 and parts(4096, num_devices=64) == 8
    assert parts(512, tensor=16) == 16 and parts(512, num_devices=1) == 1
    # With half as many, the weights would take 3.6 GB of each device.
    assert parts(100_000) == 8 and parts(100_000, precision="float32") == 16
    # Two groups of eight cannot share 511 rows.
    assert parts(511) == 16


def test_frequencies_are_those_of_the_model(params):
    count = 4000
    keys = token_sampling.row_keys(1, 0, jnp.arange(count), jnp.zeros(count, int))
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
    samples = draw(params, range(23), new=4, grammar=by_position([5, 6], [7], [8, 9], [EOS]))
    for row in rows(samples):
        assert row[0] in (5, 6) and row[1] == 7 and row[2] in (8, 9) and row[3] == EOS
    assert len({row[0] for row in rows(samples)}) == 2


# Pairs of equal tokens, then the end: what may follow depends on what was drawn.
PAIRS = Grammar(
    ids=np.array([EOS, 5, 6], np.int32),
    allowed=np.array([[0, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]], bool),
    next_state=np.array([[0, 1, 2], [0, 3, 0], [0, 0, 3], [-1, 0, 0]], np.int32),
    start=np.zeros(23, np.int32),
)


def test_what_a_grammar_allows_depends_on_what_was_drawn(params):
    whole = rows(draw(params, range(23), new=3, grammar=PAIRS))
    assert {tuple(row) for row in whole} == {(5, 5, EOS), (6, 6, EOS)}
    # More rows than slots: each begins in its own state, whoever had its slot before.
    start = np.arange(23, dtype=np.int32) % 4
    begun = rows(draw(params, range(23), new=3, grammar=PAIRS._replace(start=start)))
    expected = {1: [5, EOS], 2: [6, EOS], 3: [EOS]}
    for at, row in enumerate(begun):
        assert row == expected.get(at % 4, whole[at])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("start", np.zeros(22, np.int32), "give .* 23 starts, one for each row"),
        ("start", np.full(23, 4, np.int32), "start is 4 to 4, but must be 0 to 3"),
        ("next_state", np.full((4, 3), -2, np.int32), "next_state is -2 to -2, but must be -1 to"),
        ("next_state", np.zeros((3, 3), np.int32), r"tables \(4, 3\) and \(3, 3\)"),
        ("ids", np.array([1, 6, 5], np.int32), "ascending ids below 29"),
        ("ids", np.array([1, 5, 29], np.int32), "ascending ids below 29"),
        ("next_state", np.full((4, 3), -1, np.int32), r"ends rows with the tokens \[5, 6\]"),
    ],
)
def test_a_grammar_that_is_none_is_refused(params, field, value, message):
    with pytest.raises(ValueError, match=message):
        draw(params, range(23), new=3, grammar=PAIRS._replace(**{field: value}))


def test_keys_name_the_row(params):
    def key(seed, lineage, prompt, sample):
        return jax.random.key_data(
            token_sampling.row_keys(seed, lineage, jnp.array([prompt]), jnp.array([sample]))
        ).tolist()

    distinct = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert len({str(key(*names)) for names in distinct}) == 5
    assert key(3, 1, 4, 1) == key(3, 1, 4, 1)


@pytest.mark.parametrize(
    ("longest", "room"), [(1, 16), (16, 16), (17, 32), (33, 64), (65, 96), (97, 100), (101, 100)]
)
def test_room_for_prompts_is_little_more_than_they_need(longest, room):
    allowed = sampler.Sampling(4, 100, 4, 1.0, (EOS,))
    fitted = sampler.fitted(allowed, [[2], [2] * longest])
    assert fitted == dataclasses.replace(allowed, prompt_tokens=room)


@pytest.mark.parametrize("room", [16, 64])
def test_room_for_prompts_changes_no_token(params, room):
    assert rows(draw(params, range(23), room=room)) == rows(draw(params, range(23)))


def test_prompts_that_do_not_fit_are_refused(params):
    with pytest.raises(ValueError, match="raise prompt_tokens"):
        sampler.sample(
            ARCH,
            params,
            sampler.Sampling(4, 2, 4, 1.0, (EOS,)),
            [[1, 2, 3]],
            token_sampling.row_keys(0, 0, jnp.zeros(1, int), jnp.zeros(1, int)),
            mesh=sharding.make_mesh(seed=1),
        )


@pytest.mark.parametrize(
    ("num_slots", "num_rows", "new"), [(64, 640, 1), (64, 640, 2), (17, 40, 3)]
)
def test_slots_of_short_rows_do_not_stay_empty(params, num_slots, num_rows, new):
    """However many rows end at once, and with the tokens that as many slots as rows give."""
    prompts = [[2 + i % 7] * (1 + i % 3) for i in range(num_rows)]
    keys = token_sampling.row_keys(0, 0, jnp.arange(num_rows), jnp.zeros(num_rows, int))

    def drawn(num_slots):
        sampling = sampler.Sampling(num_slots, 4, new, 1.0, (-1,))
        return sampler.sample(ARCH, params, sampling, prompts, keys, mesh=sharding.make_mesh())

    few, all_at_once = drawn(num_slots), drawn(num_rows)
    np.testing.assert_array_equal(few.tokens, all_at_once.tokens)
    waves = -(-num_rows // num_slots)
    assert few.occupancy == pytest.approx(num_rows / (waves * num_slots))
