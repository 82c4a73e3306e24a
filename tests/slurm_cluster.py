"""A SLURM cluster of one node on this machine: munged, slurmctld and slurmd in one folder.

It needs Debian's packages slurmctld, slurmd, slurm-client and munge; no root, no service, no
default port, so that it stands beside a cluster which this machine may belong to.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")

# cred_expire, at least 5, is also how many seconds a requeued job waits before it starts again.
CONFIG = """
ClusterName=subjax
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
FirstJobId={first_job}
ReturnToService=2
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs that are not installed."""
    return [program for program in PROGRAMS if not _which(program)]


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Cluster:
    """Started when made; `close` ends it. The folder's path must be short: it holds a socket."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        config = folder / "slurm.conf"
        config.write_text(
            CONFIG.format(
                host=socket.gethostname().partition(".")[0],
                user=getpass.getuser(),
                folder=folder,
                ports=_free_ports(2),
                # jax takes its port from the job's number: another one in every cluster.
                first_job=1 + os.getpid() % 4000,
            )
        )
        self.environment = os.environ | {"SLURM_CONF": str(config)}
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._start_all(folder)
        except BaseException:
            self.close()
            raise

    def _start_all(self, folder: Path) -> None:
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        names = ("socket", "pid", "log", "seed")
        options = {"socket": "socket", "pid": "pid-file", "log": "log-file", "seed": "seed-file"}
        files = [f"--{options[name]}={folder}/munge.{name}" for name in names]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *files)
        self._wait("munged", (folder / "munge.socket").exists)
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        self._wait("slurmd", lambda: "idle" in self("sinfo", "--noheader", "--format=%t"))

    def _start(self, program: str, *arguments: str) -> None:
        path = _which(program)
        assert path
        with (self.folder / f"{program}.out").open("wb") as out:
            process = subprocess.Popen(
                [path, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)

    def _wait(self, program: str, ready, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{program} is not ready: {self.logs()}")
            time.sleep(0.2)

    def __call__(self, *command: str, cwd: Path | None = None) -> str:
        """Runs one of SLURM's commands; its output."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    def job(self, number: str) -> dict[str, str]:
        """Fields of a job: JobState, ExitCode, Restarts and others."""
        words = self("scontrol", "show", "job", number).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def wait_for(self, number: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Waits until the job is in one of these states; its fields then."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number)).get("JobState") not in states:
            if time.monotonic() > deadline:
                raise RuntimeError(f"job {number} is not {states} but {job}: {self.logs()}")
            time.sleep(0.2)
        return job

    def logs(self) -> str:
        """What the daemons said."""
        return "\n".join(
            f"{path.name}: {path.read_text()[-3000:]}"
            for pattern in ("*.log", "*.out")
            for path in sorted(self.folder.glob(pattern))
        )

    def close(self) -> None:
        """Ends the jobs and the daemons."""
        if len(self._processes) > 1:
            self("scancel", "--full", f"--user={getpass.getuser()}")
            # A job outlives its daemons: one that waits for what never comes has to go before.
            with contextlib.suppress(RuntimeError):
                self._wait("squeue", lambda: not self("squeue", "--noheader"), seconds=20)
            self("scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}")
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
