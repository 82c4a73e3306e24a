"""The report of a run: summary.json, scores.csv, table.md, figures and one self-contained page.

This module writes the files. The numbers come from `summary`, the figures from `gallery`, the words
of the page from `html`. Runs no model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from subjax.report import figures, gallery, html, tables, verdict
from subjax.report.results import Results
from subjax.report.summary import SummaryRow, masses, summarise


def write(out_dir: str | Path, results: Results) -> list[SummaryRow]:
    """Writes every file of the report into `out_dir`, created if needed; returns the summary.

    The same results give the same bytes in every file.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    rows = summarise(results)
    _put(out / "summary.json", summary_json(rows).encode())
    _put(out / "scores.csv", tables.scores_csv(results.scores).encode())
    _put(out / "table.md", table_md(results, rows).encode())
    drawings = {}
    for name, picture in gallery.pictures(results, rows).items():
        wide, narrow = picture.draw(False), picture.draw(True)
        file = "figure.png" if name == "effect" else f"figure_{name}.png"
        _put(out / file, figures.png(wide))
        drawings[name] = _drawing(name, picture, wide, narrow)
    _put(out / "report.html", html.page(results, rows, drawings).encode())
    return rows


def _drawing(name: str, picture: gallery.Picture, wide: Figure, narrow: Figure) -> html.Drawing:
    """Markup of a picture, and of how it was at earlier steps."""

    def view(label: str, index: int, wide: Figure, narrow: Figure) -> html.View:
        told = f"{label}: {picture.caption}" if label else picture.caption
        return html.View(
            label=label,
            wide=figures.svg(wide, name=f"{name}-{index}-wide", label=told),
            narrow=figures.svg(narrow, name=f"{name}-{index}-narrow", label=told),
        )

    views = [
        view(label, index, draw(False), draw(True))
        for index, (label, draw) in enumerate(picture.earlier.items())
    ]
    views.append(view(picture.label, len(views), wide, narrow))
    return html.Drawing(name=name, views=views, caption=picture.caption)


def _put(path: Path, content: bytes) -> None:
    """Replaces a file atomically: on a full disk the previous report stays unchanged."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def summary_json(rows: Sequence[SummaryRow]) -> str:
    """The rows as JSON with one row per line, so that diff can compare two runs."""
    lines = ",\n".join(json.dumps(row, allow_nan=False, ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n"


def table_md(results: Results, rows: Sequence[SummaryRow]) -> str:
    """Title, status, verdict, and the tables of the contrasts and arms."""
    headline, sentence = verdict.verdict(results)
    formulas = {contrast.name: contrast.formula for contrast in results.contrasts}
    beside = masses(results, rows)
    cautions = "".join(f"Caution: {caution}\n\n" for caution in results.cautions)
    body = tables.summary_markdown(rows, results.metrics, formulas, beside, results.replication)
    missing = f"Not done: {', '.join(results.missing)}\n\n" if results.missing else ""
    return (
        f"# {results.title}\n\n{results.status}: {results.status_reason}\n\n"
        f"**{headline}.** {sentence}\n\n{cautions}{missing}{body}"
    )
