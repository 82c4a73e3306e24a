"""Errors of the user or of the machine as one line that says what to do.

Only the command lines use this module. All other code raises errors whose text is that line.
"""

import errno
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags

# The line for a device that ran out of memory.
MEMORY = (
    "the memory of a device is full: lower batch_size, lanes or slots, raise accumulate, set "
    "config.compute.remat to 'full', or spread the model with config.mesh.fsdp; python -m "
    "subjax.plan says what fits; finished units are kept"
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


def explain_flags(error: Exception, argv: Sequence[str]) -> str:
    """The line for an error in the flags or in the config file, which may raise anything.

    Args:
      error: what parsing or `get_config` raised, as absl and ml_collections wrap it.
      argv: the command line.
    """
    text = str(error).strip()
    last = text.splitlines()[-1].strip() if text else ""
    if isinstance(error, flags.IllegalFlagValueError) and "Traceback" in text:
        return last.partition("Error: ")[2]  # get_config's error, with traceback
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"{text}: --help lists the flags"
    if isinstance(error, flags.Error):
        return f"{text.rstrip('.')}: give a value of the type that the default has"
    if isinstance(error, OSError):
        return f"the config file cannot be read ({last}): give --config=PATH.py"
    if isinstance(error, KeyError | AttributeError):
        missing = re.search(r"\w+", text)
        for flag in (part.partition("=")[0] for part in argv):
            if missing and flag.startswith("--config.") and missing[0] in flag.split("."):
                closest = re.search(r"Did you mean (\S+)", text)
                hint = f"did you mean {closest[1]}? " if closest else ""
                return f"{flag[2:]} is no field of this config: {hint}subjax/schema.py lists them"
    # ml_collections prints the whole config.
    text = re.sub(r"Other fields present.*?(?=Did you mean|\Z)", "", text, flags=re.DOTALL)
    return f"the config file is wrong{_place(error)}: {type(error).__name__}: {text}"


def _place(error: Exception) -> str:
    """The place of an error in the user's own file, not in the packages that it calls."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not re.search(r"ml_collections|absl|importlib|subjax.main", frame.filename):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
