"""The command line: flags, devices, one call to the pipeline; errors as one line."""

import logging
import os
import sys
from pathlib import Path

# Before anything imports transformers: it would announce on every start that torch is absent.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import app, flags
from ml_collections import config_flags

from subjax import pipeline, sharding

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/x.py or configs/x.py:argument")
_WORKDIR = flags.DEFINE_string("workdir", "", "where results go; default runs/<config name>")
_STAGES = flags.DEFINE_list("stages", [], "run only these stages")
_UNITS = flags.DEFINE_list("units", [], "run only units whose path matches one of these globs")
_LIST = flags.DEFINE_bool("list", False, "print every unit and whether it is done, then leave")


def main(argv: list[str]) -> None:
    """Runs the config; every error that a user can mend is one line on stderr and exit code 1."""
    if len(argv) > 1:
        _leave(f"unexpected argument {argv[1]!r}: flags start with --")
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    try:
        if _LIST.value:
            for path, state in pipeline.listing(config, workdir):
                print(f"{state:8} {path}")
            return
        # JAX says on every start which accelerators it did not find.
        logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
        sharding.use_cpu_devices(config.compute.cpu_devices)
        pipeline.run(config, workdir, stages=_STAGES.value, patterns=_UNITS.value, command=sys.argv)
    except (ValueError, FloatingPointError, OSError) as error:
        if os.environ.get("SUBJAX_TRACEBACK"):
            raise
        _leave(" ".join(str(error).split()))


def _leave(message: str) -> None:
    print(f"subjax: {message}", file=sys.stderr)
    sys.exit(1)


def cli() -> None:
    """Entry point; turns mistakes in flags and config files into one line, too."""
    flags.mark_flag_as_required("config")
    try:
        app.run(main)
    except (AttributeError, ValueError, TypeError, FileNotFoundError) as error:
        if os.environ.get("SUBJAX_TRACEBACK"):
            raise
        _leave(" ".join(str(error).split()))


if __name__ == "__main__":
    cli()
