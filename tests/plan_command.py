"""The command line of `subjax.plan`, run in this process."""

import contextlib

from subjax import plan


@contextlib.contextmanager
def runner(capsys, monkeypatch):
    """A function that runs it with some flags; returns its output, errors and exit code."""

    def run(*flags):
        monkeypatch.setattr("sys.argv", ["plan", *flags])
        _forget_flags()
        code = 0
        try:
            plan.cli()
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return said.out, said.err, code

    yield run
    _forget_flags()


def _forget_flags():
    """Overrides of fields, too, which parsing defines as flags: once, and for one config file."""
    plan._FLAGS.unparse_flags()
    for name in list(plan._FLAGS):
        if name.startswith("config."):
            delattr(plan._FLAGS, name)
        else:
            plan._FLAGS[name].unparse()
