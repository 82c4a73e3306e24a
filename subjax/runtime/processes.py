"""Runs of several processes: starting them, agreeing, waiting, and leaving when told to.

Every process runs the same program on its part of the devices, and computes the same values on the
host; the first one alone writes files, checkpoints excepted, and the work directory is one that all
share, or a URL. With one process everything here is a matter of course.
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

# The run stops with this code when it was interrupted and has saved what it had (EX_TEMPFAIL).
INTERRUPTED = 75
# And with this one where it is not the user's doing (EX_SOFTWARE).
DEFECT = 70
# Said with INTERRUPTED where it was another process that died.
LOST = "another process of this run has ended; see what it said, and run all again"
# What jax's runtime says of a program, or of memory, that this process has by itself.
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "RET_CHECK")
# A process that died is noticed by the others within this time.
_HEARTBEAT_S = 60
# The first process waits this long for others that leave for the same reason.
_LAST_S = 5
# What one process wrote on a file system that all share is seen by the others within this time.
_SEEN_S = 60
_SETTINGS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_told_to_leave = False
_num_asked = 0


class Interrupted(Exception):
    """The run was told to leave; what it had is saved, and the same command goes on."""


def start() -> None:
    """Joins this process to the others of a run.

    On Cloud TPU, SLURM, GKE and Open MPI jax finds them by itself; elsewhere `_SETTINGS` of the
    environment say where the first process listens, how many there are, and which one this is.

    Raises:
      ValueError: they are not found.
      Interrupted: they do not answer in time; their machines may still be on their way.
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
            f"the other processes do not answer ({' '.join(str(error).split())[:160]}): see "
            "whether all were started"
        ) from None
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed finds no other processes ({' '.join(str(error).split())[:160]}): start "
            f"it under SLURM, GKE or on a TPU pod, or set {', '.join(_SETTINGS)}"
        ) from None
    if not is_first():
        artifacts.write_nothing()
        # One bar is enough; tqdm reads its own variable before this process knows which it is.
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)


def leave(code: int, *messages: str) -> NoReturn:
    """Ends this process; where there are others, without waiting for what they may never do.

    Args:
      code: exit code.
      messages: what to say on stderr before, a line each.
    """
    # In one piece: print writes a line's end by itself, and the runtime's threads write too.
    sys.stderr.write("".join(f"subjax: {' '.join(message.split())}\n" for message in messages))
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if is_first():
            time.sleep(_LAST_S)  # all talk through it: where it goes first, they are aborted
        os._exit(code)
    sys.exit(code)


def lost_another(error: Exception) -> bool:
    """Whether an error of jax's runtime may say that another process no longer answers.

    What it raises then differs from backend to backend; `_OWN` is what it never does.
    """
    return (
        jax.process_count() > 1
        and isinstance(error, jax.errors.JaxRuntimeError)
        and not any(own in str(error) for own in _OWN)
    )


def loss_behind(error: BaseException | None) -> jax.errors.JaxRuntimeError | None:
    """What `lost_another` is said of: an error, or one that it was raised from or beside."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return error if lost_another(error) else None
        error = error.__cause__ or error.__context__
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether an error of jax's runtime says that a device has too little memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def leave_when_told() -> None:
    """Takes SIGTERM, the notice of a preemption, for a wish to save and leave.

    Where there are several processes jax itself listens, and tells the others.
    """
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _note)


def told_to_leave() -> bool:
    """Whether the run has to save and leave; every process asks equally often, and all agree."""
    global _num_asked
    _num_asked += 1
    if jax.process_count() == 1:
        return _told_to_leave
    return bool(multihost_utils.reached_preemption_sync_point(_num_asked))


def is_first() -> bool:
    """Whether this process writes files."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Waits until every process is here; what the first one has written is there for all then."""
    artifacts.publish()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
        artifacts.refresh()


def agreed(value: Any) -> Any:
    """The first process's value, which must be JSON, in all of them."""
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

    On NFS one that looked for a file before it was there goes on missing it for a while.

    Raises:
      ValueError: it does not.
    """
    end = time.monotonic() + _SEEN_S
    for path in paths:
        while not path.exists():
            if time.monotonic() > end:
                raise ValueError(
                    f"process {jax.process_index()} does not see {path}, which process 0 does: "
                    "give all a --workdir that they share"
                )
            time.sleep(0.2)


def check_alike(things: Mapping[str, Any]) -> None:
    """Compares what every process was started with.

    Args:
      things: JSON values by the name that a message gives them.

    Raises:
      ValueError: in all processes, where some of them differ from the first.
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
    """Looks whether all processes see the last line that the first one has written to a log.

    Raises:
      ValueError: in all processes, where some of them do not.
    """
    end, seen = time.monotonic() + _SEEN_S, False
    while not seen and time.monotonic() < end:
        # An error of one process alone would leave the others waiting.
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
    # Told a second time, it ends at once; but a supervisor hands on what may have come here too.
    if not jax.distributed.is_initialized():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
