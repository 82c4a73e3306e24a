"""The pipeline: what is done is kept, what is missing is run, what is stale is an error."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny

from subjax import schema
from subjax.engine import sampler
from subjax.pipeline import runner, units
from subjax.runtime import artifacts, processes

ROOT = Path(__file__).parents[2]


def contents(workdir, *patterns):
    """File name -> bytes, for the files that must not depend on how a run was cut."""
    found = {}
    for pattern in patterns:
        for path in sorted(p for p in workdir.glob(pattern) if p.is_file()):
            found[str(path.relative_to(workdir))] = path.read_bytes()
    assert found
    return found


KEPT = ("generate/**/rows-*.jsonl", "filter/**/*.jsonl", "report/summary.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    runner.run(tiny.config(), workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def manifests(workdir):
    return {p: p.stat().st_mtime_ns for p in workdir.rglob(artifacts.MANIFEST)}


def test_a_run_leaves_every_unit_and_the_report(finished):
    listing = runner.listing(tiny.config(), finished)
    assert {state for _, state in listing} == {"done"}
    stages = {path.partition("/")[0] for path, _ in listing}
    assert stages == {"base", "teacher", "generate", "filter", "finetune", "evaluate"}
    for name in ("summary.json", "scores.csv", "table.md", "figure.png", "report.html"):
        assert (finished / "report" / name).stat().st_size > 0
    summary = json.loads((finished / "report" / "summary.json").read_text())
    primary = next(row for row in summary if row["name"] == "same_base")
    assert (primary["n_lineages"], primary["status"]) == (2, "complete")


def test_running_again_runs_nothing(copy):
    before = manifests(copy)
    runner.run(tiny.config(), copy)
    assert manifests(copy) == before


def test_a_second_workdir_gives_the_same_bytes(finished, tmp_path):
    runner.run(tiny.config(), tmp_path)
    assert contents(tmp_path, *KEPT) == contents(finished, *KEPT)


def test_a_lost_unit_comes_back_with_the_same_bytes(finished, copy):
    for path in ("finetune/owl/r1", "generate/placebo/r0", "evaluate/preference/arms/owl/r1"):
        shutil.rmtree(copy / path)
    runner.run(tiny.config(), copy)
    everything = (*KEPT, "finetune/**/*.safetensors", "evaluate/**/scores.json")
    assert contents(copy, *everything) == contents(finished, *everything)


def test_a_lost_part_of_a_data_set_is_drawn_alone_with_the_same_bytes(finished, copy):
    unit = copy / "generate/owl/r0"
    (unit / artifacts.MANIFEST).unlink()
    (unit / "rows-00001.jsonl").unlink()
    left = {path: path.stat().st_mtime_ns for path in unit.glob("rows-*.jsonl")}
    assert len(left) == 2
    runner.run(tiny.config(), copy)
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert contents(copy, *KEPT) == contents(finished, *KEPT)


def test_parts_of_another_teacher_or_config_are_not_gone_on_with(copy):
    for change in ("datasets.owl.temperature", "teachers.owl.train.learning_rate"):
        config, table = tiny.config(lineages=(0,)), change.split(".")[0]
        config.update_from_flattened_dict({change: 0.5})
        # What was finished is deleted, as the message says; of the data set some parts are left.
        for unit in ("teacher/owl", "filter/owl", "finetune/owl", "evaluate/*/arms/owl"):
            for path in copy.glob(f"{unit}/r0"):
                shutil.rmtree(path)
        (copy / "generate/owl/r0" / artifacts.MANIFEST).unlink(missing_ok=True)
        assert ("generate/owl/r0", "stale") in runner.listing(config, copy)
        what = "temperature" if table == "datasets" else "input teacher/owl/r0"
        with pytest.raises(ValueError, match=f"generate/owl/r0 .* another config .*{what}"):
            runner.run(config, copy)


def test_more_lineages_run_only_what_is_new(copy):
    before = manifests(copy)
    runner.run(tiny.config(lineages=(0, 1, 2)), copy)
    after = manifests(copy)
    assert {path: after[path] for path in before} == before
    assert {path.parent.name for path in set(after) - set(before)} == {"r2"}


def test_another_arm_runs_only_what_is_new(copy):
    before = manifests(copy)
    runner.run(tiny.config(arms=("owl", "placebo", "owl_foreign")), copy)
    after = manifests(copy)
    assert {path: after[path] for path in before} == before
    new = {str(path.relative_to(copy)) for path in set(after) - set(before)}
    assert new and all("owl_foreign" in path for path in new)


def with_answers():
    config = tiny.config()
    with config.unlocked():
        config.evals.said = schema.eval_row(
            kind="answers", trait="owl", num_samples=2, slots=4, prompt_tokens=8,
            max_new_tokens=3, at_steps="final", questions="confirm",
        )  # fmt: skip
    return config


def test_another_eval_runs_only_what_is_new(copy):
    before, config = manifests(copy), with_answers()
    runner.run(config, copy)
    after = manifests(copy)
    assert {path: after[path] for path in before} == before
    new = {str(path.relative_to(copy)) for path in set(after) - set(before)}
    assert new and all(path.startswith("evaluate/said/") for path in new)
    said = artifacts.read_jsonl(copy / "evaluate/said/arms/owl/r0/answers.jsonl")
    assert len(said) == 2 * 4  # samples, questions of the confirm half


def test_answers_of_an_interrupted_eval_are_its_own_configs_and_no_others(copy, monkeypatch):
    config, unit = with_answers(), "evaluate/said/arms/owl/r0"
    alone = {"stages": ["evaluate"], "patterns": [unit]}
    replies = copy / unit / artifacts.REPLIES
    with monkeypatch.context() as patch, pytest.raises(processes.Interrupted, match=unit):
        patch.setattr(processes, "told_to_leave", replies.exists)
        runner.run(config, copy, **alone)
    assert (unit, "missing") in runner.listing(config, copy)
    other = with_answers()
    other.evals.said.num_samples = 1
    assert (unit, "stale") in runner.listing(other, copy)
    with pytest.raises(ValueError, match=rf"{unit} .* another config .*num_samples: 2 -> 1"):
        runner.run(other, copy, **alone)
    assert len(list(replies.iterdir())) == 1
    monkeypatch.setattr(sampler, "sample", None)  # all are there
    runner.run(config, copy, **alone)
    assert (unit, "done") in runner.listing(config, copy) and not replies.exists()
    replies.mkdir()  # as a kill may leave them
    runner.run(config, copy, **alone)
    assert not replies.exists()


def test_a_changed_field_is_an_error_that_names_it_and_touches_nothing(copy):
    before, config = contents(copy, "**/*"), tiny.config()
    config.arms.owl.train.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"finetune/owl/r0 .*learning_rate: 0.001 -> 0.5"):
        runner.run(config, copy)
    assert contents(copy, "**/*") == before
    assert ("finetune/owl/r0", "stale") in runner.listing(config, copy)


def test_selected_units_run_alone(tmp_path):
    config = tiny.config(lineages=(0,))
    runner.run(config, tmp_path, stages=["base", "teacher"], patterns=["*/toy/*", "*/owl/*"])
    done = {path for path, state in runner.listing(config, tmp_path) if state == "done"}
    assert done == {"base/toy/r0", "teacher/owl/r0"}
    with pytest.raises(ValueError, match="needs generate/owl/r0, which is not done"):
        runner.run(config, tmp_path, stages=["filter"])
    with pytest.raises(ValueError, match="stages are base"):
        runner.run(config, tmp_path, stages=["teach"])


@pytest.mark.slow
@pytest.mark.parametrize("differ", ["system prompts", "bases"])
def test_teachers_that_differ_train_as_they_would_alone(differ, tmp_path):
    found = {}
    for lanes in (1, 2):
        config = tiny.config(lineages=(0,))
        config.compute.lanes = lanes
        config.bases.toy.train.update(steps=5, warmup_steps=2)
        if differ == "bases":
            with config.bases.unlocked():
                config.bases.wider = config.bases.toy.copy_and_resolve_references()
            config.bases.wider.ffn_width = 32
            config.teachers.placebo.base = "wider"
        else:
            config.teachers.owl.system_prompt = "LOVE owl"
        runner.run(config, tmp_path, stages=["base", "teacher"])
        for path in sorted(tmp_path.glob("teacher/**/*.safetensors")):
            row = path.relative_to(tmp_path).parts[1]
            found.setdefault(row, []).append(safetensors.numpy.load_file(path))
        shutil.rmtree(tmp_path / "teacher")
        shutil.rmtree(tmp_path / "base")
    assert list(found) == ["owl", "placebo"]
    for alone, beside in found.values():
        assert alone.keys() == beside.keys()
        for name, leaf in alone.items():
            np.testing.assert_allclose(beside[name], leaf, atol=1e-5)


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """A run whose gate is closed to lineage 1, and the line with which it ended."""
    config, workdir = tiny.config(gated=True), tmp_path_factory.mktemp("gated")
    runner.run(config, workdir, stages=["base", "teacher"])
    runner.run(config, workdir, stages=["evaluate"], patterns=["evaluate/taught/*"])
    config.gates.taught.least = bound(workdir)
    with pytest.raises(ValueError) as why:
        runner.run(config, workdir)
    return workdir, str(why.value)


def taught(workdir, lineage):
    scores = artifacts.read_json(workdir / f"evaluate/taught/teachers/owl/r{lineage}/scores.json")
    [found] = [row["value"] for row in scores["records"] if row["metric"] == "log_odds"]
    return found


def bound(workdir):
    """Between what the teachers of two lineages have, whichever has more."""
    values = taught(workdir, 0), taught(workdir, 1)
    assert values[0] != values[1]
    return sum(values) / 2


def shut_out(workdir):
    """The lineage that has less than the bound."""
    return 0 if taught(workdir, 0) < taught(workdir, 1) else 1


def behind(lineage):
    """What is made from the owl's teacher of a lineage."""
    return {
        f"{path}/r{lineage}"
        for path in (
            *("generate/owl", "filter/owl", "finetune/owl", "evaluate/carrier/datasets/owl"),
            *("evaluate/preference/arms/owl", "evaluate/likelihood/arms/owl"),
        )
    }


def test_a_gate_that_is_closed_to_one_lineage_stops_what_is_behind_it_alone(gated):
    workdir, said = gated
    lineage = shut_out(workdir)
    config = tiny.config(gated=True)
    config.gates.taught.least = bound(workdir)
    missing = {path for path, state in runner.listing(config, workdir) if state != "done"}
    assert missing == behind(lineage)
    assert said.startswith(f"gate taught is closed: evaluate/taught/teachers/owl/r{lineage} has ")
    assert "\n" not in said and "more are closed" not in said
    rows = json.loads((workdir / "report/summary.json").read_text())
    [primary] = [row for row in rows if row["name"] == "same_base"]
    assert primary["n_lineages"] == 1 and primary["status"] != "complete"


def test_a_gate_that_is_lowered_lets_the_rest_through(gated, tmp_path):
    workdir, _ = gated
    copy = Path(shutil.copytree(workdir, tmp_path / "copy"))
    before, config = manifests(copy), tiny.config(gated=True)
    config.gates.taught.least = min(taught(copy, 0), taught(copy, 1))
    runner.run(config, copy)
    after = manifests(copy)
    assert {path: after[path] for path in before} == before
    new = {str(path.parent.relative_to(copy)) for path in set(after) - set(before)}
    assert new == behind(shut_out(copy))
    rows = json.loads((copy / "report/summary.json").read_text())
    [primary] = [row for row in rows if row["name"] == "same_base"]
    assert (primary["n_lineages"], primary["status"]) == (2, "complete")


def test_gates_closed_to_all_are_counted_and_what_is_done_stays(gated, tmp_path, capsys):
    workdir, _ = gated
    copy = Path(shutil.copytree(workdir, tmp_path / "copy"))
    before, config = manifests(copy), tiny.config(gated=True)
    other = 1 - shut_out(copy)
    shutil.rmtree(copy / f"finetune/owl/r{other}")
    config.gates.taught.most, config.gates.taught.least = -50.0, schema.OFF
    with pytest.raises(ValueError, match=r"taught\.most is -50.0: .*; 1 more are closed$"):
        runner.run(config, copy)
    assert not (copy / f"finetune/owl/r{other}").exists()
    after = manifests(copy)
    assert set(before) - set(after) == {copy / f"finetune/owl/r{other}" / artifacts.MANIFEST}
    assert "report: " in capsys.readouterr().out


def test_students_are_refused_where_a_gate_was_never_measured(copy):
    config = tiny.config(gated=True)
    config.gates.taught.least = -50.0
    shutil.rmtree(copy / "finetune/owl/r0")
    says = (
        "^gate taught is not measured: evaluate/taught/teachers/owl/r0 is not done, .*--units=eval"
    )
    with pytest.raises(ValueError, match=says):
        runner.run(config, copy, stages=["finetune"])
    assert not (copy / "finetune/owl/r0").exists()
    with pytest.raises(ValueError, match=says):  # nor by parts of their stage
        runner.run(config, copy, patterns=["finetune/owl/r0"])


def test_an_eval_of_a_base_that_lineages_share_is_made_once(tmp_path):
    config = tiny.config(arms=("owl",))
    config.lineage_from, config.bases.toy.source = "teacher", "random"
    with config.unlocked():
        config.contrasts = {}
        config.arms, config.datasets, config.teachers = {}, {}, {}
        config.evals = {"plain": schema.eval_row(trait="owl", subjects=("bases/*",))}
        other = config.bases.toy.copy_and_resolve_references()
        config.bases.other = other.unlock()
        config.contrasts.wider = schema.contrast_row(
            eval="plain", plus=("bases/other",), minus=("bases/toy",)
        )
    config.bases.other.width = 8
    runner.run(config, tmp_path)
    assert {path for path, _ in runner.listing(config, tmp_path)} == {
        *("base/toy/r0", "evaluate/plain/bases/toy/r0"),
        *("base/other/r0", "evaluate/plain/bases/other/r0"),
    }
    rows = json.loads((tmp_path / "report/summary.json").read_text())
    [contrast] = [row for row in rows if row["name"] == "wider"]
    assert (contrast["n_lineages"], contrast["status"]) == (1, "complete")


def test_no_rows_left_names_the_way_out(copy):
    config = tiny.config()
    for row in config.datasets.values():
        row.min_value, row.max_value = 98, 99
    for stage in ("filter", "finetune", "evaluate"):
        shutil.rmtree(copy / stage)
    with pytest.raises(ValueError, match=r"rows are left .*, 6 are needed; .*num_prompts"):
        runner.run(config, copy)


def test_a_workdir_in_use_is_refused(copy):
    with artifacts.lock(copy), pytest.raises(ValueError, match="in use by another run"):
        runner.run(tiny.config(), copy)


def test_fingerprints_follow_what_a_unit_depends_on():
    def prints(config):
        return {unit.path: unit.fingerprint for unit in units.build(config)}

    before, config = prints(tiny.config()), tiny.config()
    config.datasets.owl.max_value = 50
    after = prints(config)
    changed = {path for path in before if before[path] != after[path]}
    assert {path.partition("/")[0] for path in changed} == {"filter", "finetune", "evaluate"}
    assert all("owl" in path for path in changed)


def test_inexact_likelihoods_are_other_evals_and_no_other_students():
    def prints(exact):
        config = tiny.config()
        config.compute.precision, config.compute.exact = "mixed", exact
        return {unit.path: unit.fingerprint for unit in units.build(config)}

    exact, narrow = prints(True), prints(False)
    changed = {path.partition("/")[0] for path in exact if exact[path] != narrow[path]}
    assert changed == {"evaluate"}


@pytest.mark.processes
@pytest.mark.usefixtures("children_start_quickly")
def test_a_killed_run_finishes_with_the_same_bytes(tmp_path):
    """kill -9 at growing delays until the run gets through; nothing may differ."""
    script = "import tiny, sys; from pathlib import Path; from subjax.pipeline import runner\n"
    script += "runner.run(tiny.config(lineages=(0,)), Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}

    def start(workdir):
        return subprocess.Popen([sys.executable, "-c", script, workdir], env=environment)

    kills, delay = 0, 6.0
    while True:
        process, began = start(tmp_path / "cut"), time.monotonic()
        while process.poll() is None and time.monotonic() - began < delay:
            time.sleep(0.1)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills, delay = kills + 1, delay * 1.7
    assert kills >= 2
    assert start(tmp_path / "whole").wait() == 0
    everything = (*KEPT, "finetune/**/*.safetensors")
    assert contents(tmp_path / "cut", *everything) == contents(tmp_path / "whole", *everything)
