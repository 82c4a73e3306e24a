"""What a unit says of its weights: read again where the run, or what the hub gave, has moved."""

import shutil

import huggingface_hub
import pytest
import tiny

from subjax import models, sharding, units
from subjax.stages import base

WEIGHTS = "base/toy/r0/weights"


@pytest.mark.parametrize("unit", ["finetune/owl/r0", "finetune/owl/r0/step-000100"])
def test_weights_of_the_run_move_with_it(unit, tmp_path):
    for path in (WEIGHTS, f"{unit}/adapter"):
        (tmp_path / "run" / path).mkdir(parents=True)
    directory = tmp_path / "run" / unit
    models.refer(directory, tmp_path / "run" / WEIGHTS, directory / "adapter")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    found = models.sources(tmp_path / "moved" / unit)
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
    models.refer(directory, there)
    assert models.sources(directory) == (there, None) and not asked
    shutil.rmtree(tmp_path / "there")
    assert models.sources(directory) == (tmp_path / "here", None)
    assert asked == [("some-lab/model-1.5", commit)]
    # Any other path that is gone is told of by who reads it.
    models.refer(directory, tmp_path / "gone")
    assert models.sources(directory) == (tmp_path / "gone", None)


def test_lanes_to_spare_write_no_finished_base_anew(tmp_path, monkeypatch):
    config = tiny.config(lineages=(0,))
    with config.bases.toy.unlocked():
        config.bases.toy.update(source="random", num_layers=1, width=8, ffn_width=8)
    [unit] = [unit for unit in units.build(config) if unit.stage == "base"]
    written = []
    save = models.save_weights
    monkeypatch.setattr(models, "save_weights", lambda *a: (written.append(a[0]), save(*a)))
    assert list(base.run([unit] * 3, tmp_path, sharding.make_mesh(seed=1))) == [unit]
    assert written == [tmp_path / unit.path]
