"""launch/slurm.sh under a real SLURM, one node, two tasks: arguments, signals, requeueing."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.processes,
    pytest.mark.usefixtures("children_start_quickly"),
    pytest.mark.skipif(
        bool(slurm_cluster.missing()),
        reason=f"SLURM is not installed here: no {', '.join(slurm_cluster.missing())} "
        "(Debian: apt install slurmctld slurmd slurm-client munge)",
    ),
]

# Notes how it was called, then does what the plan says for this start of the job.
FAKE_MAIN = """
import json, os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[-1].partition("=")[2])
def save(*_):
    time.sleep(2)
    (workdir / f"saved-{start}-{task}").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
start, task = int(os.environ.get("SLURM_RESTART_COUNT", "0")), os.environ["SLURM_PROCID"]
call = [sys.argv[1:], os.environ["SLURM_NTASKS"], os.environ.get("JAX_LOCAL_DEVICE_IDS")]
(workdir / f"call-{start}-{task}.json").write_text(json.dumps(call))
step = json.loads((workdir / "plan.json").read_text())[start]
step = step[int(task)] if isinstance(step, list) else step
while step == "wait":
    signal.pause()
sys.exit(step)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm_cluster.Cluster]:
    # Not pytest's folder: its path can be longer than a socket's may be.
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        made = slurm_cluster.Cluster(Path(folder))
        yield made
        made.close()


def submit(cluster: slurm_cluster.Cluster, root: Path, log: Path, *arguments: str) -> str:
    """Submits launch/slurm.sh with two tasks on the node; the job's number."""
    options = ["--ntasks-per-node=2", f"--output={log}"]
    said = cluster("sbatch", *options, "launch/slurm.sh", *arguments, cwd=root)
    number = re.fullmatch(r"Submitted batch job (\d+)\n", said)
    assert number, said
    return number[1]


def wait_until(ready, what, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


class Job:
    """A job whose main only notes its calls, in a checkout of its own."""

    def __init__(self, cluster: slurm_cluster.Cluster, root: Path, plan: list[object]):
        self.cluster, self.workdir, self.log = cluster, root / "run", root / "log"
        for name in ("slurm.sh", "environment.sh"):
            (root / "launch").mkdir(exist_ok=True)
            shutil.copy(ROOT / "launch" / name, root / "launch")
        for name, text in {"__init__": "", "main": FAKE_MAIN}.items():
            (root / "subjax").mkdir(exist_ok=True)
            (root / f"subjax/{name}.py").write_text(text)
        (root / ".venv").symlink_to(sys.prefix)
        self.workdir.mkdir()
        (self.workdir / "plan.json").write_text(json.dumps(plan))
        self.arguments = [
            '--config.title=it\'s "two" words; $HOME \\ *',
            f"--workdir={self.workdir}",
        ]
        self.number = submit(cluster, root, self.log, *self.arguments)

    def calls(self, start: int) -> list[list[object]]:
        paths = sorted(self.workdir.glob(f"call-{start}-*.json"))
        return [json.loads(path.read_text() or "null") for path in paths]

    def await_calls(self, start: int) -> None:
        expected = [[["--distributed", *self.arguments], "2", None]] * 2
        wait_until(
            lambda: self.calls(start) == expected,
            lambda: f"{self.calls(start)} {self.logs()} {self.cluster.job(self.number)}",
        )

    def logs(self) -> str:
        return (self.log.read_text() if self.log.exists() else "") + self.cluster.logs()


def tasks(workdir: Path) -> list[int]:
    """Processes that compute for a run here: each is the child of one that watches over it."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            if f"--workdir={workdir}" in words and "python" in words[0]:
                parent = (process / "stat").read_text().rpartition(") ")[2].split()[1]
                found[int(process.name)] = int(parent)
    return [child for child, parent in found.items() if parent in found]


def test_a_signal_is_passed_on_and_the_job_requeues_itself(
    cluster: slurm_cluster.Cluster, tmp_path: Path
) -> None:
    """As before a time limit: SLURM signals the batch shell alone."""
    job = Job(cluster, tmp_path, ["wait", 0])
    job.await_calls(0)
    cluster("scancel", "--batch", "--signal=TERM", job.number)
    job.await_calls(1)
    ended = cluster.wait_for(job.number, "COMPLETED")
    assert ended["Restarts"] == "1"
    assert sorted(path.name for path in job.workdir.glob("saved-*")) == ["saved-0-0", "saved-0-1"]
    assert f"subjax: interrupted: requeueing job {job.number}" in job.logs()


def test_a_requeued_job_starts_again(cluster: slurm_cluster.Cluster, tmp_path: Path) -> None:
    """As for a job of higher priority: SLURM signals everything and requeues by itself."""
    job = Job(cluster, tmp_path, ["wait", 0])
    job.await_calls(0)
    cluster("scontrol", "requeue", job.number)
    job.await_calls(1)
    assert cluster.wait_for(job.number, "COMPLETED")["Restarts"] == "1"


def test_a_cancelled_job_stays_cancelled(cluster: slurm_cluster.Cluster, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path, ["wait", 0])
    job.await_calls(0)
    cluster("scancel", job.number)
    cluster.wait_for(job.number, "CANCELLED")
    time.sleep(8)  # longer than a requeued job waits
    assert cluster.job(job.number)["JobState"] == "CANCELLED"
    assert job.calls(1) == []


@pytest.mark.parametrize("codes", [(1, 1), (75, 1), (70, 75), (70, 1)])
def test_a_mistake_or_a_defect_of_one_task_is_not_tried_again(
    cluster: slurm_cluster.Cluster, tmp_path: Path, codes: tuple[int, int]
) -> None:
    """The task that lost the other one leaves with 75."""
    job = Job(cluster, tmp_path, [list(codes), 0])
    ended = cluster.wait_for(job.number, "FAILED")
    expected = 1 if 1 in codes else 70
    assert (ended["ExitCode"], ended["Restarts"]) == (f"{expected}:0", "0")
    assert len(job.calls(0)) == 2


def test_a_task_that_was_killed_is_tried_again_a_few_times(
    cluster: slurm_cluster.Cluster, tmp_path: Path
) -> None:
    """As by the memory limit; the other task leaves with 75, and the higher code is the job's."""
    job = Job(cluster, tmp_path, [[137, 75], 0])
    assert cluster.wait_for(job.number, "COMPLETED")["Restarts"] == "1"
    (tmp_path / "again").mkdir()
    again = Job(cluster, tmp_path / "again", [[137, 75]] * 4)
    ended = cluster.wait_for(again.number, "FAILED", seconds=240)
    assert (ended["ExitCode"], ended["Restarts"]) == ("137:0", "3")


def test_a_real_run_of_two_tasks_goes_on_after_its_requeueing(
    cluster: slurm_cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One device a task, interrupted once the bases are there."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    one_device = {"PYTHON": sys.executable, "JAX_NUM_CPU_DEVICES": "1", "OMP_NUM_THREADS": "1"}
    monkeypatch.setattr(cluster, "environment", cluster.environment | one_device)
    monkeypatch.setitem(cluster.environment, "PYTHONFAULTHANDLER", "1")
    config, stages = "--config=tests/tiny.py", "base,teacher,generate"
    number = submit(cluster, ROOT, log, config, f"--workdir={workdir}", f"--stages={stages}")

    def logged() -> str:
        # Tasks write into each other's lines, and so into each other's letters.
        return log.read_text(errors="replace") if log.exists() else ""

    def said() -> str:
        return f"{cluster.job(number)} {logged() or cluster.logs()}"

    wait_until(lambda: any(workdir.glob("base/*/*/manifest.json")), said, seconds=900)
    assert not (workdir / "generate").exists()
    cluster("scancel", "--batch", "--signal=TERM", number)
    # Whatever is being compiled when the signal comes is compiled first.
    wait_until(lambda: cluster.job(number)["Restarts"] == "1", said, seconds=300)
    assert "run the same command again" in logged()  # saved, not killed
    assert f"subjax: interrupted: requeueing job {number}" in logged()
    try:
        ended = cluster.wait_for(number, "COMPLETED", "FAILED", seconds=900)
    except RuntimeError:  # where every task stands goes into the log, with PYTHONFAULTHANDLER
        for process in tasks(workdir):
            os.kill(process, signal.SIGABRT)
        time.sleep(5)
        raise AssertionError(said()) from None
    assert ended["JobState"] == "COMPLETED", said()
    states = subprocess.run(
        [sys.executable, "-m", "subjax.main", config, f"--workdir={workdir}", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    done = {line.split()[1] for line in states if line.startswith("done")}
    assert done == {
        *(f"base/toy/r{lineage}" for lineage in (0, 1)),
        *(
            f"{stage}/{name}/r{lineage}"
            for stage in ("teacher", "generate")
            for name in ("owl", "placebo")
            for lineage in (0, 1)
        ),
    }
    assert len((workdir / "commands.jsonl").read_text().splitlines()) == 2


def test_outside_the_repository_the_job_says_so(
    cluster: slurm_cluster.Cluster, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    said = cluster("sbatch", f"--output={log}", str(ROOT / "launch/slurm.sh"), cwd=tmp_path)
    number = said.split()[-1]
    assert cluster.wait_for(number, "FAILED")["ExitCode"] == "1:0"
    assert log.read_text() == (
        f"subjax: error: {tmp_path} is not the repository root: submit the job there\n"
    )


def test_a_job_with_gpus_wants_a_jax_for_them() -> None:
    """Where nothing but the check at its beginning runs, the script needs no SLURM."""
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_GPUS_ON_NODE": "8", "PYTHON": sys.executable}
    kept = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    failed = subprocess.run(
        ["bash", "launch/slurm.sh", "--config=configs/x.py"],
        cwd=ROOT,
        env={**kept, **job},
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith("subjax: error: the job has GPUs, and the jax of")
    assert "SUBJAX_DEVICE=gpu bash launch/local.sh --install" in line
