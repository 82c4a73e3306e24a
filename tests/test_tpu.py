"""launch/tpu.sh and what it runs on the workers, against a gcloud whose workers are folders.

The workers' side is real: the copy of a checkout, its installation, the detached process, its exit
code. subjax.main is one that only notes how it was called and ends as the test wants.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_scripts import make_copy, write_script

ROOT = Path(__file__).parents[1]
SCRIPTS = ("tpu.sh", "tpu_node.sh", "worker.sh")
ZONE = "--zone=us-west4-a"
TPU = (ZONE, "--type=v5litepod-8", "--poll-s=0.05")
MAIN = ("--", "--config=configs/x.py", "--workdir=gs://bucket/x")

# Notes its arguments, then follows the plan of its worker: an exit code, or "wait" for SIGTERM,
# after which it "saves".
FAKE_MAIN = """
import json, os, pathlib, signal, sys
home = pathlib.Path(os.environ["HOME"])
def save(*_):
    (home.parent / f"saved-{home.name}").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
calls = home.parent / f"calls-{home.name}.jsonl"
with calls.open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
plan = json.loads((home.parent / "plan").read_text())
step = plan[min(len(calls.read_text().splitlines()), len(plan)) - 1]
print("step", step, flush=True)
while step == "wait":
    signal.pause()
sys.exit(step)
"""


class Cloud:
    """A checkout, and the fake gcloud on whose workers it is launched."""

    def __init__(self, folder: Path, checkout: Path):
        self.checkout, self.folder = checkout, folder / "cloud"
        self.folder.mkdir()
        self.write("num_workers", "2")
        self.plan(0)
        (folder / "venv").symlink_to(checkout.parent / "venv")
        write_script(
            folder / "bin/gcloud", f'exec "{sys.executable}" "{ROOT}/tests/fake_gcloud.py" "$@"'
        )
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_GCLOUD": str(self.folder),
            "PYTHON": sys._base_executable,
        }

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def plan(self, *steps: int | str) -> None:
        """What subjax.main does on every worker, start by start; the last step is repeated."""
        self.write("plan", json.dumps(steps))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "launch/tpu.sh", *arguments],
            cwd=self.checkout,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def until_done(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("run", "owl", *TPU, "--until-done", *arguments, *MAIN)

    def commands(self) -> list[str]:
        """Every call that changed something: "create", "scp", "install", "start", "delete"..."""
        verbs = []
        for line in self.lines("commands.jsonl"):
            verb = line[3]
            if verb == "ssh":
                verb = next(
                    w for w in ("install", "start", "state", "stop", "tail") if w in line[6]
                )
            if verb not in ("describe", "state", "tail"):
                verbs.append(verb)
        return verbs

    def lines(self, name: str) -> list[list[str]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout with the real scripts and an environment that `install` really made."""
    # A space in the path, which unquoted shell would trip over.
    root = tmp_path_factory.mktemp("check out") / "repository"
    root.mkdir()
    make_copy(root)
    for name in SCRIPTS:
        shutil.copy(ROOT / "launch" / name, root / "launch")
    (root / "subjax/main.py").write_text(FAKE_MAIN)
    (root / "launch/requirements-tpu.txt").write_text("-r ../requirements.txt\n")
    (root / ".gitignore").write_text("/runs/\n/.venv/\n")
    subprocess.run(["git", "init", "--quiet", root], check=True)
    worker = root / "launch/worker.sh"
    environment = os.environ | {"PYTHON": sys._base_executable, "PIP_NO_INDEX": "1"}
    installed = subprocess.run(
        ["bash", worker, "install", "launch/requirements-tpu.txt"],
        cwd=root,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    (root / ".venv").rename(root.parent / "venv")
    return root


@pytest.fixture
def cloud(tmp_path: Path, checkout: Path):
    made = Cloud(tmp_path, checkout)
    yield made
    shutil.rmtree(checkout / "runs", ignore_errors=True)
    for pid in made.folder.glob("worker-*/subjax-run/pid"):
        if not (pid.parent / "exit").exists():
            os.kill(int(pid.read_text()), 9)


START = (
    "gcloud compute tpus tpu-vm ssh owl --worker=all '--command=bash subjax/launch/worker.sh "
    "start --config=configs/x.py --workdir=gs://bucket/x' --quiet --zone=us-west4-a"
)
UNPACK = (
    "mkdir -p subjax && find subjax -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + "
    "&& tar -xzf subjax.tar.gz -C subjax && bash subjax/launch/worker.sh install "
    "launch/requirements-tpu.txt"
)
INSTALL = (
    "gcloud compute tpus tpu-vm scp runs/tpu/owl.tar.gz owl:subjax.tar.gz --worker=all --quiet "
    "--zone=us-west4-a",
    f"gcloud compute tpus tpu-vm ssh owl --worker=all '--command={UNPACK}' --quiet "
    "--zone=us-west4-a",
    START,
)
STATE = (
    "gcloud compute tpus tpu-vm ssh owl --worker=all '--command=bash subjax/launch/worker.sh "
    "state || echo subjax-worker: new' --quiet --zone=us-west4-a"
)
DRY = {
    "create": (
        ("create", "owl", ZONE, "--type=v5litepod-16", "--spot", "--project=p"),
        (
            "gcloud compute tpus tpu-vm create owl --accelerator-type=v5litepod-16 "
            "--version=v2-alpha-tpuv5-lite --spot --quiet --zone=us-west4-a --project=p",
        ),
    ),
    "create queued": (
        ("create", "owl", ZONE, "--type=v6e-8", "--queued"),
        (
            "gcloud compute tpus queued-resources create owl --node-id=owl --accelerator-type=v6e-8"
            " --runtime-version=v2-alpha-tpuv6e --quiet --zone=us-west4-a",
        ),
    ),
    "run": (("run", "owl", ZONE, *MAIN), INSTALL),
    "run until done": (
        ("run", "owl", ZONE, "--type=v4-8", "--until-done", "--delete-when-done", *MAIN),
        (
            "gcloud compute tpus tpu-vm create owl --accelerator-type=v4-8 "
            "--version=tpu-ubuntu2204-base --quiet --zone=us-west4-a",
            *INSTALL,
            STATE,
            "gcloud compute tpus tpu-vm delete owl --quiet --zone=us-west4-a",
        ),
    ),
    "logs": (
        ("logs", "owl", ZONE, "--worker=1", "--follow"),
        (
            "gcloud compute tpus tpu-vm ssh owl --worker=1 --quiet '--command=tail -n 100 -f "
            "subjax-run/log' --zone=us-west4-a",
        ),
    ),
    "delete queued": (
        ("delete", "owl", ZONE, "--queued"),
        ("gcloud compute tpus queued-resources delete owl --force --quiet --zone=us-west4-a",),
    ),
}


@pytest.mark.parametrize("case", DRY)
def test_a_dry_run_prints_the_commands_and_runs_none(cloud: Cloud, case: str) -> None:
    arguments, expected = DRY[case]
    done = cloud.run(arguments[0], arguments[1], "--dry-run", *arguments[2:])
    assert (done.returncode, done.stderr) == (0, "")
    assert tuple(done.stdout.splitlines()) == expected
    assert cloud.commands() == []


ERRORS = {
    "nothing": ((), "no command"),
    "command": (("start", "owl"), "unknown command 'start'; commands: create, run, logs, delete"),
    "no name": (("create", ZONE), "'--zone=us-west4-a' is no name of a TPU"),
    "name": (("create", "Owl 1", ZONE), "'Owl 1' is no name of a TPU"),
    "no zone": (("logs", "owl"), "--zone is missing"),
    "no type": (("create", "owl", ZONE), "--type is missing"),
    "type": (("create", "owl", ZONE, "--type=v9-8"), "no runtime is known for --type=v9-8"),
    "argument": (("delete", "owl", ZONE, "--force"), "unknown argument '--force'"),
    "empty": (("delete", "owl", "--zone="), "unknown argument '--zone='"),
    "misplaced": (
        ("run", "owl", ZONE, "--config=x"),
        "--config=x is for subjax.main: put -- befor",
    ),
    "no config": (("run", "owl", ZONE, "--", "--workdir=gs://b/x"), "no --config"),
    "no bucket": (("run", "owl", ZONE, "--", "--config=x", "--workdir=runs"), "no --workdir=gs://"),
    "flag": (("run", "owl", ZONE, *MAIN, "--distributed"), "--distributed is added by"),
    "number": (("run", "owl", ZONE, "--poll-s=soon", *MAIN), "--poll-s=soon is no number"),
    "rate": (("run", "owl", *TPU, "--until-done", "--max-usd=5", *MAIN), "needs --usd-per-hour"),
    "watch": (
        ("run", "owl", *TPU, "--usd-per-hour=1", "--max-usd=5", *MAIN),
        "--max-usd=5 needs --until-done",
    ),
    "delete": (("run", "owl", *TPU, "--delete-when-done", *MAIN), "needs --until-done"),
    "no type to make": (("run", "owl", ZONE, "--until-done", *MAIN), "--type is missing"),
    "no node": (("run", "owl", ZONE, *MAIN), "TPU owl in us-west4-a is not ready (none)"),
    "nothing to delete": (("delete", "owl", ZONE), "cannot delete owl: ERROR: (gcloud.compute.t"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_mistake_is_one_line_and_changes_nothing(cloud: Cloud, case: str) -> None:
    arguments, message = ERRORS[case]
    failed = cloud.run(*arguments)
    assert (failed.returncode, failed.stdout) == (1, "")
    (line,) = failed.stderr.splitlines()
    assert line.startswith("subjax: error: ") and message in line
    assert set(cloud.commands()) <= {"delete"}


def test_without_gcloud_the_error_says_where_it_is(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "bin/gcloud").unlink()
    for tool in ("bash", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    cloud.environment["PATH"] = str(tmp_path / "bin")
    failed = cloud.run("delete", "owl", ZONE)
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith("subjax: error: gcloud is missing: install it from https://cloud.google")


def test_arguments_reach_main_on_every_worker_as_they_were(cloud: Cloud) -> None:
    """New files travel too; what git ignores does not."""
    assert cloud.run("create", "owl", *TPU).returncode == 0
    (cloud.checkout / "configs").mkdir(exist_ok=True)
    (cloud.checkout / "configs/new.py").write_text("new\n")
    arguments = [
        "--config=configs/new.py:a=1,b=2",
        "--workdir=gs://bucket/x",
        '--config.title=it\'s "two" words; $HOME `id` \\ *',
        "--config.arms.owl.train.steps=7",
        "--units=finetune/*/r0",
        "--config.note=first line\nsecond",
        "",
    ]
    started = cloud.run("run", "owl", *TPU, "--", *arguments)
    assert started.returncode == 0, started.stderr
    watched = cloud.run("run", "owl", *TPU, "--until-done", "--", *arguments)
    assert watched.returncode == 0, watched.stderr
    for worker in (0, 1):
        calls = cloud.lines(f"calls-worker-{worker}.jsonl")
        assert calls and all(call == ["--distributed", *arguments] for call in calls)
        home = cloud.folder / f"worker-{worker}/subjax"
        assert (home / "configs/new.py").read_text() == "new\n"
        assert not (home / "runs").exists()
    log = cloud.run("logs", "owl", ZONE, "--worker=1")
    assert log.stdout.splitlines()[0] == "step 0"


@pytest.mark.parametrize("queued", [(), ("--queued",)])
def test_a_preempted_node_is_deleted_made_anew_and_started(
    cloud: Cloud, queued: tuple[str, ...]
) -> None:
    cloud.plan("wait", 0)
    cloud.write("preempt_at", "5")
    done = cloud.until_done("--spot", "--delete-when-done", *queued)
    assert done.returncode == 0, done.stderr
    launched = ["create", "scp", "install", "start"]
    assert cloud.commands() == [*launched, "delete", *launched, "delete"]
    assert [len(cloud.lines(f"calls-worker-{i}.jsonl")) for i in (0, 1)] == [2, 2]
    assert "owl was preempted or failed: deleting it" in done.stderr
    assert not (cloud.folder / "node").exists()
    created = next(line for line in cloud.lines("commands.jsonl") if line[3] == "create")
    assert created[2] == ("queued-resources" if queued else "tpu-vm") and "--spot" in created


def test_an_interrupted_run_is_started_again_without_another_copy(cloud: Cloud) -> None:
    cloud.plan(75, 75, 0)
    done = cloud.until_done()
    assert done.returncode == 0, done.stderr
    assert cloud.commands() == ["create", "scp", "install", "start", "start", "start"]
    assert "owl still costs: bash launch/tpu.sh delete owl --zone=us-west4-a" in done.stderr


def test_a_users_mistake_is_not_tried_again(cloud: Cloud) -> None:
    cloud.plan(1)
    failed = cloud.until_done("--delete-when-done")
    assert failed.returncode == 1
    assert cloud.commands() == ["create", "scp", "install", "start", "stop", "delete"]
    assert "subjax: failed: step 1" in failed.stderr


def test_a_failure_just_before_a_preemption_is_no_users_mistake(cloud: Cloud) -> None:
    """A worker that loses another one can leave with a traceback, which is exit code 1 as well."""
    cloud.plan(1, 0)
    cloud.write("preempt_at", "4")  # state, install, start, state (exit 1), state
    done = cloud.until_done("--poll-s=1")
    assert done.returncode == 0, done.stderr
    launched = ["create", "scp", "install", "start"]
    assert cloud.commands() == [*launched, "delete", *launched]


def test_a_run_that_crashes_is_tried_three_times(cloud: Cloud) -> None:
    cloud.plan(134)
    failed = cloud.until_done()
    assert failed.returncode == 1
    assert cloud.commands().count("start") == 3
    assert "crashed 3 times: step 134" in failed.stderr


def test_the_budget_saves_stops_and_deletes(cloud: Cloud) -> None:
    """1,000 USD a second; the ledger outlives the watcher, so a second one does not start anew."""
    cloud.plan("wait")
    paid = ("--usd-per-hour=3600000", "--max-usd=2500")
    failed = cloud.until_done(*paid)
    assert failed.returncode == 1
    assert cloud.commands() == ["create", "scp", "install", "start", "stop", "delete"]
    assert "the next look could exceed --max-usd=2500" in failed.stderr
    assert not (cloud.folder / "node").exists()
    assert len(list(cloud.folder.glob("saved-worker-*"))) == 2
    spent = float(failed.stderr.partition(" USD so far")[0].rpartition("(")[2])
    assert 2000 <= spent <= 5000
    again = cloud.until_done("--usd-per-hour=3600000", "--max-usd=2000")
    assert again.returncode == 1
    assert "create" not in cloud.commands()[6:]


def test_no_capacity_is_waited_for_and_other_refusals_are_not(cloud: Cloud) -> None:
    cloud.write("refuse", "RESOURCE_EXHAUSTED: There is no more capacity in the zone")
    done = cloud.until_done("--delete-when-done")
    assert done.returncode == 0, done.stderr
    assert cloud.commands()[:3] == ["create", "create", "scp"]
    assert "no capacity for owl, trying again: ERROR" in done.stderr
    cloud.write("refuse", "PERMISSION_DENIED: Cloud TPU API has not been used")
    failed = cloud.until_done()
    assert failed.returncode == 1
    assert failed.stderr.endswith(
        "cannot create owl: ERROR: (gcloud.compute.tpus) PERMISSION_DENIED: Cloud TPU API has not "
        "been used\n"
    )


def test_a_watcher_that_was_stopped_goes_on_and_another_run_is_refused(cloud: Cloud) -> None:
    assert cloud.run("create", "owl", *TPU).returncode == 0
    cloud.plan("wait", 0)
    assert cloud.run("run", "owl", *TPU, *MAIN).returncode == 0
    other = cloud.run("run", "owl", *TPU, "--until-done", *MAIN, "--config.name=other")
    assert other.returncode == 1
    assert "cannot go on on owl: another run is going on on" in other.stderr
    before = cloud.commands()
    watcher = subprocess.Popen(
        ["bash", "launch/tpu.sh", "run", "owl", *TPU, "--until-done", *MAIN],
        cwd=cloud.checkout,
        env=cloud.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "running on owl" in watcher.stderr.readline()
    for home in cloud.folder.glob("worker-*"):
        os.kill(int((home / "subjax-run/pid").read_text()), 15)
    assert watcher.wait(timeout=60) == 0
    watcher.stderr.close()
    assert "scp" not in cloud.commands()[len(before) :]
    assert [len(cloud.lines(f"calls-worker-{i}.jsonl")) for i in (0, 1)] == [2, 2]
