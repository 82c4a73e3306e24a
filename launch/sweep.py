"""Runs one config over a grid of overrides, each in a work directory of its own.

    python launch/sweep.py --workdir=runs/rates --config=configs/quickstart.py \
        --sweep='config.arms.*.train.learning_rate=1e-4,2e-4' --sweep='config.lineages=(0,1),(2,3)'

is four runs. A * stands for one name of a table: all fields that match get the same value. Values
are separated by commas outside of brackets and quotes. What stands after -- is given to every run:
-- --stages=base,teacher. --dry-run prints the commands; --jobs=2 runs two at a time.

A run's output goes to WORKDIR/<run>.log. To resume, run the sweep again: finished work is not
repeated. A failed run does not stop the others. At the end a table of exit codes and reports is
printed; the sweep's own exit code is 0 if all are done, 75 if some were interrupted, else 1.
"""

import argparse
import concurrent.futures
import fnmatch
import importlib.util
import itertools
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED = 75
BRACKETS = {"(": ")", "[": "]", "{": "}"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="configs/x.py or configs/x.py:argument")
    parser.add_argument("--workdir", required=True, help="the runs are folders in it")
    parser.add_argument("--sweep", action="append", required=True, metavar="config.FIELD=A,B")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("main", nargs="*", metavar="ARG", help="after --: for every run")
    options = parser.parse_args()
    try:
        if "://" in options.workdir:
            raise ValueError(
                f"--workdir={options.workdir}: the runs and their logs lie in a directory of this "
                "machine: give one, such as where the bucket is mounted"
            )
        options.workdir = Path(options.workdir)
        if options.jobs < 1:
            raise ValueError(f"--jobs={options.jobs}: at least one run at a time")
        commands = plan(options)
    except (ValueError, OSError) as error:
        print(f"subjax: error: {error}", file=sys.stderr)
        return 1
    if options.dry_run:
        print("\n".join(shlex.join(command) for command in commands.values()))
        return 0
    # SIGTERM reaches only this process; an interrupt of the terminal reaches the runs as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    codes = Sweep(options.workdir, commands).run(options.jobs)
    print(table(options.workdir, codes))
    return overall(codes)


def plan(options: argparse.Namespace) -> dict[str, list[str]]:
    """Name of every run -> its command; ValueError for an invalid sweep."""
    fields = list(paths(load(options.config)))
    axes = [axis(sweep, fields) for sweep in options.sweep]
    commands: dict[str, list[str]] = {}
    for point in itertools.product(*axes):
        name = ",".join(name for name, _ in point)
        if name in commands:
            raise ValueError(f"two runs would be {name}: sweep a field once, over distinct values")
        command = [sys.executable, "-m", "subjax.main", f"--config={options.config}"]
        command += [f"--workdir={options.workdir / name}", *options.main]
        commands[name] = command + [flag for _, flags in point for flag in flags]
    return commands


def load(config: str) -> ConfigDict:
    """The config, as `--config` of subjax.main reads it."""
    path, colon, argument = config.partition(":")
    if not Path(path).is_file():
        raise ValueError(f"--config={config}: there is no file {path}")
    sys.path.insert(0, str(ROOT))  # a config imports subjax
    spec = importlib.util.spec_from_file_location("swept", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(argument) if colon else module.get_config()
    except Exception as error:  # a config file is a program: it can raise anything
        raise ValueError(f"--config={config}: {error!r}") from error


def paths(config: ConfigDict, prefix: str = "config") -> Iterator[str]:
    """Dotted path of every field."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from paths(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def axis(sweep: str, fields: Sequence[str]) -> list[tuple[str, list[str]]]:
    """One --sweep: for every value, a part of the run's name and the flags that set it."""
    pattern, equals, text = sweep.partition("=")
    values = split(text)
    if not equals or not all(values):
        raise ValueError(f"--sweep={sweep}: give values, such as config.lineages=(0,),(1,)")
    found = [field for field in fields if matches(field, pattern)]
    if not found:
        raise ValueError(f"--sweep={sweep}: no field of the config matches {pattern}")
    label = ".".join(part for part in pattern.split(".")[1:] if part != "*")
    return [
        (re.sub(r"[^\w.+=-]+", "_", f"{label}={value}"), [f"--{field}={value}" for field in found])
        for value in values
    ]


def matches(field: str, pattern: str) -> bool:
    """Whether each name of the field matches its own part of the pattern."""
    names, parts = field.split("."), pattern.split(".")
    return len(names) == len(parts) and all(map(fnmatch.fnmatchcase, names, parts))


def split(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes."""
    parts = [""]
    closing: list[str] = []
    for letter in text:
        if closing and letter == closing[-1]:
            closing.pop()
        elif letter in "'\"" and not (closing and closing[-1] in "'\""):
            closing.append(letter)
        elif letter in BRACKETS and not (closing and closing[-1] in "'\""):
            closing.append(BRACKETS[letter])
        if letter == "," and not closing:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


class Sweep:
    """The runs of a sweep, some of them active."""

    def __init__(self, workdir: Path, commands: dict[str, list[str]]):
        self._workdir, self._commands = workdir, commands
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, jobs: int) -> dict[str, int]:
        """Exit code of every run; an interrupt ends active runs and starts no more."""
        self._workdir.mkdir(parents=True, exist_ok=True)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            futures = {name: pool.submit(self._run, name) for name in self._commands}
            try:
                concurrent.futures.wait(futures.values())
            except KeyboardInterrupt:
                self._stopped = True
                for process in list(self._running):
                    process.terminate()
        return {name: future.result() for name, future in futures.items()}

    def _run(self, name: str) -> int:
        if self._stopped:
            return INTERRUPTED
        log = self._workdir / f"{name}.log"
        print(f"{name}: started; {log} has what it says", flush=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                self._commands[name], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
            self._running.add(process)
            if self._stopped:  # between the check above and here
                process.terminate()
            code = process.wait()
            self._running.discard(process)
        # A run that ended before it could save counts as interrupted too.
        code = INTERRUPTED if self._stopped and code else code
        print(f"{name}: exit code {code}", flush=True)
        return code


def table(workdir: Path, codes: dict[str, int]) -> str:
    """A line per run: its exit code, its name, and its report or, if there is none, its log."""
    lines = ["exit code  run"]
    for name, code in codes.items():
        report = workdir / name / "report" / "report.html"
        lines.append(f"{code:9}  {name}  {report if report.exists() else f'{workdir / name}.log'}")
    return "\n".join(lines)


def overall(codes: dict[str, int]) -> int:
    """Exit code of the sweep."""
    failed = set(codes.values()) - {0}
    if failed == {INTERRUPTED}:
        return INTERRUPTED
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
