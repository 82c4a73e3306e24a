"""What a unit says of its weights: read again where the run, or what the hub gave, has moved.

And of how their chat template is used.
"""

import shutil

import huggingface_hub
import jax
import pytest
import tiny

from subjax.hf import weights
from subjax.nn import lora, sharding, transformer
from subjax.pipeline import model_store, units, validation
from subjax.pipeline.stages import base
from subjax.tokens.chat_templates import DEFAULT_OPTIONS, TemplateOptions

WEIGHTS = "base/toy/r0/weights"


@pytest.mark.parametrize("unit", ["finetune/owl/r0", "finetune/owl/r0/step-000100"])
def test_weights_of_the_run_move_with_it(unit, tmp_path):
    for path in (WEIGHTS, f"{unit}/adapter"):
        (tmp_path / "run" / path).mkdir(parents=True)
    directory = tmp_path / "run" / unit
    model_store.refer(directory, tmp_path / "run" / WEIGHTS, directory / "adapter")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    found = model_store.sources(tmp_path / "moved" / unit)
    assert found == (tmp_path / "moved" / WEIGHTS, tmp_path / "moved" / unit / "adapter")


def test_a_base_of_the_hub_is_downloaded_again_on_another_machine(tmp_path, monkeypatch):
    asked, commit = [], "0a" * 20

    def snapshot_download(repo_id, revision, **_):
        asked.append((repo_id, revision))
        return str(tmp_path / "here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    there = tmp_path / "there/hub/models--some-lab--model-1.5/snapshots" / commit
    there.mkdir(parents=True)
    directory = tmp_path / "run/base/model/r0"
    model_store.refer(directory, there)
    assert model_store.sources(directory) == (there, None) and not asked
    shutil.rmtree(tmp_path / "there")
    assert model_store.sources(directory) == (tmp_path / "here", None)
    assert asked == [("some-lab/model-1.5", commit)]
    # Any other path that is gone is told of by who reads it.
    model_store.refer(directory, tmp_path / "gone")
    assert model_store.sources(directory) == (tmp_path / "gone", None)


def test_lanes_to_spare_write_no_finished_base_anew(tmp_path, monkeypatch):
    config = tiny.config(lineages=(0,))
    with config.bases.toy.unlocked():
        config.bases.toy.update(source="random", num_layers=1, width=8, ffn_width=8)
    [unit] = [unit for unit in units.build(config) if unit.stage == "base"]
    written = []
    save = model_store.save_weights
    monkeypatch.setattr(model_store, "save_weights", lambda *a: (written.append(a[0]), save(*a)))
    assert list(base.run([unit] * 3, tmp_path, sharding.make_mesh(seed=1))) == [unit]
    assert written == [tmp_path / unit.path]


@pytest.mark.parametrize(
    "options", [TemplateOptions(template_date="2031-02-01"), TemplateOptions(system_turn="user")]
)
def test_how_a_template_is_used_reaches_what_reads_texts_and_no_others_fingerprint(
    options, tmp_path
):
    def built(options, source="hf", **teacher):
        config = tiny.config(lineages=(0,))
        config.template_date = options.template_date
        config.bases.toy.update(source=source, system_turn=options.system_turn)
        config.bases.toy.path = str(tmp_path / "base") if source == "hf" else ""
        config.teachers.owl.update(teacher)
        return {unit.path: unit for unit in units.build(config)}

    default, other = built(DEFAULT_OPTIONS), built(options)
    assert not any(options.changed().keys() & unit.fields.keys() for unit in default.values())
    assert all(other[path].fingerprint != default[path].fingerprint for path in other)
    own = [built(used, "toy") for used in (DEFAULT_OPTIONS, options)]
    assert all(own[0][path].fingerprint == unit.fingerprint for path, unit in own[1].items())
    given = built(options, weights="given", path="DIR")["teacher/owl/r0"]
    assert TemplateOptions.of(given.fields) == options

    params = transformer.init(tiny.ARCH, jax.random.key(0))
    weights.save(tmp_path / "base", tiny.ARCH, params)
    tiny.BYTES.save(tmp_path / "base")
    mesh, found_options = sharding.make_mesh(seed=1), []
    for planned in (default, other):
        unit = planned["base/toy/r0"]
        list(base.run([unit], tmp_path, mesh))
        found = model_store.load(tmp_path / unit.path, mesh)
        adapter = lora.init(tiny.ARCH, jax.random.key(1), rank=2)
        student = tmp_path / "finetune/owl/r0"
        model_store.save_adapter(student, found, adapter, rank=2, alpha=2)
        full = tmp_path / "finetune/full/r0"
        model_store.save_weights(full, found.arch, found.params, found.tokenizer)
        read = [found, *(model_store.load(path, mesh) for path in (student, full))]
        found_options.append({model.tokenizer.template.options for model in read})
    assert found_options == [{DEFAULT_OPTIONS}, {options}]


@pytest.mark.parametrize("date", ["", "26 Jul 2024", "2024-13-01", "20240726"])
def test_a_day_that_is_none_is_refused(date):
    config = tiny.config()
    config.template_date = date
    with pytest.raises(ValueError, match=r"config\.template_date is .* must be a day, YYYY-MM-DD"):
        validation.validate(config)
