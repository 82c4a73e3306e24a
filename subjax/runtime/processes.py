"""Runs of several processes: start, agreement, barriers, and stopping at a signal.

Every process runs the same program on its part of the devices and computes the same values on the
host. Only the first process writes files, except for checkpoints. All processes share the work
directory, or it is a URL. With one process, most functions here are no-ops.
"""

import contextlib
import functools
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from subjax.runtime import artifacts

# Exit code of a run that was interrupted and has saved its state (EX_TEMPFAIL).
INTERRUPTED = 75
# Exit code of a failure that the user did not cause (EX_SOFTWARE).
DEFECT = 70
# The message with INTERRUPTED if another process died.
LOST = "another process of this run has ended; see what it said, and run all again"
# Status codes with which jax's runtime reports errors of this process's own program or memory.
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "RET_CHECK")
# The other processes notice the death of a process within this time.
_HEARTBEAT_S = 60
# The first process waits this long for others that stop for the same reason.
_LAST_S = 5
# On a shared file system, every process sees what another one wrote within this time.
_SEEN_S = 60
_SETTINGS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_told_to_leave = False
_num_asked = 0


class Interrupted(Exception):
    """The run was told to stop and has saved its state; to resume, run the same command again."""


def start() -> None:
    """Joins this process to the others of a run.

    On Cloud TPU, SLURM, GKE and Open MPI jax finds the other processes; elsewhere the environment
    variables `_SETTINGS` give the address of the first process, the number of processes, and the
    number of this one.

    Raises:
      ValueError: the other processes are not found.
      Interrupted: they do not answer in time; their machines may still be starting.
    """
    address, number, index = (os.environ.get(name) for name in _SETTINGS)
    try:
        jax.distributed.initialize(
            address,
            int(number) if number else None,
            int(index) if index else None,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
        )
    except jax.errors.JaxRuntimeError as error:
        raise Interrupted(
            f"the other processes do not answer ({' '.join(str(error).split())[:160]}): check "
            "that all were started"
        ) from None
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed finds no other processes ({' '.join(str(error).split())[:160]}): start "
            f"it under SLURM, GKE or on a TPU pod, or set {', '.join(_SETTINGS)}"
        ) from None
    if not is_first():
        artifacts.write_nothing()
        # One progress bar is enough; tqdm reads its variable before this process knows its number.
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)


def import_from_here() -> None:
    """Has Python find modules in the current folder, such as those with kinds of a user's own.

    `python -m` does so by itself, the scripts that pip installs do not.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def leave(code: int, *messages: str) -> NoReturn:
    """Ends this process; in a run of several, without waiting for the others, which may hang.

    Args:
      code: exit code.
      messages: printed on stderr first, one per line.
    """
    tell(*messages)
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if is_first():
            time.sleep(_LAST_S)  # the coordinator: if it ended first, the others would abort
        os._exit(code)
    sys.exit(code)


def tell(*messages: str) -> None:
    """Prints messages on stderr, one per line."""
    # One write: print writes the line end separately, and the runtime's threads write too.
    sys.stderr.write("".join(f"subjax: {' '.join(message.split())}\n" for message in messages))


def lost_another(error: Exception) -> bool:
    """Whether an error of jax's runtime may mean that another process no longer answers.

    Backends raise different errors for this, but none whose status is in `_OWN`.
    """
    return (
        jax.process_count() > 1
        and isinstance(error, jax.errors.JaxRuntimeError)
        and not any(own in str(error) for own in _OWN)
    )


def loss_behind(error: BaseException | None) -> jax.errors.JaxRuntimeError | None:
    """The error for which `lost_another` is true: this one, its cause or its context."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return error if lost_another(error) else None
        error = error.__cause__ or error.__context__
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether an error of jax's runtime says that a device has too little memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def leave_when_told() -> None:
    """Treats SIGTERM, the notice of a preemption, as a request to save and stop.

    In a run of several processes jax handles the signal and tells the others.
    """
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _note)


def told_to_leave() -> bool:
    """Whether the run must save and stop; all processes must call this equally often, and agree."""
    global _num_asked
    _num_asked += 1
    if jax.process_count() == 1:
        return _told_to_leave
    return bool(multihost_utils.reached_preemption_sync_point(_num_asked))


def is_first() -> bool:
    """Whether this process writes files."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """A barrier; after it, all processes see what the first one has written."""
    artifacts.publish()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
        artifacts.refresh()


def agreed(value: Any) -> Any:
    """Broadcasts the first process's value, which must be JSON, to all processes."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    own = np.zeros(length, np.uint8)
    if is_first():
        own[:] = text
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(own)))


def await_files(paths: Iterable[Path]) -> None:
    """Waits until this process sees files that the first one has written.

    On NFS, a process that looked for a file too early does not see it for a while.

    Raises:
      ValueError: it does not see them in time.
    """
    end = time.monotonic() + _SEEN_S
    for path in paths:
        while not path.exists():
            if time.monotonic() > end:
                raise ValueError(
                    f"process {jax.process_index()} does not see {path}, which process 0 does: "
                    "give all processes a --workdir that they share"
                )
            time.sleep(0.2)


def check_alike(things: Mapping[str, Any]) -> None:
    """Checks that all processes were started with the same things.

    Args:
      things: JSON values by the name that a message gives them.

    Raises:
      ValueError: in all processes, if some of them differ from the first.
    """
    digests = [
        hashlib.sha256(artifacts.dumps(thing).encode()).digest() for thing in things.values()
    ]
    every = _of_all(np.frombuffer(b"".join(digests), np.uint8).reshape(len(things), -1))
    for name, ours in zip(things, every.swapaxes(0, 1), strict=True):
        if others := np.flatnonzero((ours != ours[0]).any(-1)).tolist():
            raise ValueError(
                f"process {others[0]} differs from process 0 in its {name} ({len(others)} of "
                f"{len(every)} processes do): start the same code with the same command on all"
            )


def check_shared(path: Path, last: Mapping[str, Any]) -> None:
    """Checks that all processes see the last line that the first one has written to a log.

    Raises:
      ValueError: in all processes, if some of them do not see it.
    """
    end, seen = time.monotonic() + _SEEN_S, False
    while not seen and time.monotonic() < end:
        # If only one process raised an error, the others would wait for it forever.
        with contextlib.suppress(OSError, ValueError):
            seen = artifacts.read_jsonl(path)[-1:] == [last]
        time.sleep(0 if seen else 0.2)
    if others := np.flatnonzero(~_of_all(np.array(seen))).tolist():
        raise ValueError(
            f"workdir {path.parent} is not shared: process {others[0]} does not see what process 0 "
            "has written there; give all a directory that they share, such as one on NFS, or a "
            "gs:// URL"
        )


def _of_all(value: np.ndarray) -> np.ndarray:
    """The values of all processes, [processes, ...]."""
    if jax.process_count() == 1:
        return value[None]
    return np.asarray(multihost_utils.process_allgather(value))


def _note(_number: int, _frame: FrameType | None) -> None:
    global _told_to_leave
    _told_to_leave = True
    # A second SIGTERM ends the process; not in a run of several: the supervisor forwards it too.
    if not jax.distributed.is_initialized():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
