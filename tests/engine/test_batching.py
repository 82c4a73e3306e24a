"""Batches: what a step sees, in which order, and rows that share longer ones."""

import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subjax.engine import batching


def make_rows(lengths, *, num_tokens=8):
    rng = np.random.default_rng(sum(lengths))
    examples = [
        (rng.integers(1, 50, length).tolist(), int(rng.integers(1, length))) for length in lengths
    ]
    return batching.make_rows(examples, num_tokens=num_tokens, num_targets=num_tokens, pad_id=0)


def test_padding_weighs_nothing():
    rows = batching.make_rows([([3, 4, 5], 1)], num_tokens=8, num_targets=7, pad_id=0)
    assert rows.weights.sum() == 2
    filled = batching.pad(rows.take(np.array([0])), 4)
    assert filled["tokens"].shape == (4, 8)
    assert filled["weights"].sum() == 2
    assert batching.pad(filled, 4) is filled


def test_every_row_is_seen_once_per_epoch_whatever_the_batch():
    for batch_size in (3, 7, 10):
        seen = np.concatenate(
            [batching.rows(5, s, num_rows=10, batch_size=batch_size) for s in range(20)]
        )
        for epoch in range(len(seen) // 10):
            assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert not np.array_equal(
        batching.rows(5, 0, num_rows=10, batch_size=10),
        batching.rows(6, 0, num_rows=10, batch_size=10),
    )


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="raise num_tokens"):
        batching.make_rows([([1] * 9, 1)], num_tokens=8, num_targets=8, pad_id=0)
    with pytest.raises(ValueError, match="no rows"):
        batching.make_rows([], num_tokens=8, num_targets=8, pad_id=0)


def seen_by_each(batch, row):
    """Each segment of a packed row, or the row, as (tokens before a target, target), sorted."""
    segments = batch.get("segments", np.ones_like(batch["tokens"]))[row]
    found = []
    for at, target, weight in zip(
        *(batch[name][row] for name in ("positions", "targets", "weights")), strict=True
    ):
        if weight:
            mine = (segments == segments[at]) & (np.arange(len(segments)) <= at)
            found.append((*batch["tokens"][row][mine].tolist(), int(target)))
    return found


def pack(packing, rows, most_passes=0):
    """All rows as one batch, by default in as many passes as they need."""
    batch = rows.take(np.arange(len(rows)))
    return packing.pack(batch, rows.sizes, most_passes or packing.num_passes(rows.sizes))


@given(
    st.lists(st.integers(2, 8), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(8, 20),
    st.integers(7, 12),
    st.integers(0, 3),
)
def test_every_prediction_survives_packing(
    lengths, num_rows, num_tokens, num_targets, num_segments
):
    rows = make_rows(lengths)
    packing = batching.Packing(num_rows, num_tokens, num_targets, num_segments)
    packing.check(rows.sizes)
    packed, passes = pack(packing, rows), packing.num_passes(rows.sizes)
    assert packed["tokens"].shape == packed["segments"].shape == (num_rows, passes, num_tokens)
    assert packed["positions"].shape == packed["weights"].shape == (num_rows, passes, num_targets)
    each = {name: array.reshape(-1, *array.shape[2:]) for name, array in packed.items()}
    batch = rows.take(np.arange(len(rows)))
    before = [p for row in range(len(rows)) for p in seen_by_each(batch, row)]
    after = [p for row in range(num_rows * passes) for p in seen_by_each(each, row)]
    assert sorted(before) == sorted(after)
    if num_segments:
        assert each["places"].shape[1:] == (num_segments, 8)
        for segments, places in zip(each["segments"], each["places"], strict=True):
            for number in range(num_segments):
                stand = np.flatnonzero(segments == number + 1)
                assert places[number].tolist() == [*stand, *[-1] * (8 - len(stand))]
    # Passes with targets come first, and all that are computed have some.
    assert packed["weights"].any(axis=(0, 2)).all()
    assert passes <= -(-len(rows) // num_rows)


def test_a_row_that_fits_no_packed_row_is_refused():
    rows = make_rows([8, 5, 4])
    tokens, targets = rows.sizes.max(axis=0).tolist()
    batching.Packing(1, tokens, targets).check(rows.sizes)
    with pytest.raises(ValueError, match=f"has {tokens} tokens, packed_tokens is 3: raise it to"):
        batching.Packing(9, 3, 9).check(rows.sizes)
    with pytest.raises(ValueError, match=f"has {targets} targets, packed_targets is 1: raise it"):
        batching.Packing(9, 9, 1).check(rows.sizes)


def test_little_room_is_left_where_rows_of_mixed_lengths_are_packed():
    """Each packed row holds four or five rows, which in their order would leave more."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = rng.integers(60, 160, 36)
        sizes = np.stack([tokens, tokens // 3], axis=1)
        packing = batching.Packing(8, -(-int(1.06 * tokens.sum()) // 8), 200)
        assert packing.num_passes(sizes) == 1


def test_both_tokens_and_targets_limit_what_fits():
    sizes = np.array([[4, 3]] * 4)
    assert batching.Packing(1, 16, 12).num_passes(sizes) == 1
    assert batching.Packing(1, 8, 12).num_passes(sizes) == 2
    assert batching.Packing(1, 16, 5).num_passes(sizes) == 4


def test_room_for_targets_is_that_for_tokens_by_default():
    fields = {"packed_rows": 2, "packed_tokens": 9, "packed_targets": 0, "packed_segments": 0}
    assert batching.Packing.of(fields) == batching.Packing(2, 9, 9)
    assert batching.Packing.of({**fields, "packed_targets": 4}) == batching.Packing(2, 9, 4)
    assert batching.Packing.of({**fields, "packed_rows": 0}) is None


def test_all_steps_have_room_for_the_passes_of_the_fullest():
    rows = make_rows([9, 9, 3, 3, 3, 3, 3], num_tokens=9)
    batches = batching.Batches([rows], [3], 3, 12, packing=batching.Packing(1, 8, 8))
    assert set(batches.passes) == {1, 2, 3}
    assert batches.of(range(1))["tokens"].shape == (1, 1, 1, 3, 8)
    segments = [batches.of(range(step, step + 1))["segments"][0, 0, 0] for step in range(12)]
    assert [int(found.any(axis=1).sum()) for found in segments] == batches.passes


def test_soft_targets_are_packed_with_their_positions():
    rows = make_rows([5, 4])
    soft = np.arange(rows.targets.size * 2, dtype=np.float32).reshape(*rows.targets.shape, 2)
    rows = dataclasses.replace(rows, soft=soft)
    packed = pack(batching.Packing(1, 12, 12), rows)
    counted = rows.weights > 0
    found = packed["soft"][packed["weights"] > 0]
    np.testing.assert_array_equal(np.sort(found, axis=0), soft[counted])


def test_rows_that_predict_nothing_take_no_room():
    rows = make_rows([5, 4])
    silent = dataclasses.replace(rows, weights=rows.weights * np.array([[0], [1]], np.float32))
    assert silent.lengths.tolist() == [0, rows.lengths[1]]
    packed = pack(batching.Packing(1, 8, 8), silent)
    assert packed["weights"].sum() == rows.weights[1].sum()


def test_large_arrays_lie_on_disk_and_batches_read_their_rows(tmp_path, monkeypatch):
    whole = np.random.default_rng(0).normal(size=(7, 3, 5)).astype(np.float32)
    parts = iter((whole[:4], whole[4:]))
    found = batching.on_disk(parts, whole.shape, tmp_path)
    assert isinstance(found, np.memmap) and not list(tmp_path.iterdir())
    made = make_rows([3] * 7, num_tokens=3)
    rows = dataclasses.replace(made, soft=found)
    np.testing.assert_array_equal(rows.take(np.array([6, 0]))["soft"], whole[[6, 0]])
    padded = batching.pad(rows.take(np.arange(3)), 2)
    np.testing.assert_array_equal(padded["soft"], whole[[0, 1, 2, 0]])
    with pytest.raises(ValueError, match="parts of 240 bytes do not make an array"):
        batching.on_disk([whole[:4]], whole.shape, tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=400)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"7 rows over 5 tokens at 3 targets take 0.0 GB, and .*"):
        batching.on_disk(iter(()), whole.shape, tmp_path)
