"""What stages that train have in common."""

import jax
import pytest
import tiny

from subjax.hf import weights
from subjax.nn import sharding, transformer
from subjax.pipeline import model_store, units
from subjax.pipeline.stages import training
from subjax.recipes import tunings


@pytest.mark.parametrize(("tuning", "held"), [("full", "float32"), ("lora", "bfloat16")])
def test_only_what_is_not_trained_is_held_as_products_take_it(tuning, held, tmp_path):
    config = tiny.config(lineages=(0,), arms=("owl",))
    config.compute.precision = "bfloat16"
    config.arms.owl.tuning = tuning
    unit = next(unit for unit in units.build(config) if unit.stage == "finetune")
    base = tmp_path / unit.inputs["base"]
    params = transformer.init(tiny.ARCH, jax.random.key(0))
    weights.save(base / "weights", tiny.ARCH, params, dtype="bfloat16")
    tiny.BYTES.save(base / "weights")
    model_store.refer(base, base / "weights")
    row = unit.fields["row"]
    [found] = training.bases([unit], tmp_path, sharding.make_mesh(), tunings.of_row(row))
    assert found.params["layers"]["mlp"]["up"]["kernel"].dtype == held
