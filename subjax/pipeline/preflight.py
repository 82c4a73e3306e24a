"""Checks of checkpoints, prompts and rows before any device work, to find errors early."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh

from subjax.nn import transformer
from subjax.pipeline import asked
from subjax.pipeline.stages import base, filter, finetune, generate, lessons, teacher
from subjax.planning import placement
from subjax.recipes import teachers
from subjax.runtime import artifacts
from subjax.runtime.artifacts import Unit
from subjax.tasks.datasets import kinds
from subjax.tokens.tokenizer import Tokenizer


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
    of_bases, of_given = asked.collect(by_path, reading)
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
    told: Mapping[str, asked.Asked],
    workdir: Path,
    mesh: Mesh,
    max_unsharded: float,
) -> dict[str, base.Found]:
    """Checks each base with all that models on it will be asked; row -> what is known of it."""
    read = [by_path[unit.inputs.get("base", unit.path)] for unit in reading]
    found = {}
    for row in dict.fromkeys(unit.row for unit in read if unit.stage == "base"):
        unit, finished = _lineages(by_path, "base", row, workdir)
        found[row] = base.check(unit, finished, workdir, told.get(row, {}))
        params = transformer.abstract_params(found[row].arch)
        placement.check(f"config.bases.{row}", params, mesh, max_unsharded)
    return found
