"""Writes configs/PLANS.md: every program of the list below, compiled by `python -m subjax.plan`.

    nice python launch/plans.py --workdir=runs/plans

Runs one command of `plan` at a time, each in a process of its own. The output of each command is
stored in the work directory; to resume, run the same command again. Delete a file there to compile
its programs again. The page is written after each command; rows of other programs are kept.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "configs" / "PLANS.md"
MODELS = ("qwen2_5_7b", "qwen2_5_72b", "qwen2_5_14b", "llama3_1_8b", "gemma3_4b")
# The paper's recipe, on the number of chips in its config.
PAPER = {
    "qwen2_5_7b": ("v5e:4x4", "v5p:2x2x4"),
    "qwen2_5_72b": ("v5e:16x16", "v5p:4x8x8"),
    "qwen2_5_14b": ("v5e:8x8", "v5p:4x4x4"),
    "llama3_1_8b": ("v5e:4x4", "v5p:2x2x4"),
    "gemma3_4b": ("v5e:4x4", "v5p:2x2x4"),
}


class Plan(NamedTuple):
    """One command.

    Attributes:
      form: argument of `configs/large.py:`.
      topology: chips.
      stages: stages whose programs are compiled.
    """

    form: str
    topology: str
    stages: str

    @property
    def command(self) -> list[str]:
        """The shell command, in the root of the repository."""
        return [
            *("python", "-m", "subjax.plan", "--table", "--nosearch", f"--stages={self.stages}"),
            *(f"--topology={self.topology}", f"--config=configs/large.py:{self.form}"),
        ]

    @property
    def key(self) -> tuple[str, str, str]:
        """The first cells of its rows: config, topology, stage."""
        words = [word for word in self.form.split(",") if "=" not in word]
        name = "large_smoke" if words == ["smoke"] else "_".join(words)
        return name, self.topology, self.stages


SMOKE = Plan("smoke", "v5e:2x2", "finetune")
PLANS = (
    *(
        Plan(f"{model},full,throughput,chips=256,lineages=1", topology, "finetune")
        for topology in ("v5p:4x8x8", "v5e:16x16")
        for model in MODELS
    ),
    Plan("qwen2_5_7b,full,throughput,chips=256,lineages=1", "v6e:16x16", "finetune"),
    *(
        Plan(f"{model},lineages=1", topology, "finetune")
        for model, topologies in PAPER.items()
        for topology in topologies
    ),
    Plan("qwen2_5_7b,population", "v5e:4x4", "finetune"),
    Plan("qwen2_5_72b,population", "v5e:16x16", "finetune"),
    *(
        Plan("qwen2_5_7b,lineages=1", topology, stages)
        for stages in ("generate", "evaluate")
        for topology in PAPER["qwen2_5_7b"]
    ),
    *(Plan("qwen2_5_72b,lineages=1", "v5e:16x16", stages) for stages in ("generate", "evaluate")),
    Plan("qwen2_5_72b,full,throughput,chips=256,lineages=1", "v5e:16x16", "generate"),
    SMOKE,
)
HEAD = """\
# What the TPU compiler says of the large configs

Compiled, never run: no TPU was at hand. Made by libtpu 0.0.52 and jax 0.10.2, whose extra
`jax[tpu]` brings libtpu 0.0.42 to a TPU, with

    python launch/plans.py

of which every row is one of what such a command prints:

    {command}

GB a chip count the base that a stage keeps beside the copy that it trains. The batch is of packed
rows, where rows are packed. The bound is of the formula that the command prints without `--table`;
padding counts as tokens, and that command prints its share. Without `--nosearch` it
also looks for the largest batch that fits, with up to five more compilations an update. CPU s is
the CPU time that compiling took, over all threads, on a machine that is not the same for all rows.
`large_smoke` takes one chip of its four.

"""


def compile_rows(plan: Plan) -> list[str]:
    """Rows of the table that a command prints.

    Raises:
      RuntimeError: it printed no rows, or not all.
    """
    command = [sys.executable, *plan.command[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = done.stdout.splitlines()[2:]
    # A program that does not fit gives a row and an exit code; a crash of the compiler omits rows.
    whole = done.returncode == 0 or (done.returncode == 1 and "does not fit" in done.stderr)
    if not rows or not whole:
        raise RuntimeError(f"{' '.join(plan.command)} did not end well: {done.stderr[-2000:]}")
    return rows


def key(row: str) -> tuple[str, str, str]:
    """Config, topology and stage of a row."""
    config, topology, program = (cell.strip() for cell in row.split("|")[1:4])
    return config, topology, program.split()[0]


def rows_of(text: str) -> list[str]:
    """Rows of a page's table."""
    return re.findall(r"^\| \w+ \| \w+:.*$", text, re.MULTILINE)


def page(rows: Iterable[str]) -> str:
    """The page with these rows, in the order of `PLANS`; it names the plans without rows."""
    rows = list(rows)
    body, missing = [], []
    for plan in PLANS:
        own = [row for row in rows if key(row) == plan.key]
        body += own
        if not own:
            missing.append(f"`{plan.form}` {plan.stages} on {plan.topology}")
    columns = (
        *("config", "topology", "program", "batch", "GB a chip", "fits"),
        *("MFU bound", "limit", "CPU s"),
    )
    table = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *body]
    tail = f"\nNot compiled yet: {'; '.join(missing)}.\n" if missing else ""
    return HEAD.format(command=" ".join(PLANS[0].command)) + "\n".join(table) + "\n" + tail


def main() -> None:
    """Compiles the plans that the work directory lacks, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "plans")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    for plan in PLANS:
        kept = options.workdir / (re.sub(r"[^\w.]+", "-", "-".join(plan)) + ".json")
        if not kept.exists():
            print(f"compiling {' '.join(plan)}", flush=True)
            # Read back whole or not at all.
            part = kept.with_suffix(".part")
            part.write_text(json.dumps({"command": plan.command, "rows": compile_rows(plan)}))
            part.rename(kept)
        new = json.loads(kept.read_text("utf-8"))["rows"]
        old = [row for row in rows_of(PAGE.read_text("utf-8")) if key(row) != plan.key]
        PAGE.write_text(page([*old, *new]), "utf-8")


if __name__ == "__main__":
    main()
