"""Models are asked as they are: full weights or an adapter on them, through configs/evaluate.py."""

import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

from configs import evaluate
from subjax import schema
from subjax.engine import scoring
from subjax.hf import adapters, weights
from subjax.nn import lora, sharding, transformer
from subjax.pipeline import preview, runner, validation
from subjax.runtime import artifacts
from subjax.tasks.evals import preference
from subjax.tasks.traits.kinds import TRAITS
from tests.tiny import ARCH, BYTES


def test_a_model_and_an_adapter_on_it_get_their_own_scores(tmp_path: Path) -> None:
    params = transformer.init(ARCH, jax.random.key(0))
    weights.save(tmp_path / "model", ARCH, params)
    BYTES.save(tmp_path / "model")
    adapter = jax.tree.map(
        lambda leaf: leaf + 0.3, lora.init(ARCH, jax.random.key(1), rank=2, targets=("q", "o"))
    )
    adapters.save_adapter(tmp_path / "adapter", ARCH, adapter, rank=2, alpha=2, base_path="model")
    config = evaluate.get_config("against")
    for row in config.bases.values():
        row.path = str(tmp_path / "model")
    config.bases.model.adapter = str(tmp_path / "adapter")
    config.evals.preference.questions = "explore"
    with config.unlocked():
        del config.evals["answers"]
    runner.run(config, tmp_path / "run")

    asked = config.evals.preference
    trait, kind = config.traits.asked, TRAITS["word"]
    candidates = kind.candidates(trait)
    assert kind.target(trait) == "Owl"
    contexts = BYTES.prompt_ids(kind.questions(trait, "explore", ""), asked.system_prompt)
    for name, beside in (("model", lora.scaled(adapter, 1.0)), ("other", None)):
        scores = scoring.candidate_log_probs(
            ARCH,
            params,
            contexts,
            BYTES.answer_ids(candidates),
            mesh=sharding.make_mesh(seed=1),
            adapter=beside,
        )
        expected = preference.log_odds(scores, candidates.index("Owl")).mean()
        run = tmp_path / "run"
        records = artifacts.read_json(run / f"evaluate/preference/bases/{name}/r0/scores.json")
        [found] = [r["value"] for r in records["records"] if r["metric"] == "log_odds"]
        assert found == pytest.approx(expected, abs=1e-4)
    assert not (tmp_path / "run/finetune").exists()
    table = (tmp_path / "run/report/table.md").read_text()
    assert "| bases/model | preference log_odds |" in table

    other = jax.tree.map(lambda leaf: leaf + 0.1, adapter)
    adapters.save_adapter(tmp_path / "adapter", ARCH, other, rank=2, alpha=2, base_path="model")
    config.traits.asked.target = "cat"
    shutil.rmtree(tmp_path / "run/evaluate")
    with pytest.raises(ValueError, match="or its adapter is another"):
        runner.run(config, tmp_path / "run")


def changed(field: str, value: Any) -> Any:
    config = evaluate.get_config("smoke")
    with config.unlocked():
        config.datasets.owl = schema.dataset_row(teacher="writer")
        config.teachers.writer = schema.teacher_row(base="other")
        if field.startswith("arms."):
            config.arms.model = schema.arm_row(dataset="owl")
        if field == "bases.other.adapter":
            config.bases.other.update(source="hf", path="DIR")
        config.update_from_flattened_dict({field: value})
    return config


REFUSED = {
    "evals.preference.kind": ("likelihood", r"unlike rows of kind 'likelihood': make it with sch"),
    "evals.preference.subjects": (("arms/*",), r"has 'arms/\*', which matches none of its subj"),
    "evals.preference.trait": ("", "config.traits has <own>, asked"),
    "arms.model.method": ("none", "'none'; allowed: hard, soft$"),
    "arms.model.dataset": ("", "dataset is ''; config.datasets has owl$"),
    "bases.model.adapter": ("somewhere", "its source 'random' takes none"),
    "bases.other.adapter": ("somewhere", "merge the adapter into full weights"),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_makes_no_sense_is_refused(field: str) -> None:
    value, said = REFUSED[field]
    with pytest.raises(ValueError, match=said):
        validation.validate(changed(field, value))


def test_there_is_no_preview_of_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--preview=model is no arm of this config"):
        preview.render(evaluate.get_config("smoke"), tmp_path, "model")
