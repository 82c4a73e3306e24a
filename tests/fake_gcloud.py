"""A gcloud for tests of launch/tpu.sh: one TPU, whose workers are folders of this machine.

It answers as the real one is documented to: states of nodes and queued resources, NOT_FOUND on
stderr, ssh to all workers. What it knows lies in the folder FAKE_GCLOUD: `node` and `queued` hold
states, `commands.jsonl` every call, `worker-0` and so on the workers' home folders. A test writes
`num_workers`; `preempt_at`, the call of ssh at which the node is lost; `refuse`, what the next
create says instead of making a node; `fail_after_create`, what it says although it made one;
`hang_at`, the call of ssh that never ends; `drop_start_at`, the call to start runs that fails at
once; `drop_last_start_at`, the one that does not reach the last worker; `refuse_deletes`, how many
calls to delete fail; `hang_delete`, for one that never ends.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ["FAKE_GCLOUD"])
# What launch/tpu.sh may give to either kind of `create`; the real ones take more.
BOTH = {"accelerator-type", "network", "project", "quiet", "service-account", "spot", "subnetwork"}
CREATE = {
    "tpu-vm": {*BOTH, "version", "zone"},
    "queued-resources": {*BOTH, "node-id", "runtime-version", "zone"},
}


def main() -> int:
    arguments = sys.argv[1:]
    with (HERE / "commands.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    kind, verb, name = arguments[2:5]
    assert arguments[:2] == ["compute", "tpus"] and "--zone=us-west4-a" in arguments, arguments
    flags = dict(flag.partition("=")[::2] for flag in arguments[5:] if flag.startswith("--"))
    if verb == "create":
        assert {flag.removeprefix("--") for flag in flags} <= CREATE[kind], arguments
    if kind == "queued-resources":
        return {"create": create_queued, "describe": describe, "delete": delete}[verb]("queued")
    if verb == "scp":
        source, target = arguments[4:6]
        for home in workers():
            shutil.copy(source, home / target.partition(":")[2])
        return 0
    if verb == "ssh":
        return ssh(flags["--worker"], flags["--command"])
    assert name == "owl"
    return {"create": create, "describe": describe, "delete": delete}[verb]("node")


def take(name: str) -> str:
    """Content of a file that a test wrote, which then is gone; "" without one."""
    path = HERE / name
    text = path.read_text() if path.exists() else ""
    path.unlink(missing_ok=True)
    return text


def fail(message: str) -> int:
    print(f"ERROR: (gcloud.compute.tpus) {message}", file=sys.stderr)
    return 1


def workers() -> list[Path]:
    assert (HERE / "node").read_text() == "READY"
    return sorted(HERE.glob("worker-*"))


def create(_: str) -> int:
    assert not (HERE / "node").exists()
    if refusal := take("refuse"):
        return fail(refusal)
    for number in range(int((HERE / "num_workers").read_text())):
        (HERE / f"worker-{number}" / "subjax").mkdir(parents=True)
        # As a disk would be on which a run was installed before; installing takes its time.
        (HERE / f"worker-{number}" / "subjax" / ".venv").symlink_to(HERE.parent / "venv")
    (HERE / "node").write_text("READY")
    if failure := take("fail_after_create"):
        return fail(failure)
    return 0


def create_queued(_: str) -> int:
    (HERE / "queued").write_text("WAITING_FOR_RESOURCES")
    return 0


def describe(which: str) -> int:
    path = HERE / which
    if not path.exists():
        return fail("NOT_FOUND: Resource 'owl' was not found")
    print(path.read_text())
    if path.read_text() == "WAITING_FOR_RESOURCES":  # until the next look
        path.write_text("PROVISIONING")
    elif path.read_text() == "PROVISIONING":
        create("node")
        path.write_text("ACTIVE")
    return 0


def delete(which: str) -> int:
    if not (HERE / which).exists():
        return fail("NOT_FOUND: Resource 'owl' was not found")
    if take("hang_delete"):
        time.sleep(600)
    if left := int(take("refuse_deletes") or 0):
        (HERE / "refuse_deletes").write_text(str(left - 1))
        return fail("UNAVAILABLE: The service is currently unavailable")
    lose_workers()
    (HERE / "queued").unlink(missing_ok=True)
    (HERE / "node").unlink(missing_ok=True)
    return 0


def lose_workers() -> None:
    for home in HERE.glob("worker-*"):
        pid = home / "subjax-run" / "pid"
        if pid.exists() and not (home / "subjax-run" / "exit").exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


def counted(name: str) -> int:
    """How often it was counted before."""
    path = HERE / name
    count = int(path.read_text()) if path.exists() else 0
    path.write_text(str(count + 1))
    return count


def is_now(name: str, count: int) -> bool:
    return (HERE / name).exists() and int((HERE / name).read_text()) == count


def ssh(worker: str, command: str) -> int:
    count = counted("num_ssh")
    if is_now("preempt_at", count):
        lose_workers()
        (HERE / "node").write_text("PREEMPTED")
        if (HERE / "queued").exists():
            (HERE / "queued").write_text("SUSPENDED")
        return fail("[255] ssh: connect to host: Connection timed out")
    if is_now("hang_at", count):
        time.sleep(600)
    # How often a watch looks until a run has ended depends on the machine; starts do not.
    start = counted("num_starts") if "worker.sh start" in command else -1
    if is_now("drop_start_at", start):
        return fail("[255] ssh: connect to host: Connection refused")
    homes = workers() if worker == "all" else [workers()[int(worker)]]
    dropped = homes[-1:] if is_now("drop_last_start_at", start) else []
    environment = {k: v for k, v in os.environ.items() if k != "FAKE_GCLOUD"}
    codes = [
        subprocess.run(
            ["bash", "-c", command], cwd=home, env=environment | {"HOME": str(home)}, check=False
        ).returncode
        for home in homes
        if home not in dropped
    ]
    return fail("[255] ssh: connect to host: Connection refused") if dropped else max(codes)


if __name__ == "__main__":
    sys.exit(main())
