"""Checks of checkpoints, prompts and rows before any device work, to find errors early."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from subjax.nn import transformer
from subjax.pipeline import asking
from subjax.pipeline.stages import base, filter, finetune, generate, lessons, teacher
from subjax.planning import placement
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
from subjax.tokens.tokenizer import Tokenizer

Asked = dict[asking.Fields, asking.Asked]


def check(
    planned: Sequence[Unit], todo: Sequence[Unit], workdir: Path, mesh: Mesh, max_unsharded: float
) -> None:
    """Checks the bases and the given teachers that a run reads, once for each row.

    Args:
      planned: every unit of the config.
      todo: those that this run makes.
      workdir: of the run.
      mesh: over which bases will lie.
      max_unsharded: share of a base that may lie whole on every device.

    Raises:
      ValueError: a checkpoint is damaged, not supported, or not the one that the run began with;
        too much of a base is left unsharded; candidates overlap; a prompt, a lesson of a teacher
        or a row of a file does not fit.
    """
    by_path = {unit.path: unit for unit in planned}
    _check_files(by_path, todo)
    roles = ("teacher", "control", "judge")
    taught = [by_path[unit.inputs[role]] for unit in todo for role in roles if role in unit.inputs]
    reading = [*taught, *todo]
    of_bases, of_given = _asked(by_path, reading)
    found = _check_bases(by_path, reading, of_bases, workdir, mesh, max_unsharded)
    rows = {
        unit.row: by_path[unit.inputs["base"]].row
        for unit in reading
        if unit.stage == "teacher" and teachers.of_row(unit.fields["row"]).outside
    }
    for row, base_row in rows.items():
        lineages = _lineages(by_path, "teacher", row, workdir)
        written = of_given.get(row, {})
        arch, words, directory = found[base_row]
        teacher.check(*lineages, workdir, arch, words, directory, asked=written)
    for unit in todo:
        if unit.stage in ("teacher", "finetune"):
            _check_room(unit, found[by_path[unit.inputs["base"]].row].arch.max_positions)
        if unit.stage == "finetune":
            base = found[by_path[unit.inputs["base"]].row]
            finetune.targets_of(unit).check(base.words)
            finetune.check_start(unit, base.arch)
    _check_lessons(by_path, todo, {row: one.words for row, one in found.items()})


def _check_room(unit: Unit, max_positions: int) -> None:
    """Whether rows that are learned may be longer than what the base was made for."""
    table, row = ("teachers" if unit.stage == "teacher" else "arms"), unit.fields["row"]
    learns = unit.stage == "finetune" or teachers.of_row(row).learns
    if learns and row["num_tokens"] > max_positions:
        raise ValueError(
            f"config.{table}.{unit.row}.num_tokens is {row['num_tokens']}, and its base was made "
            f"for texts of at most {max_positions}: lower it"
        )


def _check_lessons(
    by_path: Mapping[str, Unit], todo: Sequence[Unit], words: Mapping[str, Tokenizer]
) -> None:
    """Checks what is learned as far as it is known before anything is written.

    Args:
      by_path: every unit of the config.
      todo: those that this run makes.
      words: row of `bases` -> tokenizer.
    """
    sizes: dict[tuple[str, str], lessons.Sizes] = {}

    def read_by(unit: Unit, system: str) -> lessons.Sizes:
        key = by_path[unit.inputs["base"]].row, system
        return sizes.setdefault(key, lessons.Sizes(words[key[0]], system))

    for unit in todo:
        row = unit.fields.get("row", {})
        if unit.stage == "teacher" and teachers.of_row(row).learns:
            teacher.check_lessons(unit, read_by(unit, row["system_prompt"]))
    students: dict[str, list[Unit]] = {}
    for unit in todo:
        if unit.stage == "finetune":
            students.setdefault(unit.row, []).append(unit)
    for units in students.values():
        unit = units[0]
        filters = [by_path[path] for path in dict.fromkeys(u.inputs["filter"] for u in units)]
        written = by_path[filters[0].inputs["generate"]]
        kind = kinds.of_row(written.fields["row"])
        if not kind.from_file:
            continue
        theirs, read = None, kind.rows(written.with_files("row"))
        rows = filter.of_file(filters, kind, read)
        taught_by = by_path[unit.inputs["teacher"]] if "teacher" in unit.inputs else None
        # A teacher that is given may read by a tokenizer of its own.
        if taught_by and not teachers.of_row(taught_by.fields["row"]).outside:
            theirs = read_by(taught_by, unit.fields["teacher_system_prompt"])
        ours = read_by(unit, unit.fields["row"]["system_prompt"])
        finetune.check_rows(unit, generate.source(written), list(rows), ours, theirs)


def _asked(
    by_path: Mapping[str, Unit], reading: Sequence[Unit]
) -> tuple[dict[str, Asked], dict[str, Asked]]:
    """What models are asked, in all lineages, by row of `bases`; by row of `teachers` likewise.

    The second is of teachers that are given, which may have their own tokenizer.
    """
    of_bases: dict[str, Asked] = {}
    of_given: dict[str, Asked] = {}
    drawn: dict[str, list[str]] = {}  # data sets of one kind share their prompts

    def told(unit: Unit) -> Asked:
        """What the model is told that a unit is about: its teacher's, or one on its base."""
        path = unit.inputs.get("teacher", "") if unit.stage != "finetune" else ""
        return told_by(path or unit.inputs["base"])

    def told_by(path: str) -> Asked:
        """What a teacher or a base is told."""
        unit = by_path[path]
        if unit.stage == "base":
            return of_bases.setdefault(unit.row, {})
        if teachers.of_row(unit.fields["row"]).outside:
            return of_given.setdefault(unit.row, {})
        return told_by(unit.inputs["base"])

    for unit in reading:
        if unit.stage == "teacher" and teachers.of_row(unit.fields["row"]).learns:
            table = f"config.teachers.{unit.row}"
            first = [prompt for prompt, _ in teacher.lessons_of(unit)[:1]]
            system = unit.fields["row"]["system_prompt"]
            told(unit)[f"{table}.system_prompt", table] = asking.Asked(first, system)
        elif unit.stage == "evaluate" and "generate" in unit.inputs:
            written = by_path[unit.inputs["generate"]]
            first = generate.prompts(written)[:1]
            of_base = of_bases.setdefault(by_path[unit.inputs["base"]].row, {})
            field = unit.settings["system_field"]
            of_base[field, field.rpartition(".")[0]] = asking.Asked(
                first, unit.fields["systems"][BASE]
            )
            for model, one in _of_eval(unit, _rows_like(written, first)):
                # By the eval, since a context that it made is no system prompt of the config.
                table = f"config.evals.{unit.row.partition('/')[0]}"
                asked = of_base if model == BASE else told(unit)
                asked[table, table] = _both(asked.get((table, table), one), one)
        elif unit.stage == "evaluate":
            table = f"config.evals.{unit.row.partition('/')[0]}"
            for model, one in _of_eval(unit, {}):
                if model == JUDGE:
                    asked = told_by(unit.inputs["judge"])
                    fields = unit.settings["judge_field"], f"{table}.judge"
                else:
                    asked, fields = told(unit), (unit.settings["system_field"], table)
                asked[fields] = _both(asked.get(fields, one), one)
        elif unit.stage == "generate":
            row, table = unit.with_files("row"), f"config.datasets.{unit.row}"
            key = artifacts.dumps(generate.drawn_from(unit))
            prompts = drawn[key] if key in drawn else drawn.setdefault(key, generate.prompts(unit))
            if kinds.of_row(row).from_file:
                continue
            field, of_teacher = (f"{table}.kind", table), told(unit)
            writer = f"config.teachers.{by_path[unit.inputs['teacher']].row}"
            # Without a prompt, so that what is refused is its system prompt.
            of_teacher[f"{writer}.system_prompt", writer] = asking.Asked(
                [""], unit.fields["system_prompt"]
            )
            more = of_teacher[field].prompts if field in of_teacher else []
            of_teacher[field] = asking.Asked(
                [*more, *prompts],
                unit.fields["system_prompt"],
                row["prompt_tokens"],
                row,
                new_tokens=row["max_new_tokens"],
            )
    return of_bases, of_given


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


def _check_files(by_path: Mapping[str, Unit], todo: Sequence[Unit]) -> None:
    """Reads the files of rows: each row is sound, and data sets to be compared share prompts."""
    found = {
        unit.row: generate.prompts(unit)
        for unit in {u.row: u for u in todo if u.stage == "generate"}.values()
        if kinds.of_row(unit.fields["row"]).from_file
    }
    for unit in {u.row: u for u in todo if u.stage == "filter"}.values():
        for role, path in unit.inputs.items():
            other, ours = by_path[path], by_path[unit.inputs["generate"]]
            if role.startswith("common/") and {other.row, ours.row} & found.keys():
                sets = [found.get(u.row) or generate.prompts(u) for u in (ours, other)]
                filter.check_comparable(unit.row, other.row, *sets)


def _lineages(
    by_path: Mapping[str, Unit], stage: str, row: str, workdir: Path
) -> tuple[Unit, list[Unit]]:
    """One lineage of a row, if possible one that is not done; and all that are done."""
    alike = [unit for unit in by_path.values() if (unit.stage, unit.row) == (stage, row)]
    finished = [unit for unit in alike if artifacts.read_manifest(workdir, unit)]
    return next((unit for unit in alike if unit not in finished), alike[0]), finished


def _check_bases(
    by_path: Mapping[str, Unit],
    reading: Sequence[Unit],
    asked: Mapping[str, Asked],
    workdir: Path,
    mesh: Mesh,
    max_unsharded: float,
) -> dict[str, base.Found]:
    """Checks each base with all that models on it will be asked; row -> what is known of it."""
    read = [by_path[unit.inputs.get("base", unit.path)] for unit in reading]
    found = {}
    for row in dict.fromkeys(unit.row for unit in read if unit.stage == "base"):
        unit, finished = _lineages(by_path, "base", row, workdir)
        found[row] = base.check(unit, finished, workdir, asked.get(row, {}))
        params = transformer.abstract_params(found[row].arch)
        placement.check(f"config.bases.{row}", params, mesh, max_unsharded)
    return found
