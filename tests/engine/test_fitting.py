"""Shapes of packed rows that are chosen for rows that are known."""

import dataclasses

import numpy as np
import pytest

from subjax.engine import batching, fitting
from subjax.nn import sharding
from tests.engine.test_train import ARCH

WIDE = dataclasses.replace(ARCH, width=256, ffn_width=1024)
HOW = {"seed": 0, "steps": 30, "batch_size": 12}


def make_rows(lengths):
    examples = [([1] * length, max(1, length - 9)) for length in lengths]
    return batching.make_rows(examples, num_tokens=max(lengths), num_targets=max(lengths), pad_id=0)


@pytest.mark.parametrize("shape", [{}, {"data": 2, "fsdp": 2}])
def test_what_is_chosen_wastes_little_and_less_than_padded_rows(shape):
    lengths = np.random.default_rng(0).integers(20, 90, 200)
    rows, mesh = make_rows(lengths.tolist()), sharding.make_mesh(seed=1, **shape)
    found = fitting.packing(WIDE, rows, mesh, **HOW)
    assert found == fitting.packing(WIDE, rows, mesh, **HOW)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    assert found.num_rows % parts == 0 and found.num_tokens % 8 == 0
    # As many as there are, or a few more: the scores of each are computed.
    assert 12 <= found.num_rows * found.num_segments <= 1.5 * 12
    batches = batching.Batches([rows], [0], 12, 30, parts, found)
    batches.check()
    real = sum(batches.sizes(step)[0][:, 0].sum() for step in range(30))
    computed = sum(batches.passes) * found.num_rows * found.num_tokens
    assert 1 - real / computed < 0.3 < 0.35 < 1 - real / (30 * 12 * rows.tokens.shape[1])


def test_rows_of_one_length_are_not_packed():
    mesh = sharding.make_mesh(seed=1)
    assert fitting.packing(WIDE, make_rows([16] * 40), mesh, **HOW) is None


def test_the_longest_row_fits_although_no_sampled_step_has_it():
    rows = make_rows([10] * 399 + [90])
    found = fitting.packing(WIDE, rows, sharding.make_mesh(seed=1), **{**HOW, "steps": 1})
    found.check(rows.sizes)
    assert found.num_tokens >= rows.sizes[-1, 0] == rows.sizes[:, 0].max()
