"""One process watches over another: what the runtime of several processes does not let us say."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from types import FrameType

from subjax.runtime import processes

# What jax's runtime says, one after the other, before it aborts a process since another is gone.
_ABORTS = (
    b"Polled an error from coordination service",
    b"the JAX distributed service detected fatal errors",
)
# And what comes after it.
_DUMP = b"*** Check failure stack trace"
# So long are the last words of a child waited for.
_LAST_WORDS_S = 5


def stand_by() -> None:
    """Goes on in a child; the process that was started stays, and says how the child ended.

    Where the first process of a run is gone, jax's runtime aborts the others from a thread of C++.
    Nothing prevents it (jax 0.10): the runtime's callback cannot be one of Python's, and
    `jax_enable_recoverability` is for the death of any process but the first. So such an abort is
    turned into `processes.LOST` and exit code `processes.INTERRUPTED` from outside; every other end
    stays what it is. Call it before jax finds its devices: a child has no threads but the one that
    calls (those of numpy's BLAS start anew).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    source, sink = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        if sys.platform == "linux":  # a kill -9 of the one that waits is the end of both
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:  # it came before that
                os._exit(1)
        os.dup2(sink, 2)
        os.close(source)
        os.close(sink)
        return
    os.close(sink)

    def hand_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended just now
            os.kill(child, number)

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    held: list[bytes] = []
    copying = threading.Thread(target=_copy_errors, args=(source, held), daemon=True)
    copying.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nobody is there to take it; the code is known
    copying.join(_LAST_WORDS_S)  # not for ever: what the child has started may hold the pipe open
    text = b"".join(held)
    # Python's own handler of the abort lists what all threads do, and can itself fail at that.
    if code in (-signal.SIGABRT, -signal.SIGSEGV) and text:
        code = processes.INTERRUPTED
        text = text.partition(_DUMP)[0] + f"subjax: {processes.LOST}\n".encode()
    elif code == processes.INTERRUPTED:
        # It noticed at the same moment and left before the abort: what it said itself comes last.
        text = b"".join(x for x in text.splitlines(keepends=True) if x.startswith(b"subjax: "))
    with contextlib.suppress(OSError):
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()
    os._exit(code if code >= 0 else 128 - code)  # a signal's number as a shell gives it


def _copy_errors(source: int, held: list[bytes]) -> None:
    """Copies a child's stderr to this process's; from `_ABORTS` on it goes into `held` instead."""
    while text := os.read(source, 2**16):
        # Each is one write of the runtime's, short enough to arrive whole.
        if held or any(words in text for words in _ABORTS):
            held.append(text)
            continue
        with contextlib.suppress(OSError):  # a child must not wait for a reader that gave up
            sys.stderr.buffer.write(text)
            sys.stderr.buffer.flush()
