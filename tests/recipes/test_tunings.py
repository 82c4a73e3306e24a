"""Tunings: all weights start as the base and share nothing, an adapter lies on the base."""

import jax
import pytest
import tiny

from subjax import schema
from subjax.nn import lora, transformer
from subjax.recipes import tunings

ROWS = {name: schema.arm_row(tuning=name, lora_rank=2, lora_alpha=3.0) for name in tunings.TUNINGS}


@pytest.mark.parametrize("name", ROWS)
def test_what_trains_has_the_shapes_that_are_planned(name):
    tuning = tunings.of_row(ROWS[name])
    base = transformer.init(tiny.ARCH, jax.random.key(0))
    trained = tuning.initial(tiny.ARCH, base, jax.random.key(1))
    planned = tuning.adapter(tiny.ARCH) or transformer.abstract_params(tiny.ARCH)
    shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (trained, planned)]
    assert shapes[0] == shapes[1]


def test_an_adapter_lies_on_the_first_lanes_base_and_all_weights_on_nothing():
    bases = [transformer.init(tiny.ARCH, jax.random.key(seed)) for seed in (0, 1)]
    full, adapter = (tunings.of_row(ROWS[name]) for name in ("full", "lora"))
    assert full.initial(tiny.ARCH, bases[1], None) is bases[1]
    assert full.frozen(bases) == {}
    assert (full.rank, full.scale, full.adapter(tiny.ARCH)) == (0, 0.0, None)
    assert adapter.frozen(bases) is bases[0]
    assert (adapter.rank, adapter.scale) == (2, lora.scale(3.0, 2))


def test_rows_of_bases_train_all_weights_and_unknown_names_are_no_default():
    assert not tunings.of_row(schema.base_row()).is_adapter
    with pytest.raises(KeyError, match="qlora"):
        tunings.of_row({"tuning": "qlora"})
