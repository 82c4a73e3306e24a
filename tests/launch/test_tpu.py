"""launch/tpu.sh and what it runs on the workers, against a gcloud whose workers are folders.

The workers' side is real: the copy of a checkout, its installation, the detached process, its exit
code. subjax.main is one that only notes how it was called and ends as the test wants.
"""

import shutil
from pathlib import Path

import pytest
from tpu_cloud import MAIN, TPU, ZONE, Cloud

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
PLACE = ("--service-account=w@p.iam.gserviceaccount.com", "--network=lab", "--subnetwork=lab-west4")
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
    "create queued in a network": (
        ("create", "owl", ZONE, "--type=v5p-32", "--queued", "--spot", *PLACE),
        (
            "gcloud compute tpus queued-resources create owl --node-id=owl "
            "--accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5 --spot "
            f"{' '.join(PLACE)} --quiet --zone=us-west4-a",
        ),
    ),
    "run": (("run", "owl", ZONE, *MAIN), INSTALL),
    "run with variables": (
        ("run", "owl", ZONE, "--env=TMPDIR=/mnt/disk", "--env=XLA_FLAGS=--a=1 --b=2", *MAIN),
        (
            *INSTALL[:-1],
            "gcloud compute tpus tpu-vm ssh owl --worker=all '--command=env TMPDIR=/mnt/disk "
            "'\\''XLA_FLAGS=--a=1 --b=2'\\'' bash subjax/launch/worker.sh start "
            "--config=configs/x.py --workdir=gs://bucket/x' --quiet --zone=us-west4-a",
        ),
    ),
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


def test_help_is_what_stands_in_its_first_lines(cloud: Cloud) -> None:
    done = cloud.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("Runs subjax on a Cloud TPU")
    assert last.endswith("with folders of one machine as workers.")
    assert "  --until-done  " in done.stdout


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
    "variable": (("run", "owl", ZONE, "--env=TMPDIR", *MAIN), "unknown argument '--env=TMPDIR'"),
    "misplaced": (
        ("run", "owl", ZONE, "--config=x"),
        "--config=x is for subjax.main: put -- befor",
    ),
    "no config": (("run", "owl", ZONE, "--", "--workdir=/m/x"), "no --config"),
    "no workdir": (("run", "owl", ZONE, "--", "--config=x"), "no --workdir: a TPU's disks go with"),
    "URL": (
        ("run", "owl", ZONE, "--", "--config=x", "--workdir=s3://b/x"),
        "--workdir=s3://b/x is a URL of no bucket's folder; give --workdir=gs://BUCKET/x, or a",
    ),
    "relative": (
        ("run", "owl", ZONE, "--", "--config=x", "--workdir=~/x"),
        "--workdir=~/x is no absolute path; give --workdir=gs://BUCKET/x, or a path below",
    ),
    "on the node": (
        ("run", "owl", *TPU, "--until-done", "--setup=mount x", *MAIN, "--workdir=/data/x"),
        "--workdir=/data/x may be on the TPU itself, which --until-done deletes",
    ),
    "not mounted": (
        ("run", "owl", *TPU, "--until-done", *MAIN, "--workdir=/mnt/x"),
        "--workdir=/mnt/x may be on the TPU itself, which --until-done deletes",
    ),
    "timeout": (("run", "owl", ZONE, "--timeout-s=0", *MAIN), "--timeout-s=0 is no number of sec"),
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


@pytest.mark.parametrize("kind", ["tpu-vm", "queued-resources"])
def test_an_account_and_a_network_go_to_either_kind_of_tpu(cloud: Cloud, kind: str) -> None:
    queued = ["--queued"] if kind == "queued-resources" else []
    made = cloud.run("create", "owl", *TPU, *queued, *PLACE)
    assert (made.returncode, made.stderr) == (0, "")
    (command,) = cloud.lines("commands.jsonl")
    assert command[2:4] == [kind, "create"]
    assert [flag for flag in PLACE if flag not in command] == []


def test_arguments_reach_main_on_every_worker_as_they_were(cloud: Cloud) -> None:
    """New files travel too; what git ignores does not."""
    assert cloud.run("create", "owl", *TPU).returncode == 0
    (cloud.checkout / "configs").mkdir(exist_ok=True)
    (cloud.checkout / "configs/new.py").write_text("new\n")
    (cloud.checkout / "mood.py").write_text("a kind of one's own\n")
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
        assert (home / "mood.py").read_text() == "a kind of one's own\n"
        assert not (home / "runs").exists()
    log = cloud.run("logs", "owl", ZONE, "--worker=1")
    assert log.stdout.splitlines()[0] == "step 0"
