"""The real command line, many times over, in processes forked from one that has imported it.

Importing jax takes seconds; a fork takes none. Each request is a process of its own with fresh
flags and its own stderr. The parent never touches a device, which is what makes forking it safe.
"""

import errno
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Server:
    """Runs commands one after the other; made once for a test module."""

    def __init__(self, folder: Path, **environment: str):
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        )

    def __call__(self, *argv: object, full_after: int = -1) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `python -m subjax.main ARGV`.

        With `full_after` the disk is full once that many files have been written.
        """
        assert self._process.stdin and self._process.stdout
        request = [str(self._out), str(self._err), ["subjax", *map(str, argv)], full_after]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, self._out.read_text(), self._err.read_text()

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


def _serve() -> None:
    from subjax import main

    for line in sys.stdin:
        out, err, argv, full_after = json.loads(line)
        child = os.fork()
        if not child:
            if full_after >= 0:
                os.fsync = _fill_disk(os.fsync, full_after)
            _command(main.cli, out, err, argv)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _fill_disk(fsync, full_after):
    """What os.fsync does on a disk that runs full; every file of a unit goes through it."""
    calls = iter(range(full_after))

    def full(descriptor):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    return full


def _command(cli, out, err, argv) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv, code = argv, 0
    try:
        cli()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else bool(left.code)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
