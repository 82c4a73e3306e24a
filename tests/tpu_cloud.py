"""A checkout and the fake gcloud on whose workers tests of launch/tpu.sh start it."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.launch.test_scripts import make_copy, write_script

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
plan = json.loads((home.parent / f"plan-{home.name}").read_text())
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
        self.plan_of_workers(steps, steps)

    def plan_of_workers(self, *plans: Sequence[int | str]) -> None:
        for number, steps in enumerate(plans):
            self.write(f"plan-worker-{number}", json.dumps(steps))

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

    def until_done(
        self, *arguments: str, main: tuple[str, ...] = MAIN
    ) -> subprocess.CompletedProcess[str]:
        return self.run("run", "owl", *TPU, "--until-done", *arguments, *main)

    def watch(self) -> subprocess.Popen[str]:
        """`until_done`, going on, for two minutes at most: nobody reads from it for ever."""
        watcher = subprocess.Popen(
            ["bash", "launch/tpu.sh", "run", "owl", *TPU, "--until-done", *MAIN],
            cwd=self.checkout,
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(120, watcher.kill)
        timer.daemon = True
        timer.start()
        return watcher

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


def make_checkout(root: Path) -> None:
    """A git checkout with the real scripts and an environment that `install` really made."""
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


def end_workers(folder: Path) -> None:
    """Kills the runs that a test left on the workers of the cloud in `folder`."""
    for pid in folder.glob("worker-*/subjax-run/pid"):
        if not (pid.parent / "exit").exists():
            os.kill(int(pid.read_text()), 9)
