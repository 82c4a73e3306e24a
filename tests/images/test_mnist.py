"""The paper's result on real MNIST, from its original files; SUBJAX_MNIST says where they are."""

import os

import pytest

from configs import mnist
from subjax.pipeline import runner
from subjax.runtime import artifacts

DATA_DIR = os.environ.get("SUBJAX_MNIST", "")


@pytest.mark.optimized  # it computes for longer than it compiles
@pytest.mark.skipif(not DATA_DIR, reason="SUBJAX_MNIST names no directory of MNIST's IDX files")
def test_few_models_come_near_the_papers_means(tmp_path):
    config = mnist.get_config("models=2")
    config.images.mnist.data_dir = DATA_DIR
    runner.run(config, tmp_path / "run")
    rows = artifacts.read_json(tmp_path / "run" / "report" / "summary.json")
    found = {row["name"]: row["mean"] for row in rows if row["kind"] == "arm"}
    # Two models spread by about .1 / sqrt(2) for students of auxiliary logits, .01 otherwise.
    tolerances = {"teacher": 0.01, "all": 0.03, "untrained": 0.08, "aux_foreign": 0.08}
    tolerances |= {"aux": 0.2, "all_foreign": 0.15}
    for arm, tolerance in tolerances.items():
        assert found[arm] == pytest.approx(mnist.PUBLISHED[arm], abs=tolerance), arm
    assert found["aux"] > found["aux_foreign"] + 0.15
