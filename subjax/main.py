"""Runs a config: flags, devices, one call to the pipeline; errors as one line.

    python -m subjax.main --config=configs/quickstart.py --workdir=runs/quickstart

README.md has all flags; `--config.field=value` changes a field of the config.
"""

import logging
import sys
import traceback
from pathlib import Path

import absl.logging
from absl import app, flags

from subjax.nn import sharding
from subjax.pipeline import preregistration, preview, runner
from subjax.runtime import command_line, errors, object_store, processes, supervisor
from subjax.tasks import own

_ABOUT = command_line.ConfigFlags(
    flags.FLAGS, workdir="where results go, gs:// too; default runs/<config name>"
)
_STAGES = flags.DEFINE_list("stages", [], "run only these stages")
_UNITS = flags.DEFINE_list("units", [], "run only units whose path matches one of these globs")
_PREVIEW = flags.DEFINE_string("preview", "", "print what an arm's models will see, then leave")
_FREEZE = flags.DEFINE_string("freeze", "", "write a preregistration to this new file, then leave")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "be one of several processes of a run")
_LIST = flags.DEFINE_bool("list", False, "print every unit and whether it is done, then leave")


def main(argv: list[str]) -> None:
    """Runs the config; an error that the user can fix is one line on stderr and exit code 1.

    Exit code 75: the run was interrupted, another process of it has ended, or a bucket or the hub
    does not answer; to resume, run the same command again. Exit code 70: a bug in subjax.
    """
    if len(argv) > 1:
        processes.leave(1, f"unexpected argument {argv[1]!r}: flags start with --")
    if _DISTRIBUTED.value:
        supervisor.stand_by()
    name = _ABOUT.workdir
    workdir = Path(name)
    try:
        with object_store.opened(name) as workdir:
            _run(workdir)
    except processes.Interrupted as interrupted:
        processes.leave(
            processes.INTERRUPTED, f"interrupted: {interrupted}; run the same command again"
        )
    except KeyboardInterrupt:
        processes.leave(
            processes.INTERRUPTED,
            "interrupted: run the same command again, which resumes what is saved",
        )
    except Exception as error:
        command_line.raise_if_asked(error)
        if whose := own.blame(error):
            processes.tell(whose)
            traceback.print_exc()
            processes.leave(1)
        if isinstance(error, ValueError | FloatingPointError | OSError):
            command_line.refuse(error, workdir, name)
        if processes.out_of_memory(error):
            processes.leave(1, errors.MEMORY)
        if processes.lost_another(error):
            processes.leave(processes.INTERRUPTED, errors.first_line(error), processes.LOST)
        traceback.print_exc()
        processes.leave(processes.DEFECT)


def _run(workdir: Path) -> None:
    config = _ABOUT.config
    if _LIST.value:
        for path, state in runner.listing(config, workdir):
            print(f"{state:8} {path}")
        return
    if _PREVIEW.value:
        print(preview.render(config, workdir, _PREVIEW.value))
        return
    if _FREEZE.value:
        preregistration.freeze(config, Path(_FREEZE.value), workdir, command=sys.argv)
        print(f"frozen: {_FREEZE.value}; run with --config.preregistration={_FREEZE.value}")
        return
    # JAX logs at every start which accelerators it did not find.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    # tensorflow-datasets logs every data set that it loads.
    absl.logging.set_verbosity(absl.logging.WARNING)
    sharding.use_cpu_devices(config.compute.cpu_devices)
    if _DISTRIBUTED.value:
        processes.start()
    processes.leave_when_told()
    runner.run(config, workdir, stages=_STAGES.value, patterns=_UNITS.value, command=sys.argv)


def _usage() -> str:
    """This command's own flags; absl's --help lists those of the script that was started."""
    return f"{__doc__}\n{flags.FLAGS.module_help(sys.modules[__name__])}"


def _parse(argv: list[str]) -> list[str]:
    return _ABOUT.parse(argv, usage=_usage, example="configs/quickstart.py")


def cli() -> None:
    """Entry point."""
    processes.import_from_here()
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    cli()
