"""Errors of the user or of the machine as one line that says what to do.

Only the command lines use this module. All other code raises errors whose text is that line.
"""

import errno
from pathlib import Path

# The line for a device that ran out of memory.
MEMORY = (
    "the memory of a device is full: lower batch_size, packed_rows, lanes or slots, raise "
    "accumulate, set config.compute.remat to 'full', or spread the model with config.mesh.fsdp; "
    "python -m subjax.plan says what fits; finished units are kept"
)


def explain(error: Exception, workdir: Path) -> str:
    """The line for an error of a run.

    Args:
      error: what stopped it.
      workdir: named if the system's error names no file.
    """
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or workdir
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk is full ({where}: {error.strerror}): free some space and run the same "
                "command again; finished units are kept"
            )
        return f"{where}: {error.strerror}: correct that and run again; finished units are kept"
    return str(error)


def first_line(error: Exception) -> str:
    """The message of an error of jax's runtime, without the dump that may follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
