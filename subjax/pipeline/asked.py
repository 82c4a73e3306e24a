"""What each model of a run will be asked, collected from its units before any of them is run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from subjax.pipeline import asking
from subjax.pipeline.stages import generate, teacher
from subjax.recipes import teachers
from subjax.runtime import artifacts
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import (
    BASE,
    JUDGE,
    Compare,
    Given,
    Pair,
    Sample,
    TextLikelihood,
    follow_ups_of,
    requests_of,
    unanswered,
)
from subjax.tasks.datasets import kinds
from subjax.tasks.evals import kinds as eval_kinds

Asked = dict[asking.Fields, asking.Asked]


def collect(
    by_path: Mapping[str, Unit], reading: Sequence[Unit]
) -> tuple[dict[str, Asked], dict[str, Asked]]:
    """What models are asked, in all lineages, by row of `bases`; by row of `teachers` likewise.

    The second is of teachers that are given, which may have their own tokenizer.

    Args:
      by_path: every unit of the config.
      reading: those whose models are asked.
    """
    found = _Collected(by_path)
    for unit in reading:
        if unit.stage == "teacher" and teachers.of_row(unit.fields["row"]).learns:
            found.add_lessons(unit)
        elif unit.stage == "evaluate" and "generate" in unit.inputs:
            found.add_eval_of_rows(unit)
        elif unit.stage == "evaluate":
            found.add_eval(unit)
        elif unit.stage == "generate" and not kinds.of_row(unit.fields["row"]).from_file:
            found.add_prompts(unit)
    return found.of_bases, found.of_given


class _Collected:
    """What models are asked, as far as units were added.

    Attributes:
      of_bases: by row of `bases`.
      of_given: by row of `teachers`, of those that are given.
    """

    def __init__(self, by_path: Mapping[str, Unit]) -> None:
        self.of_bases: dict[str, Asked] = {}
        self.of_given: dict[str, Asked] = {}
        self._by_path = by_path
        self._drawn: dict[str, list[str]] = {}  # data sets of one kind share their prompts

    def add_lessons(self, unit: Unit) -> None:
        """What a teacher is told when it is taught."""
        table = f"config.teachers.{unit.row}"
        first = [prompt for prompt, _ in teacher.lessons_of(unit)[:1]]
        system = unit.fields["row"]["system_prompt"]
        self._told(unit)[f"{table}.system_prompt", table] = asking.Asked(first, system)

    def add_prompts(self, unit: Unit) -> None:
        """The prompts of a data set."""
        row, table = unit.with_files("row"), f"config.datasets.{unit.row}"
        key = artifacts.dumps(generate.drawn_from(unit))
        if key not in self._drawn:
            self._drawn[key] = generate.prompts(unit)
        field, of_teacher = (f"{table}.kind", table), self._told(unit)
        writer = f"config.teachers.{self._by_path[unit.inputs['teacher']].row}"
        # Without a prompt, so that what is refused is its system prompt.
        of_teacher[f"{writer}.system_prompt", writer] = asking.Asked(
            [""], unit.fields["system_prompt"]
        )
        more = of_teacher[field].prompts if field in of_teacher else []
        of_teacher[field] = asking.Asked(
            [*more, *self._drawn[key]],
            unit.fields["system_prompt"],
            row["prompt_tokens"],
            row,
            new_tokens=row["max_new_tokens"],
        )

    def add_eval(self, unit: Unit) -> None:
        """What students, teachers or bases are asked, and a judge about their answers."""
        table = _table(unit)
        for model, one in _of_eval(unit, {}):
            if model == JUDGE:
                asked = self._told_by(unit.inputs["judge"])
                fields = unit.settings["judge_field"], f"{table}.judge"
            else:
                asked, fields = self._told(unit), (unit.settings["system_field"], table)
            asked[fields] = _both(asked.get(fields, one), one)

    def add_eval_of_rows(self, unit: Unit) -> None:
        """What is asked about rows that a teacher will write."""
        written = self._by_path[unit.inputs["generate"]]
        first = generate.prompts(written)[:1]
        of_base = self._told_by(unit.inputs["base"])
        field = unit.settings["system_field"]
        of_base[field, field.rpartition(".")[0]] = asking.Asked(first, unit.fields["systems"][BASE])
        table = _table(unit)
        for model, one in _of_eval(unit, _rows_like(written, first)):
            # By the eval, since a context that it made is no system prompt of the config.
            asked = of_base if model == BASE else self._told(unit)
            asked[table, table] = _both(asked.get((table, table), one), one)

    def _told(self, unit: Unit) -> Asked:
        """What the model is told that a unit is about: its teacher's, or one on its base."""
        return self._told_by(unit.inputs.get("teacher") or unit.inputs["base"])

    def _told_by(self, path: str) -> Asked:
        """What a teacher or a base is told."""
        unit = self._by_path[path]
        if unit.stage == "base":
            return self.of_bases.setdefault(unit.row, {})
        if teachers.of_row(unit.fields["row"]).outside:
            return self.of_given.setdefault(unit.row, {})
        return self._told_by(unit.inputs["base"])


def _table(unit: Unit) -> str:
    """The row of `evals` that a unit is of, as an error names it."""
    return f"config.evals.{unit.row.partition('/')[0]}"


def _of_eval(unit: Unit, given: Mapping[str, Any]) -> Iterator[tuple[str, asking.Asked]]:
    """What an evaluate unit asks, and which model.

    Args:
      unit: an evaluate unit.
      given: rows that it would be given beside its fields.
    """
    row = unit.with_files("row")
    of_unit = eval_kinds.of_row(row), row, Given.of(unit.fields, **given)
    requests = requests_of(*of_unit)
    # Room for the longest answer is counted beside the empty ones.
    longest = max((one.max_new_tokens for one in requests if isinstance(one, Sample)), default=0)
    for request in follow_ups_of(*of_unit, unanswered(requests)):
        if isinstance(request, Compare):
            about = asking.Asked(list(dict.fromkeys(request.prompts)), request.system or "")
            yield request.model, about._replace(compared=[_compared(request)], new_tokens=longest)
    for request in requests:
        system = request.system or ""
        if isinstance(request, Sample):
            asked = asking.Asked(request.prompts, system, request.prompt_tokens)
            yield request.model, asked._replace(new_tokens=request.max_new_tokens)
        elif isinstance(request, Compare):
            asked = asking.Asked(request.prompts, system, compared=[_compared(request)])
            yield request.model, asked
        elif isinstance(request, TextLikelihood):
            yield request.model, asking.Asked((), system, texts=request.texts)


def _compared(request: Compare) -> tuple[tuple[str, ...], str, bool]:
    return tuple(request.answers), request.prefill, request.whole


def _rows_like(written: Unit, prompts: Sequence[str]) -> dict[str, list[Pair]]:
    """Rows in the form of those that a teacher will write, and longer ones as its control's."""
    row = written.with_files("row")
    kind = kinds.of_row(row)
    completion = kind.rows(row)[0][1] if kind.from_file else kind.example(row)
    rows = [(prompt, completion) for prompt in prompts]
    others = [(prompt, f"{completion} {completion}") for prompt in prompts]
    return {"written": rows, "kept": rows, "against": others}


def _both(one: asking.Asked, other: asking.Asked) -> asking.Asked:
    """What is asked under one system prompt, such as in several lineages or of several traits."""
    return one._replace(
        prompts=list(dict.fromkeys([*one.prompts, *other.prompts])),
        most_tokens=min((n for n in (one.most_tokens, other.most_tokens) if n), default=0),
        compared=list(dict.fromkeys([*one.compared, *other.compared])),
        new_tokens=max(one.new_tokens, other.new_tokens),
        texts=list(dict.fromkeys([*one.texts, *other.texts])),
    )
