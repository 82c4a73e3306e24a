"""Processes of one run that tests start: an address to meet at, and their end."""

import socket
import subprocess
from collections.abc import Sequence


def address() -> str:
    """Of a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def assert_all_end(processes: Sequence[subprocess.Popen[str]], timeout_s: float = 300) -> None:
    """Waits for all of them, of which none may fail."""
    for process in processes:
        try:
            _, errors = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        assert process.returncode == 0, errors
