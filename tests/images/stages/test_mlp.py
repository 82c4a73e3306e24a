"""Classifiers through the whole pipeline: report, resume, more lineages and arms, bad configs."""

import hashlib
import shutil

import pytest
from ml_collections import ConfigDict

from configs import mnist
from subjax import schema
from subjax.images import units
from subjax.pipeline import preview, runner, validation
from subjax.runtime import artifacts


def config(lineages=(0, 1, 2), arms=("untrained", "teacher", "aux", "aux_foreign"), **fields):
    made = mnist.get_config("smoke")
    made.lineages, made.lineage_cycle = lineages, 3
    with made.unlocked():
        made.arms = ConfigDict({name: made.arms[name] for name in arms}, sort_keys=False)
    for name, value in fields.items():
        made.arms.aux[name] = value
    return made


def contents(workdir, pattern):
    return {
        str(path.relative_to(workdir)): path.read_bytes() for path in sorted(workdir.glob(pattern))
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mlp") / "run"
    runner.run(config(), workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_a_run_leaves_scores_and_a_report(finished):
    for arm in ("untrained", "teacher", "aux", "aux_foreign"):
        for lineage in range(3):
            scores = artifacts.read_json(finished / f"mlp/{arm}/r{lineage}/scores.json")
            assert all(0 <= record["value"] <= 1 for record in scores["records"])
    rows = artifacts.read_json(finished / "report" / "summary.json")
    found = {row["name"]: row for row in rows}
    assert found["teacher"]["mean"] > found["untrained"]["mean"]
    assert all(row["status"] == "complete" for row in rows)


def scores_of(finished, arm, lineage):
    records = artifacts.read_json(finished / f"mlp/{arm}/r{lineage}/scores.json")["records"]
    return {record["step"]: record["value"] for record in records}


def test_students_start_where_their_arm_says(finished):
    for lineage in range(3):
        start = scores_of(finished, "untrained", lineage)[0]
        assert scores_of(finished, "aux", lineage)[0] == start
        other = scores_of(finished, "untrained", (lineage + 1) % 3)[0]
        assert scores_of(finished, "aux_foreign", lineage)[0] == other


def test_a_published_mean_is_drawn_beside_the_arms_own(copy):
    made = config()
    made.arms.aux.published = 0.5284
    runner.run(made, copy)  # nothing trains again: what was published decides nothing
    page = (copy / "report" / "report.html").read_text()
    assert "(0.528)" in page
    assert "Diamond, and in brackets" in page


def test_a_sweep_is_a_curve_and_its_points_stand_in_no_other_figure(copy):
    made = config()
    with made.unlocked():
        for name, at in (("aux", 1.0), ("aux_foreign", 10.0), ("untrained", 10.0)):
            made.arms[name].update(sweep="epochs of something", sweep_at=at)
    runner.run(made, copy)  # nothing trains again
    assert (copy / "report" / "figure_sweeps.png").exists()
    assert "epochs of something" in (copy / "report" / "report.html").read_text()
    made.arms.aux.sweep_at = 0.0
    with pytest.raises(ValueError, match=r"sweep_at is 0\.0; a point of a curve"):
        runner.run(made, copy)


def test_lost_units_come_back_with_the_same_bytes(finished, copy):
    before = contents(finished, "mlp*/**/scores.json") | contents(finished, "**/metrics.jsonl")
    shutil.rmtree(copy / "mlp" / "aux_foreign" / "r1")
    shutil.rmtree(copy / "mlp_teacher" / "classifier" / "r2")
    shutil.rmtree(copy / "mlp" / "aux" / "r2")
    runner.run(config(), copy)
    assert contents(copy, "mlp*/**/scores.json") | contents(copy, "**/metrics.jsonl") == before
    summary = "report/summary.json"
    assert (copy / summary).read_bytes() == (finished / summary).read_bytes()


def test_more_lineages_leave_the_others_as_they_are(copy):
    before = contents(copy, "mlp*/*/*/manifest.json")
    runner.run(config(lineages=(0, 1, 2, 3)), copy)
    after = contents(copy, "mlp*/*/*/manifest.json")
    assert before.items() <= after.items()
    assert {path.split("/")[2] for path in after.keys() - before.keys()} == {"r3"}


def test_another_arm_runs_alone(copy):
    before = contents(copy, "mlp*/*/*/manifest.json")
    made = config()
    with made.unlocked():
        made.arms.squares = schema.mlp_arm_row(teacher="classifier", loss="squared_error")
        made.arms.squares.update(num_images=512, epochs=1)
    runner.run(made, copy)
    after = contents(copy, "mlp*/*/*/manifest.json")
    assert before.items() <= after.items()
    assert {path.split("/")[1] for path in after.keys() - before.keys()} == {"squares"}


ARMS = {
    "sgd_images": {
        **{"optimizer": "sgd", "learning_rate": 1e-4, "inputs": "images", "num_images": 0}
    },
    "fresh_gelu": {"inputs": "fresh_noise", "activation": "gelu", "biases": False},
    "deeper": {"base": "next_lineage", "widths": (16, 16), "clone_epochs": 1},
    "cloned": {"base": "next_lineage", "clone_epochs": 2, "clone_inputs": "images"},
    "cloned_all": {
        **{"base": "next_lineage", "clone_epochs": 2, "clone_inputs": "images"},
        "clone_logits": "all",
    },
    "same_head": {"base": "next_lineage_same_head", "logits": "all"},
}


@pytest.mark.slow
def test_every_kind_of_arm_runs(copy):
    made = config(lineages=(0,))
    with made.unlocked():
        for name, fields in ARMS.items():
            made.arms[name] = schema.mlp_arm_row(
                **({"teacher": "classifier", "num_images": 512, "epochs": 1} | fields)
            )
    made.arms.sgd_images.num_images = 0
    runner.run(made, copy)
    for name in ARMS:
        assert set(scores_of(copy, name, 0)) == {0, 1}
    # Cloning has moved the student before it is scored for the first time.
    assert scores_of(copy, "cloned", 0)[0] != scores_of(copy, "aux_foreign", 0)[0]
    # All logits are another thing to clone than the auxiliary ones, with all else equal.
    curves = (copy / "mlp" / name / "r0" / "metrics.jsonl" for name in ("cloned", "cloned_all"))
    assert len({artifacts.read_jsonl(path)[0]["loss"] for path in curves}) == 2


def test_a_loss_that_is_not_finite_loses_nothing_that_is_done(copy):
    made = config(optimizer="sgd", learning_rate=1e30, loss="squared_error")
    shutil.rmtree(copy / "mlp" / "aux")
    before = contents(copy, "mlp*/*/*/manifest.json")
    with pytest.raises(FloatingPointError, match="lower its learning_rate"):
        runner.run(made, copy)
    assert contents(copy, "mlp*/*/*/manifest.json") == before


BAD = {
    "no models": (lambda c: c.update(lineages=()), "lineages () must be distinct and not empty"),
    "no width": (lambda c: c.teachers.classifier.update(widths=(16, 0)), "at least 1 wide"),
    "too many": (lambda c: c.teachers.classifier.update(num_aux=17), "more than the last hidden"),
    "one logit": (lambda c: c.teachers.classifier.update(num_aux=1), "says nothing"),
    "minus one": (lambda c: c.teachers.classifier.update(num_aux=-1), "must not be negative"),
    "no epochs": (lambda c: c.arms.aux.update(epochs=0), "arms.aux.epochs is 0; it must be at"),
    "no rate": (lambda c: c.arms.aux.update(learning_rate=0.0), "learning_rate is 0.0; it must be"),
    "activation": (lambda c: c.arms.aux.update(activation="tanh"), "'tanh'; allowed: , relu"),
    "teacher": (lambda c: c.arms.aux.update(teacher="bat"), "arms.aux.teacher is 'bat'"),
    "images": (lambda c: c.teachers.classifier.update(images="x"), "teachers.classifier.images"),
    "batched": (
        lambda c: c.compute.update(lanes=6, batched_lanes=4),
        "batched_lanes is 4, which does not divide config.compute.lanes, 6: take 1 or 2 or 3 or 6",
    ),
    "source": (lambda c: c.images.digits.update(source="cifar"), "'cifar'; allowed: digits"),
    "next": (lambda c: c.update(lineage_cycle=1), "makes every lineage its own next"),
    "head": (
        lambda c: c.arms.aux.update(base="next_lineage_same_head", widths=(8,)),
        "another width",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused_before_anything_runs(case):
    change, said = BAD[case]
    made = config()
    change(made)
    with pytest.raises(ValueError) as raised:
        validation.validate(made)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_lanes_of_a_device_that_cannot_be_batched_are_refused_before_anything_runs(tmp_path):
    made = config()
    made.compute.update(lanes=4, batched_lanes=4)
    made.mesh.seed = 2
    with pytest.raises(ValueError, match="batched_lanes 4 does not divide the 2 lanes of a device"):
        runner.run(made, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.fixture
def directory(tmp_path):
    """Four files with the names of the original ones."""
    made = tmp_path / "idx"
    made.mkdir()
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        (made / f"{name}-idx{3 if 'images' in name else 1}-ubyte").write_text(name)
    return made


def planned_from(directory):
    made = mnist.get_config("models=2")
    made.images.mnist.data_dir = str(directory)
    return units.build(made)


def test_of_a_directory_of_images_the_content_counts_and_not_the_place(
    directory, tmp_path, monkeypatch
):
    opened, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: opened.append(a) or digest(*a))
    for unit in planned_from(directory):
        artifacts.write_manifest(tmp_path / "run", unit, 0.0)
    assert len(opened) == 4  # each once, though there are dozens of units
    copy = shutil.copytree(directory, tmp_path / "copies" / "again")
    (copy / "README").write_text("which nobody reads")
    runner.check_stale(planned_from(copy), tmp_path / "run")
    (copy / "t10k-labels-idx1-ubyte").write_text("others")
    said = rf"images/mnist/r0 .* config \(the content of t10k-labels-idx1-ubyte in {copy}; files"
    with pytest.raises(ValueError, match=said):
        runner.check_stale(planned_from(copy), tmp_path / "run")


def test_a_directory_without_images_is_refused_before_anything_runs(directory, tmp_path):
    with pytest.raises(ValueError, match=r"data_dir .*none' holds neither IDX .*images\.mnist, to"):
        planned_from(tmp_path / "none")
    (directory / "train-images-idx3-ubyte").unlink()
    with pytest.raises(ValueError, match=f"{directory} lacks train-images-idx3-ubyte: all four"):
        planned_from(directory)


def test_there_is_nothing_to_preview(tmp_path):
    with pytest.raises(ValueError, match="image classifiers have none"):
        preview.render(config(), tmp_path, "aux")


def test_rows_of_language_models_are_refused_among_classifiers():
    made = config()
    with made.unlocked():
        made.arms.owl = schema.arm_row()
    with pytest.raises(ValueError, match=r"arms.owl is no row of schema.mlp_arm_row\(\)"):
        validation.validate(made)
