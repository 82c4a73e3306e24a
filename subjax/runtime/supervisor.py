"""A parent process that turns aborts by jax's distributed runtime into a message and exit code."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from types import FrameType

from subjax.runtime import processes

# What jax's runtime prints, in this order, before it aborts a process because another is gone.
_ABORTS = (
    b"Polled an error from coordination service",
    b"the JAX distributed service detected fatal errors",
)
# What it prints next.
_DUMP = b"*** Check failure stack trace"
# Seconds to wait for the last output of a child.
_LAST_WORDS_S = 5


def stand_by() -> None:
    """Forks: the child continues; the parent waits for it and passes on how it ended.

    If the first process of a run is gone, jax's runtime aborts the others from a C++ thread.
    Nothing prevents it (jax 0.10): the runtime's callback cannot be a Python function, and
    `jax_enable_recoverability` covers the death of any process but the first. So the parent turns
    such an abort into `processes.LOST` and exit code `processes.INTERRUPTED`; every other exit code
    is passed on. Call it before jax finds its devices: a forked child has only the calling thread
    (numpy's BLAS starts its threads anew).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    source, sink = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        if sys.platform == "linux":  # the child must die if the parent is killed
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:  # the parent died before the prctl
                os._exit(1)
        os.dup2(sink, 2)
        os.close(source)
        os.close(sink)
        return
    os.close(sink)

    def hand_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, number)

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    held: list[bytes] = []
    copying = threading.Thread(target=_copy_errors, args=(source, held), daemon=True)
    copying.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the child has ended, and its exit code is known
    copying.join(_LAST_WORDS_S)  # processes that the child started may hold the pipe open
    text = b"".join(held)
    # Python's handler of the abort prints all stacks, and can itself crash (SIGSEGV).
    if code in (-signal.SIGABRT, -signal.SIGSEGV) and text:
        code = processes.INTERRUPTED
        text = text.partition(_DUMP)[0] + f"subjax: {processes.LOST}\n".encode()
    elif code == processes.INTERRUPTED:
        # The child noticed it too and stopped before the abort: keep only its own message.
        text = b"".join(x for x in text.splitlines(keepends=True) if x.startswith(b"subjax: "))
    with contextlib.suppress(OSError):
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()
    os._exit(code if code >= 0 else 128 - code)  # a signal's number as a shell reports it


def _copy_errors(source: int, held: list[bytes]) -> None:
    """Copies a child's stderr to this process's stderr; from `_ABORTS` on, to `held` instead."""
    while text := os.read(source, 2**16):
        # The runtime prints each in one write, short enough to arrive whole.
        if held or any(words in text for words in _ABORTS):
            held.append(text)
            continue
        with contextlib.suppress(OSError):  # the child must not block if nobody reads stderr
            sys.stderr.buffer.write(text)
            sys.stderr.buffer.flush()
