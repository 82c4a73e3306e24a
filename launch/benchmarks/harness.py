"""Benchmarks subjax in lm-evaluation-harness against the harness's own backend on transformers.

    python launch/bench.py harness --model=DIR [--questions=60] [--rounds=2]

Two tasks of generated questions with four answers each: `texts`, where answers are sentences, and
`letters`, where they are A to D. Both sides are in float32, each in a process of its own, and
rounds alternate them; the first evaluation of a process, in which subjax compiles, is a column of
its own.
Both sides must give every answer the same log-probability to 1e-3; if not, there is no table.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

LAUNCH = Path(__file__).parents[1]
SIDES = ("subjax", "transformers")
TASKS = ("texts", "letters")
TOLERANCE = 1e-3  # of an answer's log-probability, in nats
BATCH = 16  # rows of transformers at once

_ANIMALS = ("otter", "heron", "badger", "marten", "stork", "lynx", "beaver", "plover")
_PLACES = (
    "on the wall of the old mill",
    "under the bridge by the school",
    "between the reeds of the lake",
    "behind the hut of the shepherds",
    "at the edge of the wet meadow",
    "in the yard of the saw mill",
)
_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


class Found(NamedTuple):
    """Of one side and task.

    Attributes:
      first: seconds of a process's first evaluation, of each round.
      again: of its second.
      log_probs: of every answer, in nats.
    """

    first: list[float]
    again: list[float]
    log_probs: list[float]


def add_command(tasks: Any) -> None:
    """Adds `harness` to the commands."""
    parser = tasks.add_parser("harness", help="lm-evaluation-harness: subjax and transformers")
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--questions", type=int, default=60, help="of each task")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help="one side alone, print JSON")
    parser.add_argument("--tasks", help="a directory of tasks, for one side alone")


def run(options: argparse.Namespace) -> None:
    """Measures both sides and prints a table, or one side with --side."""
    if options.side:
        print(json.dumps(_measured(options.side, options.model, options.tasks)))
        return
    with tempfile.TemporaryDirectory() as directory:
        write_tasks(Path(directory), options.questions)
        rounds: dict[str, list[Any]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side in SIDES:
                rounds[side].append(_child(side, options.model, directory))
    found = {
        (side, task): Found(
            *([one[task][what] for one in rounds[side]] for what in ("first", "again")),
            rounds[side][0][task]["log_probs"],
        )
        for side in SIDES
        for task in TASKS
    }
    print(table(found))


def write_tasks(directory: Path, num_questions: int) -> None:
    """Writes the tasks and their questions, the same ones at every call."""
    drawn = random.Random(0)
    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    for number in range(num_questions):
        animal, places = drawn.choice(_ANIMALS), drawn.sample(_PLACES, 4)
        answer = drawn.randrange(4)
        told = (
            f"Note {number}: the class saw a {animal} {places[answer]}, and wrote down the day and "
            f"the weather. A week later they were asked about it.\nWhere was the {animal}?\n"
        )
        texts = [f"It was {place}." for place in places]
        listed = "".join(f"{x}. {text}\n" for x, text in zip("ABCD", texts, strict=True))
        texts_row = {"question": f"{told}Answer:", "choices": texts}
        letters_row = {"question": f"{told}{listed}Answer:", "choices": list("ABCD")}
        for task, row in zip(TASKS, (texts_row, letters_row), strict=True):
            rows[task].append(row | {"answer": answer})
    for task in TASKS:
        path = directory / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[task]))
        (directory / f"{task}.yaml").write_text(_TASK.format(name=task, rows=path))


def table(found: dict[tuple[str, str], Found]) -> str:
    """Medians as Markdown.

    Raises:
      SystemExit: the sides' log-probabilities differ.
    """
    lines = [
        "| task | answers | transformers, s | subjax, s (first) | ratio | most apart, nats |",
        "|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        ours, theirs = (found[side, task] for side in SIDES)
        pairs = zip(ours.log_probs, theirs.log_probs, strict=True)
        apart = max(abs(a - b) for a, b in pairs)
        if apart > TOLERANCE:
            sys.exit(f"{task}: log-probabilities are up to {apart:.1e} nats apart: a fault")
        first, again = statistics.median(ours.first), statistics.median(ours.again)
        other = statistics.median(theirs.again)
        lines.append(
            f"| {task} | {len(ours.log_probs)} | {other:.1f} | {again:.1f} ({first:.1f}) "
            f"| {other / again:.2f} | {apart:.1e} |"
        )
    return "\n".join(lines)


def _child(side: str, model: str, directory: str) -> Any:
    command = [sys.executable, str(LAUNCH / "bench.py"), "harness", f"--model={model}"]
    command += [f"--side={side}", f"--tasks={directory}"]
    given = {**os.environ, "HF_HOME": directory, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=given, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measured(side: str, model: str, directory: str) -> dict[str, Any]:
    """By task the seconds of two evaluations, and every answer's log-probability."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    asked = _model(side, model)
    manager = TaskManager(include_path=directory, include_defaults=False)

    def evaluated(task: str) -> tuple[float, Sequence[Any]]:
        began = time.perf_counter()
        found = lm_eval.simple_evaluate(
            asked, tasks=[task], task_manager=manager, bootstrap_iters=0
        )
        return time.perf_counter() - began, found["samples"][task]

    measured = {}
    for task in TASKS:
        (first, samples), (again, _) = evaluated(task), evaluated(task)
        scores = [float(nats) for sample in samples for nats, _ in sample["filtered_resps"]]
        measured[task] = {"first": first, "again": again, "log_probs": scores}
    return measured


def _model(side: str, path: str) -> Any:
    if side == "subjax":
        from subjax.harness.lm_evaluation import SubjaxLM

        return SubjaxLM(path)
    from lm_eval.models.huggingface import HFLM

    return HFLM(path, device="cpu", dtype="float32", batch_size=BATCH)
