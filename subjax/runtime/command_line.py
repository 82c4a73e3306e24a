"""What command lines share: the flags about a config, and how an error ends a command."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from subjax.runtime import errors, object_store, processes, storage

# --help of a command then lists what is defined here as that command's own.
flags.disclaim_key_flags()


_WITH_KINDS = ("traits", "datasets", "evals")  # tables to whose rows a kind adds fields


class ArgumentParser(argparse.ArgumentParser):
    """A parser that shows a docstring as it is, and refuses in one line."""

    def __init__(self, command: str, about: str | None):
        """For a command such as subjax.ask, whose docstring --help shows."""
        super().__init__(
            prog=f"python -m {command}",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 1."""
        processes.leave(1, f"{message}: --help lists the flags")


class ConfigFlags:
    """`--config`, `--config.field=value` and `--workdir`; `parse` answers `--help` too."""

    def __init__(self, values: flags.FlagValues, *, workdir: str):
        """Adds them to a command's own flags; `workdir` says what the directory is for."""
        self._values = values
        self._config = config_flags.DEFINE_config_file(
            "config", None, "configs/x.py or configs/x.py:argument", flag_values=values
        )
        self._workdir = flags.DEFINE_string("workdir", "", workdir, flag_values=values)

    @property
    def config(self) -> ConfigDict:
        """The config, as the command line changes it."""
        return self._config.value

    @property
    def workdir(self) -> str:
        """Path or URL of the work directory."""
        return self._workdir.value or f"runs/{self.config.name}"

    def parse(self, argv: Sequence[str], *, usage: Callable[[], str], example: str) -> list[str]:
        """Parses all flags and loads the config; an error in either is one line and exit code 1.

        Args:
          argv: the command line.
          usage: what --help prints.
          example: a config, for the error if there is none.

        Returns:
          The arguments that are no flags, after the name of the command.
        """
        if "--help" in argv:
            print(usage())
            sys.exit()
        try:
            rest: list[str] = self._values(argv)
            if self.config is None:
                processes.leave(1, f"--config is missing: give one, such as --config={example}")
            self.config.name  # noqa: B018 (a file that could not be read raises here)
            return rest
        except Exception as error:  # a config file is a program: it can raise anything
            raise_if_asked(error)
            processes.leave(1, explain(error, argv))


def raise_if_asked(error: Exception) -> None:
    """Raises an error, rather than ending the command with its line, for SUBJAX_TRACEBACK=1."""
    if os.environ.get("SUBJAX_TRACEBACK"):
        raise error


def refuse(error: Exception, workdir: Path, name: str) -> NoReturn:
    """Ends the process with one line about an error that the user can fix, or that passes.

    Args:
      error: what stopped the command.
      workdir: where its work directory is on this machine.
      name: the work directory as the user gave it.
    """
    raise_if_asked(error)
    line = object_store.named(errors.explain(error, workdir), workdir, name)
    passes = isinstance(error, storage.Unavailable)
    processes.leave(processes.INTERRUPTED if passes else 1, line)


def explain(error: Exception, argv: Sequence[str]) -> str:
    """The line for an error in the flags or in the config file.

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
                has_kind = flag.split(".")[1] in _WITH_KINDS
                listed = " and the kind's file in subjax/tasks/ list" if has_kind else " lists"
                return f"{flag[2:]} is no field of this config: {hint}subjax/schema.py{listed} them"
    if isinstance(error, ModuleNotFoundError) and error.name == "configs":
        return f"the config file imports others{_place(error)}: run this in the repository root"
    # ml_collections prints the whole config.
    text = re.sub(r"Other fields present.*?(?=Did you mean|\Z)", "", text, flags=re.DOTALL)
    return f"the config file is wrong{_place(error)}: {type(error).__name__}: {text}"


def _place(error: Exception) -> str:
    """The place of an error in the user's own file, not in the packages that it calls."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not re.search(r"ml_collections|absl|importlib|subjax.runtime", frame.filename):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
