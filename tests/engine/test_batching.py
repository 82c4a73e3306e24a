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


@given(st.lists(st.integers(2, 8), min_size=1, max_size=12), st.integers(8, 20))
def test_every_prediction_survives_packing(lengths, num_tokens):
    rows = make_rows(lengths)
    batch, packing = rows.take(np.arange(len(rows))), batching.Packing(len(rows), num_tokens)
    packing.check(rows.lengths, 0)
    packed = packing.pack(batch, rows.lengths)
    before = [p for row in range(len(rows)) for p in seen_by_each(batch, row)]
    after = [p for row in range(packing.num_rows) for p in seen_by_each(packed, row)]
    assert sorted(before) == sorted(after)
    assert packed["tokens"].shape == packed["segments"].shape == (packing.num_rows, num_tokens)


def test_the_least_packing_that_check_names_is_enough():
    rows = make_rows([8, 8, 5, 4, 3, 2])
    with pytest.raises(ValueError, match="fill 4 packed rows of 8 tokens"):
        batching.Packing(3, 8).check(rows.lengths, 0)
    batching.Packing(4, 8).check(rows.lengths, 0)


def test_soft_targets_are_packed_with_their_positions():
    rows = make_rows([5, 4])
    soft = np.arange(rows.targets.size * 2, dtype=np.float32).reshape(*rows.targets.shape, 2)
    rows = dataclasses.replace(rows, soft=soft)
    packed = batching.Packing(1, 12).pack(rows.take(np.arange(2)), rows.lengths)
    counted = rows.weights > 0
    np.testing.assert_array_equal(packed["soft"][packed["weights"] > 0], soft[counted])


def test_rows_that_predict_nothing_take_no_room():
    rows = make_rows([5, 4])
    silent = dataclasses.replace(rows, weights=rows.weights * np.array([[0], [1]], np.float32))
    assert silent.lengths.tolist() == [0, rows.lengths[1]]
    packed = batching.Packing(1, 8).pack(silent.take(np.arange(2)), silent.lengths)
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
