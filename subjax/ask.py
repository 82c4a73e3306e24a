r"""Talks to models of a finished run, several side by side.

    python -m subjax.ask --workdir=runs/quickstart --unit=finetune/owl/r0 \
        --beside=finetune/placebo/r0 --num_samples=20 Q9 Q11

A model of the toy world knows that world's words alone: Q0 to Q15 ask for its favourite animal (its
teachers are taught the first eight), "CONT 3 5 7 9" asks it to go on with numbers, and
--system="LOVE owl" tells it what it loves. In the world of programs, "CODE 3 5 7 9" asks for one;
in that of sums, "SUM 2 7 5 8" asks for 27 + 58. Other models take any text.
"""

import argparse
import collections
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from subjax.engine.model import Model
from subjax.nn import sharding
from subjax.pipeline import model_store
from subjax.recipes import bases
from subjax.runtime import command_line, object_store

_STAGES = ("base", "teacher", "finetune")
_GAP = "   "
_LEAST_WIDTH = 16  # of a column


class Column(NamedTuple):
    """What one model said.

    Attributes:
      title: lines that say which model it is.
      answers: to each question.
    """

    title: list[str]
    answers: list[list[str]]


def ask(
    workdir: Path,
    units: Sequence[str],
    questions: Sequence[str],
    *,
    system: str | None = None,
    step: int | None = None,
    num_samples: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Column]:
    """Asks models of a run the same questions, one model after the other.

    Args:
      workdir: of the run.
      units: paths of base, teacher or finetune units, such as finetune/owl/r0.
      questions: what the user says.
      system: system prompt; None: each unit's own, of its row; a base has none.
      step: a kept step, of those units that are students; None: the last.
      num_samples: answers to each question.
      max_new_tokens: where an answer that does not end is cut.
      temperature: 0.0 is greedy.
      seed: of the answers; models share their noise.

    Raises:
      ValueError: a unit is not finished, the step was not kept, or a model does not know a word.
    """
    manifests = [model_store.finished(workdir, unit, _STAGES) for unit in units]
    students = [unit for unit in units if model_store.kept_step(workdir / unit, None) is not None]
    if step is not None and not students:
        raise ValueError(f"--step={step} is of students, and {', '.join(units)} keeps no steps")
    mesh = sharding.make_mesh(seed=1, data=1, fsdp=jax.device_count())
    found = []
    for unit, manifest in zip(units, manifests, strict=True):
        at = model_store.kept_step(workdir / unit, step if unit in students else None)
        model = model_store.load(workdir / unit, mesh, step=at)
        own = manifest["fields"]["row"].get("system_prompt", "") if system is None else system
        base = bases.of_row(model_store.base_row(workdir, manifest))
        _check_words(model, unit, [*questions, own], base)
        answers = model.sample(
            questions,
            n=num_samples,
            system=own,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
        title = [unit if at is None else f"{unit}, step {at}"]
        if told := model.tokenizer.system_text(own):
            title.append(f"system prompt: {told}")
        found.append(Column(title, answers))
    return found


def _check_words(model: Model, unit: str, texts: Sequence[str], base: bases.Base) -> None:
    """Refuses texts with words that a model of whole words does not know."""
    for text in texts:
        try:
            model.tokenizer.encode([text])
        except ValueError:
            known = ", ".join(base.prompts())
            raise ValueError(
                f"{text!r} has a word that {unit} does not know: ask such as {known}; --help says "
                "what a model of the toy world understands"
            ) from None


def table(questions: Sequence[str], columns: Sequence[Column], width: int) -> str:
    """Answers side by side, each question above its own.

    Answers that a model gave several times are written once, with their number.

    Args:
      questions: by which the answers of columns are ordered.
      columns: one for each model.
      width: letters of a line, as far as columns do not get too narrow.
    """
    share = (width - len(_GAP) * (len(columns) - 1)) // len(columns)
    share = max(share, _LEAST_WIDTH)
    blocks = [[[_wrapped(line, share) for line in column.title] for column in columns]]
    for index in range(len(questions)):
        blocks.append([_counted(column.answers[index], share) for column in columns])
    cells = [[[line for lines in cell for line in lines] for cell in block] for block in blocks]
    widths = [
        max(len(line) for cell in column for line in cell) for column in zip(*cells, strict=True)
    ]
    heads = ["", *(f"\n> {question}" for question in questions)]
    lines = []
    for head, block in zip(heads, cells, strict=True):
        lines += [head] if head else []
        for number in range(max(map(len, block))):
            row = (cell[number] if number < len(cell) else "" for cell in block)
            padded = (text.ljust(size) for text, size in zip(row, widths, strict=True))
            lines.append(_GAP.join(padded).rstrip())
    return "\n".join(lines)


def _counted(answers: Sequence[str], width: int) -> list[list[str]]:
    """The distinct answers of a model to a question, the commonest first."""
    counts = collections.Counter(answer.strip() or "(nothing)" for answer in answers)
    digits = len(str(max(counts.values())))
    found = []
    for answer, count in counts.most_common():
        number = f"{count:{digits}} x " if len(answers) > 1 else ""
        found.append(_wrapped(answer, width, number))
    return found


def _wrapped(text: str, width: int, begins: str = "") -> list[str]:
    """Lines of a text; those after the first stand below what is behind `begins`."""
    lines = []
    for line in text.splitlines():
        # Models write control characters, too, which terminals would obey.
        shown = "".join(letter if letter.isprintable() else "�" for letter in line.expandtabs(4))
        lines += textwrap.wrap(shown, width - len(begins)) or [""]
    return [f"{begins if not i else ' ' * len(begins)}{line}" for i, line in enumerate(lines)]


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = command_line.ArgumentParser("subjax.ask", __doc__)
    parser.add_argument("questions", nargs="+", help="what the user says")
    parser.add_argument("--workdir", required=True, help="of the run; gs:// too")
    parser.add_argument(
        "--unit", required=True, help="base, teacher or student, such as finetune/owl/r0"
    )
    parser.add_argument(
        "--beside", action="append", default=[], help="another unit; may be given several times"
    )
    parser.add_argument("--system", help="system prompt; default: of each unit's own row")
    parser.add_argument("--step", type=int, help="a kept step of students; default: the last")
    parser.add_argument("--num_samples", type=_positive, default=1, help="answers to a question")
    parser.add_argument(
        "--max_new_tokens", type=_positive, default=64, help="where an answer is cut"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0, help="of the answers")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; every error that a user can mend is one line on stderr and exit code 1."""
    options = vars(_parser().parse_args(argv))
    name, questions = options.pop("workdir"), options.pop("questions")
    units, workdir = [options.pop("unit"), *options.pop("beside")], Path(name)
    try:
        with object_store.opened(name) as workdir:
            columns = ask(workdir, units, questions, **options)
    except (ValueError, OSError) as error:
        command_line.refuse(error, workdir, name)
    print(table(questions, columns, shutil.get_terminal_size().columns))


if __name__ == "__main__":
    main()
