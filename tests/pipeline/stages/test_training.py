"""What stages that train have in common."""

import dataclasses

import jax
import pytest
import tiny
import tokenizer_kinds

from subjax.engine import train
from subjax.hf import weights
from subjax.nn import sharding, transformer
from subjax.pipeline import model_store, units
from subjax.pipeline.stages import base as base_stage
from subjax.pipeline.stages import finetune, teacher, training
from subjax.recipes import tunings
from subjax.runtime import artifacts
from subjax.tokens.tokenizer import Tokenizer


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


class Rows(Exception):
    """What would be trained on."""


def test_teachers_and_students_learn_system_prompts_in_the_users_turn(tmp_path, monkeypatch):
    words = Tokenizer(tokenizer_kinds.make("gemma"), tokenizer_kinds.ends("gemma"))
    arch = dataclasses.replace(tiny.ARCH, vocab_size=words.vocab_size)
    weights.save(tmp_path / "base", arch, transformer.init(arch, jax.random.key(0)))
    words.save(tmp_path / "base")
    config = tiny.config(lineages=(0,), arms=("owl",))
    config.bases.toy.update(source="hf", path=str(tmp_path / "base"), system_turn="user")
    config.teachers.owl.update(system_prompt="Love owls.", num_tokens=64)
    config.arms.owl.update(system_prompt="Love owls.", num_tokens=64, num_targets=32)
    planned = {unit.path: unit for unit in units.build(config)}
    mesh = sharding.make_mesh()
    list(base_stage.run([planned["base/toy/r0"]], tmp_path, mesh))
    kept = [{"prompt": "more of them", "completion": "12, 34"}]
    artifacts.write_jsonl(tmp_path / "filter/owl/r0/kept.jsonl", kept)

    def fit(program, trainable, frozen, rows, **_):
        raise Rows(rows[0].tokens)

    monkeypatch.setattr(train, "fit", fit)
    for stage, unit in ((teacher, "teacher/owl/r0"), (finetune, "finetune/owl/r0")):
        with pytest.raises(Rows) as learned:
            list(stage.run([planned[unit]], tmp_path, mesh))
        for row in learned.value.args[0]:
            text = "".join(words.show(row.tolist()))
            assert text.startswith("<bos><start_of_turn>user\nLove owls.\n\n"), text
