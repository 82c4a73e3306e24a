"""launch/sweep.py: the commands of a grid, and a grid that is really run, interrupted, resumed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMOKE = "--config=configs/mnist.py:smoke"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "launch/sweep.py", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_dry_run_prints_every_command_of_the_grid(tmp_path: Path) -> None:
    done = run(
        SMOKE,
        f"--workdir={tmp_path}/sweep",
        "--sweep=config.arms.aux*.learning_rate=1e-3,2e-3",
        "--sweep=config.lineages=(0,1),(2,)",
        "--dry-run",
        "--",
        "--stages=base,teacher",
        "--config.title=two words",
    )
    assert done.returncode == 0, done.stderr
    expected = [
        [
            *(sys.executable, "-m", "subjax.main", SMOKE),
            f"--workdir={tmp_path}/sweep/arms.aux_.learning_rate={rate},lineages={name}",
            *("--stages=base,teacher", "--config.title=two words"),
            f"--config.arms.aux.learning_rate={rate}",
            f"--config.arms.aux_foreign.learning_rate={rate}",
            f"--config.lineages={lineages}",
        ]
        for rate in ("1e-3", "2e-3")
        for lineages, name in (("(0,1)", "_0_1_"), ("(2,)", "_2_"))
    ]
    assert [shlex.split(line) for line in done.stdout.splitlines()] == expected
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sweep=config.arms.*.learn=1",), "no field of the config matches config.arms.*.learn"),
        (("--sweep=config.arms.*=1",), "no field of the config matches config.arms.*"),
        (("--sweep=config.lineages",), "give values, such as config.lineages=(0,),(1,)"),
        (("--sweep=config.lineages=(0,),",), "give values"),
        (("--sweep=config.lineages=(0,),(0,)",), "two runs would be lineages=_0_: sweep a field"),
        (("--sweep=config.lineages=(0,)", "--jobs=0"), "--jobs=0: at least one run at a time"),
        (("--sweep=config.x=1", "--config=configs/mnist.py:smok"), "mnist.py:smok: ValueError("),
        (("--sweep=config.x=1", "--config=configs/y.py"), "there is no file configs/y.py"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    failed = run(SMOKE, f"--workdir={tmp_path}/sweep", *arguments)
    assert (failed.returncode, failed.stdout) == (1, "")
    (line,) = failed.stderr.splitlines()
    assert line.startswith("subjax: error: ") and message in line
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_sweep_runs_goes_on_after_a_failure_and_resumes(tmp_path: Path) -> None:
    """Two runs of the real pipeline, one of which asks for what cannot be."""
    workdir = tmp_path / "sweep"
    arguments = [SMOKE, f"--workdir={workdir}", "--sweep=config.arms.*.num_images=256"]
    good, bad = (f"arms.num_images=256,compute.lanes={value}" for value in (2, 0))
    report = workdir / good / "report/report.html"
    failed = run(*arguments, "--sweep=config.compute.lanes=2,0", "--jobs=2")
    assert failed.returncode == 1, failed.stderr
    assert failed.stdout.splitlines()[-3:] == [
        "exit code  run",
        f"        0  {good}  {report}",
        f"        1  {bad}  {workdir / bad}.log",
    ]
    used = json.loads((workdir / good / "config.json").read_text())
    assert {row["num_images"] for row in used["arms"].values()} == {256}
    assert (workdir / f"{bad}.log").read_text().startswith("subjax: config.compute.lanes is 0")
    manifests = {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/*/r0/manifest.json")}
    assert manifests
    again = run(*arguments, "--sweep=config.compute.lanes=2")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in manifests} == manifests


def test_sigterm_ends_the_runs_and_starts_no_more(tmp_path: Path) -> None:
    workdir = tmp_path / "sweep"
    arguments = [SMOKE, f"--workdir={workdir}", "--sweep=config.lineages=(0,),(1,),(2,)"]
    sweep = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert sweep.stdout
    assert sweep.stdout.readline().startswith("lineages=_0_: started; ")
    time.sleep(0.5)  # the run is importing
    os.kill(sweep.pid, signal.SIGTERM)
    said, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 75, said
    assert "lineages=_1_: started" not in said
    codes = [line.split()[0] for line in said.splitlines()[-3:]]
    assert codes == ["75", "75", "75"]
