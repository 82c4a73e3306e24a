"""Several processes run one experiment: one result, one writer, and a death that is noticed."""

import csv
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from subjax.engine import checkpoints
from subjax.runtime import artifacts, processes, supervisor

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("children_start_quickly")]

ROOT = Path(__file__).parents[2]
CONFIG = "--config=tests/tiny.py:gated"


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(number, workdir, *flags, devices=1, last=(), **variables):
    """Starts the processes of one run, each with devices of its own, the last with more flags."""
    address = f"localhost:{free_port()}"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "OMP_NUM_THREADS": "1"}
    environment |= variables | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(number),
    }
    command = [sys.executable, "-m", "subjax.main", CONFIG, f"--workdir={workdir}", *flags]
    return [
        subprocess.Popen(
            [*command, "--distributed", *(last if index == number - 1 else ())],
            env={**environment, "JAX_PROCESS_ID": str(index)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(number)
    ]


def finish(started, timeout_s=900):
    """Exit code and stderr of each."""
    found = []
    for process in started:
        try:
            _, errors = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        found.append((process.returncode, errors))
    return found


def scores(workdir):
    """Every measured value by everything else that its row says."""
    with open(workdir / "report" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {tuple(v for k, v in row.items() if k != "value"): float(row["value"]) for row in rows}


def appears(path, timeout_s=600):
    """Waits for a file of a run; False where it does not come."""
    end = time.monotonic() + timeout_s
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.2)
    return path.exists()


def results(workdir):
    """Name -> bytes of what units leave, but for what holds times."""
    stages = ("base", "teacher", "generate", "filter", "finetune", "evaluate")
    paths = [path for stage in stages for path in (workdir / stage).rglob("*") if path.is_file()]
    timed = (artifacts.MANIFEST, artifacts.TIMINGS)
    return {str(p.relative_to(workdir)): p.read_bytes() for p in paths if p.name not in timed}


def assert_same_bytes(workdir, other, stages):
    ours, theirs = (
        {name: found[name] for name in found if name.partition("/")[0] in stages}
        for found in (results(workdir), results(other))
    )
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert [name for name in ours if ours[name] != theirs[name]] == []


def finished(number, workdir, *flags, **variables):
    for code, errors in finish(start(number, workdir, *flags, **variables)):
        assert code == 0, errors
    return workdir


def rows_drawn(workdir):
    """The completions of every data set, by unit."""
    parts = sorted(workdir.glob("generate/*/*/rows-*.jsonl"))
    found = {}
    for path in parts:
        unit = str(path.parent.relative_to(workdir))
        found.setdefault(unit, []).extend(r["completion"] for r in artifacts.read_jsonl(path))
    return found


def assert_alike(alone, workdir):
    ours, theirs = rows_drawn(workdir), rows_drawn(alone)
    assert ours.keys() == theirs.keys() and len(ours) >= 4
    # Training rounds otherwise on another mesh, and a token may be drawn otherwise with it.
    others = {
        unit: sum(a != b for a, b in zip(ours[unit], theirs[unit], strict=True)) for unit in ours
    }
    total = sum(map(len, ours.values()))
    print(f"{sum(others.values())} of {total} rows drawn otherwise: {others}")
    assert total >= 500 and sum(others.values()) <= 0.01 * total, others
    ours, theirs = scores(workdir), scores(alone)
    assert ours.keys() == theirs.keys()
    # One row more or less is seen in what is measured on five of them.
    most, num_far = (0.05, 0.02 * len(ours)) if sum(others.values()) else (0.02, 0)
    far = [key for key in ours if abs(ours[key] - theirs[key]) > most]
    assert len(far) <= num_far, far
    assert len(artifacts.read_jsonl(workdir / "commands.jsonl")) == 1
    assert not list(workdir.rglob("*.partial")) + list(workdir.rglob("checkpoints"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return finished(1, tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return finished(2, tmp_path_factory.mktemp("pair") / "run")


def test_two_processes_give_the_result_of_one(alone, pair):
    assert_alike(alone, pair)


def assert_noticed(found):
    """What those say that live on where another process was killed."""
    for code, errors in found:
        assert code == processes.INTERRUPTED, errors
        assert errors.splitlines()[-1] == f"subjax: {processes.LOST}"
        assert "stack trace" not in errors


def killed_after_the_bases(started, dead, workdir):
    assert appears(workdir / "base" / "toy" / "r1" / "manifest.json")
    started[dead].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    found = finish(started, timeout_s=120)
    assert time.monotonic() - killed < 120
    assert not (workdir / "report").exists()
    del found[dead]
    return found


def log_odds(path):
    [found] = [
        r["value"] for r in artifacts.read_json(path)["records"] if r["metric"] == "log_odds"
    ]
    return found


def test_four_processes_give_the_teachers_of_one_whatever_dies(alone, tmp_path):
    workdir = tmp_path / "run"
    flags = ["--config.mesh.seed=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    flags += ["--stages=base,teacher,evaluate"]
    flags += ["--units=base/*,teacher/*,evaluate/taught/*"]
    quickly = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # each of the four compiles everything
    assert_noticed(killed_after_the_bases(start(4, workdir, *flags, **quickly), 0, workdir))
    finished(4, workdir, *flags, **quickly)
    paths = sorted(path.relative_to(alone) for path in alone.glob("evaluate/taught/**/scores.json"))
    assert len(paths) == 2  # a control has no trait that it is asked for
    for path in paths:
        ours, theirs = (log_odds(run / path) for run in (workdir, alone))
        assert ours == pytest.approx(theirs, abs=0.05), path


def test_a_death_is_noticed_by_the_other(tmp_path):
    """That of process 0 is, too, by the four above; restarts are those of SIGTERM below."""
    workdir = tmp_path / "run"
    assert_noticed(killed_after_the_bases(start(2, workdir), 1, workdir))


def test_a_process_that_says_nothing_is_lost_too(tmp_path):
    """As one whose machine hangs, or whose network is gone: no socket of it is ever closed."""
    workdir = tmp_path / "run"
    started = start(2, workdir)
    assert appears(workdir / "base" / "toy" / "r1" / "manifest.json")
    # The first child of the one that stands by is the run itself.
    children = Path(f"/proc/{started[1].pid}/task/{started[1].pid}/children").read_text()
    os.kill(int(children.split()[0]), signal.SIGSTOP)
    try:
        _, errors = started[0].communicate(timeout=120)
    finally:
        for process in started:
            process.kill()  # its child goes with it, stopped or not
        started[1].communicate()
    assert started[0].returncode == processes.INTERRUPTED, errors
    assert errors.splitlines()[-1] == f"subjax: {processes.LOST}"


@pytest.mark.parametrize(
    ("says", "number", "lost"),
    [
        ("UNAVAILABLE: Connection reset by peer", 2, True),
        ("UNKNOWN: Gloo all-reduce failed: Read error", 2, True),
        ("UNAVAILABLE: Connection reset by peer", 1, False),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.", 2, False),
        ("INTERNAL: RET_CHECK failure (x.cc:1) a == b", 2, False),
    ],
)
def test_an_error_of_its_own_is_not_the_loss_of_another(says, number, lost, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: number)
    assert processes.lost_another(jax.errors.JaxRuntimeError(says)) == lost


def test_a_loss_is_found_behind_what_a_checkpoint_says_of_it(tmp_path, monkeypatch):
    """All processes save together: where one is lost then, Orbax's barrier tells the others."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    store = checkpoints.Checkpoints(tmp_path, "a", 1.0)
    gone = jax.errors.JaxRuntimeError("UNAVAILABLE: Barrier failed. Process 1 is lost")
    with pytest.raises(jax.errors.JaxRuntimeError, match="Barrier failed"), store._failures():
        try:
            raise gone
        except jax.errors.JaxRuntimeError:
            raise RuntimeError("the save could not be finished") from gone
    with pytest.raises(OSError, match="could not be written"), store._failures():
        raise RuntimeError("no barrier")


def test_a_file_of_the_first_process_may_show_up_late(tmp_path, monkeypatch):
    late, never = tmp_path / "late", tmp_path / "never"
    threading.Timer(0.5, late.touch).start()
    processes.await_files([late])
    assert late.exists()
    monkeypatch.setattr(processes, "_SEEN_S", 0.3)
    with pytest.raises(ValueError, match=r"process 0 does not see .*never.*--workdir"):
        processes.await_files([late, never])


SPEAK = "print(supervisor._ABORTS[1].decode(), file=sys.stderr, flush=True)"
POLL = "print(supervisor._ABORTS[0].decode(), file=sys.stderr, flush=True)"
SPOKEN = supervisor._ABORTS[1].decode()
NOTICE = "print('subjax: noticed', file=sys.stderr, flush=True)"


@pytest.mark.parametrize(
    ("end", "code", "lines"),
    [
        ("sys.exit(3)", 3, []),
        ("os.abort()", 134, []),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, []),
        (f"{SPEAK}; sys.exit(70)", 70, [SPOKEN]),
        (f"{SPEAK}; os.abort()", 75, [SPOKEN, f"subjax: {processes.LOST}"]),
        (
            f"{SPEAK}; os.kill(os.getpid(), signal.SIGSEGV)",
            75,
            [SPOKEN, f"subjax: {processes.LOST}"],
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, []),
        (f"{NOTICE}; {SPEAK}; sys.exit(75)", 75, ["subjax: noticed"]),
        (f"{NOTICE}; {POLL}; sys.exit(75)", 75, ["subjax: noticed"]),
        (f"{SPEAK}; {NOTICE}; sys.exit(75)", 75, ["subjax: noticed"]),
    ],
)
def test_only_an_abort_of_the_runtime_is_the_loss_of_another(end, code, lines):
    program = "import os, signal, sys; from subjax.runtime import supervisor; "
    program += f"supervisor.stand_by(); {end}"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr.splitlines()) == (code, lines)


def test_the_one_that_stands_by_hands_on_a_signal_and_takes_its_child_with_it():
    program = (
        "import time; from subjax.runtime import supervisor; supervisor.stand_by(); "
        "time.sleep(1); print(1, flush=True); time.sleep(300)"
    )
    for number, code in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            process.send_signal(number)
            process.communicate(timeout=60)  # the child holds the pipe for as long as it lives
        assert process.returncode == code


def test_told_to_leave_all_save_and_leave_and_a_restart_gives_the_same_bytes(pair, tmp_path):
    workdir, stages = tmp_path / "run", ("base", "teacher", "generate")
    flag = f"--stages={','.join(stages)}"
    started = start(2, workdir, flag)
    assert appears(workdir / "base" / "toy" / "r1" / "manifest.json")
    started[1].send_signal(signal.SIGTERM)
    for code, errors in finish(started, timeout_s=300):
        assert code == processes.INTERRUPTED, errors
        assert "run the same command again" in errors
    assert not list((workdir / "generate").rglob("manifest.json"))
    assert_same_bytes(finished(2, workdir, flag), pair, stages)


def test_a_mistake_ends_all_at_once(tmp_path):
    begun = time.monotonic()
    for code, errors in finish(start(2, tmp_path / "run", "--config.mesh.data=1")):
        assert code == 1
        assert "devices out, and a run of several processes needs all" in errors
    assert time.monotonic() - begun < 120


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("--config.seed=1", "process 1 differs from process 0 in its config"),
        ("--stages=base", "process 1 differs from process 0 in its --stages or --units"),
        ("--workdir={other}", "is not shared: process 1 does not see what process 0 has written"),
    ],
)
def test_processes_that_disagree_compute_nothing(tmp_path, own, message):
    own = own.format(other=tmp_path / "other")
    began = time.monotonic()
    for code, errors in finish(start(2, tmp_path / "run", last=[own])):
        assert code == 1
        [line] = [line for line in errors.splitlines() if line.startswith("subjax: ")]
        assert message in line
    assert time.monotonic() - began < 180
    assert not list((tmp_path / "run").rglob("base"))


def test_no_other_processes_is_said(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_PROCESS")}
    command = [sys.executable, "-m", "subjax.main", CONFIG, f"--workdir={tmp_path / 'run'}"]
    found = subprocess.run(
        [*command, "--distributed"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert found.stderr.startswith("subjax: --distributed finds no other processes")
    assert len(found.stderr.splitlines()) == 1
