"""`plan --measure`: what it refuses, what it times, and what a report makes of it."""

import functools
import re
import time
import types

import jax
import numpy as np
import plan_command
import pytest
from known_results import make_results

from subjax.engine import batching, train
from subjax.nn import sharding
from subjax.pipeline import runner, units
from subjax.planning import measure
from subjax.report import html, summary
from subjax.runtime import artifacts
from tests.tiny import ARCH

CONFIG = """
import tiny

def get_config(arg=""):
    made = tiny.config(lineages=(0,))
    made.bases.toy.train.steps = 30
    for table in ("teachers", "arms"):
        for row in made[table].values():
            row.train.steps = 30
    return made
"""
# ml_collections loads config files that way.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the load_module.. method is deprecated:DeprecationWarning"
)


def config():
    scope = {}
    exec(CONFIG, scope)
    return scope["get_config"]()


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """Runs the command line in this process, on its devices; its output, errors and exit code."""
    path = tmp_path / "config.py"
    path.write_text(CONFIG)

    # Too late in this process, which has computed.
    monkeypatch.setattr(sharding, "use_cpu_devices", lambda num_devices: None)
    with plan_command.runner(capsys, monkeypatch) as run:
        yield functools.partial(run, f"--config={path}", f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--measure", "--topology=v5e:2x2"], "--topology is about chips that are not: leave one"),
        (["--measure", "--table"], "--table is about chips that are not: leave one"),
        ([], "--topology is missing: give such as --topology=v5e:4x4, or --measure"),
        (["--measure", "--stages=finetun"], "--stages names ['finetun']"),
        (["--measure", "--config.mesh.fsdp=64"], "needs 64 devices, found 8"),
        (["--measure", "--config.arms.owl.train.batch_size=0"], "it must be at least 1"),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, flags, message):
    out, err, code = command(*flags)
    lines = err.splitlines()
    assert code == 1 and len(lines) == 1 and message in lines[0], (out, err)
    assert lines[0].startswith("subjax: ") and not (tmp_path / "run").exists()


def test_a_run_that_is_done_leaves_nothing_to_measure(command, tmp_path):
    for unit in units.build(config()):
        artifacts.write_manifest(tmp_path / "run", unit, 1.0)
    out, err, code = command("--measure")
    assert (code, err) == (0, "")
    assert out == f"tiny has nothing left to do in {tmp_path / 'run'}\n"
    assert not (tmp_path / "run" / artifacts.PLAN).exists()


def test_what_does_not_train_is_said_not_to_be_measured(command, tmp_path):
    out, _, code = command("--measure", "--stages=generate,evaluate")
    assert code == 0 and not (tmp_path / "run" / artifacts.PLAN).exists()
    assert "nothing that is left trains\nnot measured: 6 units of generate, evaluate\n" in out


def test_what_does_not_fit_is_one_line(command, monkeypatch):
    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(measure, "time_training", full)
    _, err, code = command("--measure", "--stages=finetune")
    assert (code, err) == (
        1,
        "subjax: training finetune/owl/r0 does not fit the memory of 2 x cpu: lower its sizes, or "
        "take more chips\n",
    )


def test_the_report_has_predicted_beside_measured():
    times = [
        {"row": "base/toy", "units": 2, "predicted_s": 8.0, "measured_s": 10.0, "wall_s": 1234.5},
        {"row": "finetune/owl", "units": 3, "predicted_s": 2.0, "measured_s": 1.0, "wall_s": 6.5},
    ]
    results = make_results(times=[{**row, "devices": "2 x cpu"} for row in times])
    page = html.page(results, summary.summarise(results), {})
    table = re.search(r"<h2>Predicted and measured time</h2>.*?</table>", page, re.DOTALL)[0]
    cells = [
        re.findall(r"<(?:th scope=\"row\"|td[^>]*><span)>([^<]*)<", line)
        for line in re.findall(r"<tr.*?</tr>", table, re.DOTALL)[1:]
    ]
    assert cells == [
        ["base/toy", "2", "8.0", "10.0", "1.25", "1,234.5"],
        ["finetune/owl", "3", "2.0", "1.0", "0.50", "6.5"],
        ["all that trains", "5", "10.0", "11.0", "1.10", "1,241.0"],
    ]
    assert "on 2 x cpu" in table
    without = html.page(make_results(), summary.summarise(results), {})
    assert "Predicted and measured time" not in without


def training(*, rank=0, soft=0, packing=None, **program):
    optimizer = train.Optimizer(1e-3)
    made = train.Program(ARCH, optimizer, 7, lora_scale=1.0 if rank else 0.0, **program)
    return train.Training(made, 2, rank, 5, 24, 9, soft, packing)


VARIANTS = {
    "hard": training(),
    "digits": training(soft=4, support=(1, 2, 3, 4)),
    "top k": training(soft=3, rank=2),
    "distils": training(distils=True),
    "packed": training(packing=batching.Packing(2, 40, 30)),
    "packed by segment": training(packing=batching.Packing(2, 40, 30, 3)),
    "packed top k": training(packing=batching.Packing(3, 64, 12), soft=3),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_made_up_rows_are_of_the_shapes_of_a_plan(name):
    made = VARIANTS[name]
    rows = measure._rows(made)
    batches = batching.Batches([rows], [0], made.batch_size, 3, packing=made.packing)
    batches.check()
    assert set(batches.passes) == {1}
    found = {name: (a.shape[3:], a.dtype) for name, a in batches.of(range(1)).items()}
    sizes = (made.num_tokens, made.num_targets, made.soft)
    expected = train.batch_shapes(made.program, *sizes, made.packing)
    assert found == {name: (shape, np.dtype(kind)) for name, (shape, kind) in expected.items()}
    # Three of five rows share one of 40 tokens, and two of them one of 12 targets.
    lengths = {**dict.fromkeys(("packed", "packed by segment"), (14, 9)), "packed top k": (24, 6)}
    length, targets = lengths.get(name, (24, 9))
    assert set(rows.lengths + 1) == {length} and set(rows.weights.sum(axis=1)) == {targets}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["top k", "distils"])
def test_twenty_updates_after_the_first_call_are_timed(name):
    mesh = sharding.make_mesh(seed=2, fsdp=2, lanes=2)
    line = measure.time_training(VARIANTS[name], 7, mesh)
    assert (line["step"], line["updates"], line["lanes"]) == (28, 21, 2)
    assert not line["first_call"] and line["seconds"] > 0


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_takes_what_was_predicted(command, tmp_path, monkeypatch):
    # CPU time, of which other work on this machine is no part.
    monkeypatch.setattr(train, "time", types.SimpleNamespace(monotonic=time.process_time))
    out, _, code = command("--measure", "--usd_per_chip_hour=36")
    assert code == 0 and "not measured: 8 units of generate, filter, evaluate" in out
    workdir = tmp_path / "run"
    predicted = artifacts.read_json(workdir / artifacts.PLAN)
    assert {path: found["devices"] for path, found in predicted.items()} == dict.fromkeys(
        (
            "base/toy/r0",
            *(f"{s}/{a}/r0" for s in ("teacher", "finetune") for a in ("owl", "placebo")),
        ),
        "2 x cpu",
    )
    lines = [line for line in out.splitlines() if line.partition(" ")[0] in predicted]
    assert len(lines) == len(predicted)
    for line in lines:
        name, *counts, bound, seconds, hours, chip_hours, usd = line.split()
        rows = 64 if name.startswith("base") else 32
        assert counts[:2] == ["30", str(30 * rows)] and bound == "unknown"
        assert float(seconds) == pytest.approx(predicted[name]["seconds"], rel=0.01)
        assert 3600 * float(hours) == pytest.approx(float(seconds), rel=0.02)
        assert float(chip_hours) == pytest.approx(2 * float(hours), rel=0.02)
        assert float(usd) == pytest.approx(36 * float(chip_hours), rel=0.02)

    runner.run(config(), workdir)
    page = (workdir / "report" / "report.html").read_text()
    table = re.search(r"<h2>Predicted and measured time</h2>.*?</table>", page, re.DOTALL)[0]
    names = re.findall(r'<th scope="row">([^<]*)<', table)
    ratios = re.findall(r'<td data-label="measured / predicted"><span>([\d.]+)<', table)
    print(dict(zip(names, ratios, strict=True)))
    assert len(names) == 6 and names[-1] == "all that trains"
    assert all(0.5 < float(ratio) < 2 for ratio in ratios), (names, ratios)
