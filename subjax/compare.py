"""Compares finished runs: pools those of one config, and sets the others side by side.

    python -m subjax.compare runs/quickstart runs/quickstart_confirm
    python -m subjax.compare runs/a runs/b --out=runs/a_and_b

A run is a work directory, or the `report/scores.jsonl` of one, which is all that is read. Runs
whose configs differ in nothing but lineages, names and devices are pooled. Prints what the configs
differ in and a table of the contrasts that all runs have, with the differences between runs: within
lineages where two runs have the same ones, otherwise by Welch's test. --out also gets
comparison.json, table.md and figure.png, a forest plot.
"""

from collections.abc import Sequence
from pathlib import Path

from subjax.pipeline import experiments
from subjax.report import comparison, figures, read, score_files
from subjax.report.comparison import Run
from subjax.report.results import STATUSES, Record, Results
from subjax.report.score_files import ScoreFile
from subjax.runtime import artifacts, command_line

_MOST_SHOWN = 12  # fields of configs that differ


def compare(paths: Sequence[Path]) -> tuple[list[Run], str]:
    """Reads runs and pools those of one config.

    Args:
      paths: work directories or their score files.

    Returns:
      The runs that are left, and what their configs differ in, as text.

    Raises:
      ValueError: a path is no run, is given twice, or has scores of other files in the same place.
    """
    labels = _labels(paths)
    alike: dict[str, list[tuple[str, ScoreFile]]] = {}
    for label, path in zip(labels, paths, strict=True):
        file = score_files.read(_file(path))
        same = artifacts.dumps(comparison.settings(file))
        alike.setdefault(same, []).append((label, file))
    runs = []
    for members in alike.values():
        names, files = zip(*members, strict=True)
        file = comparison.pool(names, files)
        runs.append(Run(" + ".join(names), file, _results(file)))
    return runs, _differences(runs)


def _file(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} does not exist: give work directories, or their score files")
    if path.is_file():
        return path
    file = path / "report" / score_files.NAME
    if not file.exists():
        raise ValueError(
            f"{path} has no report/{score_files.NAME}: run its config once more with this workdir, "
            "which reports what is done"
        )
    return file


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-count:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise ValueError(f"a run is given twice among {', '.join(map(str, paths))}: give each one once")


def _results(file: ScoreFile) -> Results:
    """What a report needs, from scores alone."""
    scores: dict[tuple[str, str], dict[int, Sequence[Record]]] = {}
    for one in file.scored:
        scores.setdefault((one.eval, one.subject), {})[one.lineage] = one.records
    students = {one.lineage for one in file.scored if "/" not in one.subject}
    return Results(
        **read.of_config(experiments.of(file.config), file.config),
        status=STATUSES[0],
        status_reason="runs that were made before they were compared",
        lineages=tuple(sorted(students or {one.lineage for one in file.scored})),
        scores=scores,
        cautions=file.cautions,
    )


def _differences(runs: Sequence[Run]) -> str:
    texts = []
    for run in runs[1:]:
        found = comparison.differences(runs[0].file, run.file)
        width = max(len(name) for name, _, _ in found)
        texts.append(f"{runs[0].label} -> {run.label}:")
        texts += [f"  {name:{width}}  {a[:40]} -> {b[:40]}" for name, a, b in found[:_MOST_SHOWN]]
        if len(found) > _MOST_SHOWN:
            texts.append(f"  and {len(found) - _MOST_SHOWN} more fields")
    return "\n".join(texts)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; every error that a user can mend is one line on stderr and exit code 1."""
    parser = command_line.ArgumentParser("subjax.compare", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="work directories or score files")
    parser.add_argument("--out", type=Path, help="a folder for the table and the figures")
    options = parser.parse_args(argv)
    try:
        runs, differing = compare(options.runs)
        contrasts = comparison.shared(runs)
        lines = comparison.lines(runs, contrasts)
        text = comparison.table(runs, lines)
        if options.out:
            artifacts.write_json(options.out / "comparison.json", lines)
            (options.out / "table.md").write_text(text)
            drawn = comparison.forest(runs, contrasts, lines, narrow=False)
            (options.out / "figure.png").write_bytes(figures.png(drawn))
            for name, drawn in comparison.heat_maps(runs, contrasts).items():
                (options.out / f"figure_{name}.png").write_bytes(figures.png(drawn))
    except (ValueError, OSError) as error:
        command_line.refuse(error, options.runs[0], str(options.runs[0]))
    if differing:
        print(differing + "\n")
    print(text)


if __name__ == "__main__":
    main()
