"""Runs every config's smoke form with another commit's code and with this tree's; compares them.

    python tests/pin.py main~3                    every config
    python tests/pin.py main~3 quickstart theorem only these

A change that must not move any result, such as a renamed module, is pinned by it: rows byte for
byte, weights leaf by leaf, scores, answers, losses, `summary.json` and `scores.csv`. Both sides run
on this machine, since machines with other matrix units round differently. What is told of a run
rather than computed by it (fingerprints, times, commands, pages) is not compared.
"""

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import safetensors

ROOT = Path(__file__).parents[1]
# Told of a run: its fields, times and commands, and pages made from what is compared.
NOT_COMPARED = {"manifest.json", "timings.jsonl", "commands.jsonl", "begun.json", ".lock"}
REPORTED = {"scores.csv", "summary.json"}
KINDS = ("rows", "weights", "scores", "report", "other")


def kind_of(path: Path) -> str | None:
    """Which column of the table a file counts in; None: it is not compared."""
    if path.name in NOT_COMPARED or path == Path("config.json"):
        return None
    if ".array_record-" in path.name:  # never twice the same; digest.json tells its content
        return None
    if path.parts[0] == "report":
        return "report" if path.name in REPORTED else None
    if path.suffix == ".safetensors":
        return "weights"
    if path.parts[0] in ("generate", "filter"):
        return "rows"
    return "scores" if path.name in ("scores.json", "answers.jsonl") else "other"


def contents(workdir: Path, name: Path) -> dict[str, object]:
    """Name -> what must be equal: the leaves of a file of weights, or the bytes of another file.

    Adapters name the base of their own work directory, whose path is left out.
    """
    content = (workdir / name).read_bytes()
    if name.suffix != ".safetensors":
        return {"": content.replace(str(workdir).encode(), b"")}
    leaves = safetensors.deserialize(content)
    return {name: (leaf["dtype"], leaf["shape"], bytes(leaf["data"])) for name, leaf in leaves}


def differences(before: Path, now: Path) -> Iterator[tuple[str, str | None]]:
    """(kind, what differs or None) for every file of two work directories, and every leaf."""
    found = [
        {p.relative_to(side) for p in side.rglob("*") if p.is_file()} for side in (before, now)
    ]
    for path in sorted(found[0] | found[1]):
        kind = kind_of(path)
        if kind is None:
            continue
        if path not in found[0] or path not in found[1]:
            yield kind, f"{path} is only in {'the tree' if path in found[1] else 'the commit'}"
            continue
        one, other = contents(before, path), contents(now, path)
        for name in sorted(one.keys() | other.keys()):
            equal = one.get(name) == other.get(name)
            yield kind, None if equal else f"{path} {name}".rstrip()


def run(tree: Path, name: str, workdir: Path) -> None:
    """Brings the smoke form of a config to its report; what it prints goes into a log.

    Raises:
      SystemExit: it failed; the log is named.
    """
    log = workdir.with_suffix(".log")
    command = [sys.executable, "-m", "subjax.main", f"--config=configs/{name}.py:smoke"]
    # Alone on the path, so that each side imports its own code whatever is installed.
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    with log.open("w") as said:
        done = subprocess.run(
            [*command, f"--workdir={workdir}"],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        sys.exit(f"{name} failed in {tree} with code {done.returncode}: see {log}")


@contextlib.contextmanager
def checked_out(commit: str, where: Path) -> Iterator[Path]:
    """A worktree of the commit, for as long as it is needed."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(where), commit], check=True)
    try:
        yield where
    finally:
        subprocess.run([*git, "remove", "--force", str(where)], check=True)


def main() -> None:
    """Prints a line for each config and every difference; exit code 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit", help="what it is compared with")
    parser.add_argument("names", nargs="*", help="names of configs; default all")
    parser.add_argument("--out", type=Path, help="keeps the work directories; default a temporary")
    args = parser.parse_args()
    names = args.names or sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    with contextlib.ExitStack() as stack:
        out = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pin-")))
        tree = stack.enter_context(checked_out(args.commit, out / "tree"))
        print("config".ljust(20), *(kind.rjust(8) for kind in KINDS), "  equal", flush=True)
        differ = []
        for name in names:
            sides = [out / name / side for side in ("before", "now")]
            for root, workdir in zip((tree, ROOT), sides, strict=True):
                workdir.parent.mkdir(parents=True, exist_ok=True)
                run(root, name, workdir)
            compared = list(differences(*sides))
            counts = Counter(kind for kind, _ in compared)
            found = [told for _, told in compared if told]
            columns = (str(counts[kind]).rjust(8) for kind in KINDS)
            print(name.ljust(20), *columns, "  no" if found else "  yes", flush=True)
            differ += [f"{name}: {told}" for told in found]
        print(*itertools.islice(differ, 40), sep="\n")
        if differ:
            sys.exit(f"{len(differ)} things differ")


if __name__ == "__main__":
    main()
