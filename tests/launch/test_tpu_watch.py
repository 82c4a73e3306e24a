"""The unattended runs of launch/tpu.sh: what ends them, what does not, and what they may cost."""

import os
import time

import pytest
from tpu_cloud import MAIN, TPU, Cloud


@pytest.mark.parametrize("queued", [(), pytest.param(("--queued",), marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_a_run_that_is_interrupted_again_and_again_is_broken(cloud: Cloud) -> None:
    """As where its processes lose each other at the same place every time."""
    cloud.plan(*[75] * 20)
    failed = cloud.until_done()
    assert failed.returncode == 1
    assert cloud.commands().count("start") == 10
    assert "was interrupted 10 times within minutes: step 75" in failed.stderr


def test_a_users_mistake_is_not_tried_again(cloud: Cloud) -> None:
    cloud.plan_of_workers([1], [75])
    failed = cloud.until_done("--delete-when-done")
    assert failed.returncode == 1
    assert cloud.commands() == ["create", "scp", "install", "start", "stop", "delete"]
    assert "subjax: failed: step 1" in failed.stderr


@pytest.mark.slow
def test_a_crash_just_before_a_preemption_is_started_anew(cloud: Cloud) -> None:
    cloud.plan(70, 0)
    cloud.write("preempt_at", "3")  # state, install, start, state
    done = cloud.until_done("--poll-s=1")
    assert done.returncode == 0, done.stderr
    launched = ["create", "scp", "install", "start"]
    assert cloud.commands() == [*launched, "delete", *launched]


@pytest.mark.parametrize("code", [70, 134])
def test_a_run_that_crashes_is_tried_three_times(cloud: Cloud, code: int) -> None:
    """Where one worker crashes, the others lose it and leave with 75."""
    cloud.plan_of_workers([code], [75])
    failed = cloud.until_done()
    assert failed.returncode == 1
    assert cloud.commands().count("start") == 3
    assert f"crashed 3 times: step {code}" in failed.stderr


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
    watcher = cloud.watch()
    assert "running on owl" in watcher.stderr.readline()
    for home in cloud.folder.glob("worker-*"):
        os.kill(int((home / "subjax-run/pid").read_text()), 15)
    assert watcher.wait(timeout=60) == 0
    watcher.stderr.close()
    assert "scp" not in cloud.commands()[len(before) :]
    assert [len(cloud.lines(f"calls-worker-{i}.jsonl")) for i in (0, 1)] == [2, 2]


def test_a_create_that_fails_after_it_made_the_node_is_gone_on_with(cloud: Cloud) -> None:
    cloud.write("fail_after_create", "INTERNAL: the connection was lost")
    done = cloud.until_done("--delete-when-done")
    assert done.returncode == 0, done.stderr
    assert cloud.commands() == ["create", "scp", "install", "start", "delete"]
    assert "creating owl failed, but it may exist (ready), going on: ERROR" in done.stderr


def test_one_dropped_connection_does_not_end_a_watch(cloud: Cloud) -> None:
    assert cloud.run("create", "owl", *TPU).returncode == 0
    cloud.plan("wait")
    assert cloud.run("run", "owl", *TPU, *MAIN).returncode == 0
    cloud.write("drop_start_at", "1")
    watcher = cloud.watch()
    assert "cannot start on owl, trying again: ERROR" in watcher.stderr.readline()
    assert "running on owl" in watcher.stderr.readline()
    watcher.terminate()
    assert watcher.wait(timeout=60) == 130
    assert "no longer watching owl, which goes on" in watcher.stderr.read()
    watcher.stderr.close()
    assert (cloud.folder / "node").read_text() == "READY"


def test_a_connection_that_hangs_is_given_up(cloud: Cloud) -> None:
    cloud.write("hang_at", "0")
    done = cloud.until_done("--timeout-s=3", "--delete-when-done")
    assert done.returncode == 0, done.stderr
    assert "cannot reach every worker of owl, trying again: gcloud did not answer in 3 s" in (
        done.stderr
    )


def test_a_worker_that_was_not_started_again_is_tried_again(cloud: Cloud) -> None:
    """Else the others would wait for it until they give up."""
    cloud.plan_of_workers([75, "wait"], [75, 0])
    cloud.write("drop_last_start_at", "1")
    watcher = cloud.watch()
    lines = iter(watcher.stderr.readline, "")
    assert any("cannot start on owl, trying again: ERROR" in line for line in lines)
    assert any("running on owl" in line for line in lines)
    assert cloud.commands() == ["create", "scp", "install", "start", "start", "start"]
    assert [len(cloud.lines(f"calls-worker-{i}.jsonl")) for i in (0, 1)] == [2, 2]
    watcher.terminate()
    watcher.wait(timeout=60)
    watcher.stderr.close()


@pytest.mark.parametrize(
    "fault", [("refuse_deletes", "5"), pytest.param(("hang_delete", "yes"), marks=pytest.mark.slow)]
)
def test_the_last_delete_is_tried_for_long(cloud: Cloud, fault: tuple[str, str]) -> None:
    cloud.write(*fault)
    done = cloud.until_done("--timeout-s=2", "--delete-when-done")
    assert done.returncode == 0, done.stderr
    assert "CANNOT DELETE owl, WHICH COSTS UNTIL IT IS DELETED" in done.stderr
    assert not (cloud.folder / "node").exists()


def test_a_delete_that_is_only_shown_keeps_the_ledger(cloud: Cloud) -> None:
    ledger = cloud.checkout / "runs/tpu/owl.spent"
    ledger.parent.mkdir(parents=True)
    ledger.write_text("7200 0\n")
    assert cloud.run("delete", "owl", *TPU, "--dry-run").returncode == 0
    assert ledger.read_text() == "7200 0\n"


def test_a_run_that_goes_on_keeps_its_code(cloud: Cloud) -> None:
    assert cloud.run("create", "owl", *TPU).returncode == 0
    cloud.plan("wait")
    assert cloud.run("run", "owl", *TPU, *MAIN).returncode == 0
    before = cloud.commands()
    assert cloud.run("run", "owl", *TPU, *MAIN).returncode == 0
    other = cloud.run("run", "owl", *TPU, *MAIN, "--config.name=other")
    assert other.returncode == 1 and "another run is going on on" in other.stderr
    assert cloud.commands() == [*before, "start", "start"]


def test_a_watch_that_fails_by_itself_still_deletes(cloud: Cloud) -> None:
    """A file lies where the copy for the workers is to be made."""
    (cloud.checkout / "runs").mkdir()
    (cloud.checkout / "runs/tpu").write_text("")
    failed = cloud.until_done("--delete-when-done")
    assert failed.returncode != 0
    assert cloud.commands() == ["create", "delete"]
    assert not (cloud.folder / "node").exists()


def test_another_run_on_the_node_is_not_deleted(cloud: Cloud) -> None:
    cloud.plan("wait")
    assert cloud.run("create", "owl", *TPU).returncode == 0
    assert cloud.run("run", "owl", *TPU, *MAIN).returncode == 0
    failed = cloud.until_done("--delete-when-done", "--spot", main=(*MAIN, "--config.name=other"))
    assert failed.returncode == 1
    assert "owl still costs: bash launch/tpu.sh delete owl --zone=us-west4-a" in failed.stderr
    assert "delete" not in cloud.commands()


@pytest.mark.parametrize("budget", ["1", "1000000"])
def test_after_a_delete_no_time_is_counted(cloud: Cloud, budget: str) -> None:
    """The ledger of a watch that was killed an hour ago, while the TPU went on."""
    cloud.plan(1)
    assert cloud.run("create", "owl", *TPU).returncode == 0
    ledger = cloud.checkout / "runs/tpu/owl.spent"
    ledger.parent.mkdir(parents=True)
    ledger.write_text(f"100 {int(time.time()) - 3600}\n")
    failed = cloud.until_done("--usd-per-hour=10", f"--max-usd={budget}", "--delete-when-done")
    assert failed.returncode == 1
    assert not (cloud.folder / "node").exists()
    seconds, last = map(int, ledger.read_text().split())
    assert 3700 <= seconds < 3800 and last == 0


def test_a_budget_that_is_spent_before_there_is_a_node_asks_no_worker(cloud: Cloud) -> None:
    ledger = cloud.checkout / "runs/tpu/owl.spent"
    ledger.parent.mkdir(parents=True)
    ledger.write_text("7200 0\n")
    failed = cloud.until_done("--usd-per-hour=10", "--max-usd=5")
    assert failed.returncode == 1
    assert cloud.commands() == []


def test_queued_beside_a_plain_node_says_so(cloud: Cloud) -> None:
    assert cloud.run("create", "owl", *TPU).returncode == 0
    failed = cloud.until_done("--queued", "--delete-when-done")
    assert failed.returncode == 1
    assert "error: owl was made without --queued: leave --queued out, or delete" in failed.stderr
    assert "still costs: bash launch/tpu.sh delete owl --zone=us-west4-a\n" in failed.stderr
    assert cloud.commands() == ["create"]


def test_a_name_that_is_taken_is_not_called_a_lack_of_capacity(cloud: Cloud) -> None:
    cloud.write("refuse", "ALREADY_EXISTS: Resource 'owl' already exists")
    done = cloud.until_done()
    assert done.returncode == 0, done.stderr
    assert "the name owl is still taken, trying again: ERROR" in done.stderr
    assert "capacity" not in done.stderr


def test_setup_runs_on_every_worker_before_every_start(cloud: Cloud) -> None:
    cloud.plan(75, 0)
    done = cloud.until_done('--setup=echo "it\'s " >> ../mounts && pwd >> ../mounts')
    assert done.returncode == 0, done.stderr
    lines = (cloud.folder / "mounts").read_text().splitlines()
    assert lines == [
        line
        for _ in range(2)
        for worker in (0, 1)
        for line in ("it's ", str(cloud.folder / f"worker-{worker}"))
    ]


def test_a_setup_that_fails_ends_it_the_third_time(cloud: Cloud) -> None:
    failed = cloud.until_done("--setup=false", "--delete-when-done")
    assert failed.returncode == 1
    assert cloud.lines("calls-worker-0.jsonl") == []
    assert "cannot start on owl: --setup failed on" in failed.stderr
    assert cloud.commands()[-1] == "delete"
