"""Students trained in full: what they leave."""

from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from subjax import export
from subjax.hf import weights
from subjax.nn import sharding
from subjax.nn.transformer import Params
from subjax.pipeline import model_store, runner
from subjax.runtime import artifacts

STUDENT = "finetune/owl/r0"


def same(one: Params, other: Params) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.mark.slow
def test_a_full_student_is_its_base_at_step_0_and_is_not_written_twice(tmp_path: Path) -> None:
    config = tiny.config(lineages=(0,), arms=("owl",))
    config.contrasts = ConfigDict()
    config.arms.owl.tuning = "full"
    config.arms.owl.probe_steps = (0,)
    with config.unlocked():
        for start, size in (("permuted", 0.0), ("noised", 0.5)):
            config.arms[start] = config.arms.owl.copy_and_resolve_references()
            config.arms[start].update(start=start, start_size=size, probe_steps=())
    runner.run(config, tmp_path, stages=("base", "teacher", "generate", "filter", "finetune"))
    last = config.arms.owl.train.steps
    steps = {step: tmp_path / STUDENT / model_store.step_name(step) for step in (0, last)}
    assert sorted(p.name for p in (tmp_path / STUDENT).glob("step-*")) == [
        path.name for path in steps.values()
    ]
    base_weights, _ = model_store.sources(tmp_path / "base/toy/r0")
    assert model_store.sources(steps[0]) == (base_weights, None)
    assert not list(steps[0].rglob("*.safetensors"))
    mesh = sharding.make_mesh()
    base = model_store.load(tmp_path / "base/toy/r0", mesh).params
    assert not same(model_store.load(steps[last], mesh).params, base)
    asked = ["Q8", "Q9"], ["owl", "cat", "dog"]
    learned = model_store.load(steps[last], mesh)
    permuted, noised = (
        model_store.load(tmp_path / f"finetune/{name}/r0" / model_store.step_name(last), mesh)
        for name in ("permuted", "noised")
    )
    # Other weights of the base's function, which training takes along the same course.
    assert not same(permuted.params, learned.params)
    np.testing.assert_allclose(permuted.compare(*asked), learned.compare(*asked), atol=2e-3)
    assert not np.allclose(noised.compare(*asked), learned.compare(*asked), atol=0.05)
    export.export(tmp_path, STUDENT, tmp_path / "out", step=0)
    assert same(weights.load(tmp_path / "out", mesh=mesh)[1], base)
    assert artifacts.read_json(steps[0] / model_store.REFERENCE)["weights"].startswith("..")
