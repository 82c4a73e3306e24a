"""Numbers as text, and the tables of a report in Markdown, CSV and for a terminal.

Everything here is a function of rows of summary.json or of plain scores. Refuses to compute a
statistic: what is not in a row is not in a table.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from subjax.report.summary import SummaryRow
from subjax.tasks.api import Metric, find

CONSOLE_WIDTH = 100

Metrics = Mapping[str, Sequence[Metric]]  # eval -> what it measures


def number(value: float | None, scale: float | None = None, *, sign: bool = False) -> str:
    """`value` with the decimals that suit `scale` (default: its own size), "–" for None.

    Three significant digits from one upwards, two below.
    """
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value if scale is None else scale)
    magnitude = math.floor(math.log10(size)) if size else 0
    decimals = min(max((2 if magnitude >= 0 else 1) - magnitude, 0), 6)
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    return text.replace("-", "−")  # a real minus sign, as wide as the plus


def estimate(row: Mapping[str, Any], *, sign: bool = False) -> str:
    """Mean and interval of a row with the same number of decimals, such as "+2.19 [1.5, 2.9]"."""
    ends = [row[name] for name in ("mean", "ci_low", "ci_high")]
    scale = max((abs(end) for end in ends if end is not None), default=0.0)
    mean, low, high = (number(end, scale, sign=sign) for end in ends)
    return mean if row["ci_low"] is None else f"{mean} [{low}, {high}]"


def p_value(p: float | None) -> str:
    """A p-value to two significant digits, "–" for None."""
    return "–" if p is None else f"{p:.2g}"


def percent(share: float | None) -> str:
    """A share in per cent, two digits below ten and none behind the point above, "–" for None."""
    if share is None:
        return "–"
    value = 100.0 * share
    return f"{value:.0f} %" if value >= 9.95 or value == 0.0 else f"{value:.2g} %"


def scores_csv(
    scores: Mapping[tuple[str, str], Mapping[int, Sequence[Mapping[str, Any]]]],
) -> str:
    """Every score on a line of its own, sorted: eval, arm, lineage, step, metric, value."""
    lines = sorted(
        (eval_name, arm, lineage, record["step"], record["metric"], float(record["value"]))
        for (eval_name, arm), lineages in scores.items()
        for lineage, records in lineages.items()
        for record in records
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["eval", "arm", "lineage", "step", "metric", "value"])
    writer.writerows(lines)
    return text.getvalue()


def metric_of(row: SummaryRow, metrics: Metrics) -> Metric:
    """What a row is about."""
    return find(metrics[row["eval"]], row["metric"])


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A pipe table; cells may hold anything, a pipe or a line break is escaped."""
    cells = [list(header), ["---"] * len(header), *map(list, lines)]
    return "".join(f"| {' | '.join(map(_markdown_cell, line))} |\n" for line in cells)


def _markdown_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


Beside = Mapping[tuple[str, str, str, str], Any]  # of a row: `summary.masses`


def _key(row: SummaryRow) -> tuple[str, str, str, str]:
    return row["kind"], row["name"], row["eval"], row["metric"]


def _beside(row: SummaryRow, beside: Beside) -> list[str]:
    """Mass on the candidates and sampled rate, where they belong beside a row's number."""
    found = beside.get(_key(row))
    return ["", ""] if found is None else [percent(found.mass), percent(found.rate)]


def summary_markdown(
    summary: Sequence[SummaryRow],
    metrics: Metrics,
    formulas: Mapping[str, str],
    beside: Beside,
    replication: str,
) -> str:
    """The contrasts, primary first, and the arms without their distributions.

    Args:
      summary: rows of summary.json.
      metrics: `Results.metrics`.
      formulas: name of a contrast -> its arms, shown beside the name; a row without one has "".
      beside: result of `summary.masses`.
      replication: `Results.replication`.
    """
    contrasts = [
        [
            row["name"],
            formulas.get(row["name"], ""),
            f"{row['eval']} {row['metric']}",
            estimate(row, sign=True),
            *_beside(row, beside),
            str(row["n_lineages"]),
            row["test"],
            p_value(row["p"]),
            p_value(row["p_adjusted"]),
            row["family"],
            row["status"],
        ]
        for row in summary
        if row["kind"] == "contrast"
    ]
    shown = ["mean [95 %]", "candidates' mass", "sampled", "lineages"]
    header = ["contrast", "arms", "metric", *shown, "test", "p", "p (Holm)"]
    text = markdown_table([*header, "family", "status"], contrasts)
    note = f"{interval_note(replication)}{MASS_NOTE}"
    parts = [f"## Contrasts\n\n{note}\n\n{text}"]
    for kind, title in SUBJECTS.items():
        lines = [
            [
                row["name"],
                f"{row['eval']} {row['metric']}",
                estimate(row),
                *_beside(row, beside),
                str(row["n_lineages"]),
                row["status"],
            ]
            for row in summary
            if row["kind"] == kind and not metric_of(row, metrics).is_distribution
        ]
        if lines or kind == "arm":
            table = markdown_table([kind, "metric", *shown, "status"], lines)
            parts.append(f"## {title}\n\n{note}\n\n{table}")
    return "\n".join(parts)


# Kind of a row that is about something which was scored -> heading.
SUBJECTS = {"arm": "Arms", "teacher": "Teachers", "base": "Bases", "dataset": "Data sets"}


MASS_NOTE = (
    " Candidates' mass: probability on all candidates together, of a contrast's added arms;"
    " sampled: share of their sampled answers that name the target."
)


def interval_note(replication: str) -> str:
    """What an interval is over, in a sentence."""
    has = f", each with its {replication}" if replication else ""
    return f"[95 %]: over lineages{has}."


def console_table(
    summary: Sequence[SummaryRow], metrics: Metrics, beside: Beside, replication: str
) -> str:
    """The summary for a terminal, at most 100 columns wide and without typographic signs.

    The contrasts, then the arms in the metrics that a contrast is about and in those that are
    always shown (without contrasts, in all metrics but distributions), then teachers, bases and
    data sets without what only checks that a model is sound, then the evals whose metrics stand in
    columns; the rest is in the report.
    """
    contrasts = [row for row in summary if row["kind"] == "contrast"]
    asked = {(row["eval"], row["metric"]) for row in contrasts}
    in_columns = [name for name, found in metrics.items() if any(one.column for one in found)]
    scored: dict[str, list[SummaryRow]] = {kind: [] for kind in SUBJECTS}
    for row in summary:
        if row["kind"] in SUBJECTS and row["eval"] not in in_columns:
            metric = metric_of(row, metrics)
            wanted = (row["eval"], row["metric"]) in asked or metric.always or not contrasts
            wanted = wanted or (row["kind"] != "arm" and not metric.sanity)
            scored[row["kind"]] += [row] if wanted and not metric.is_distribution else []
    blocks = [
        _console_block("contrast", contrasts, beside, tests=True),
        *(_console_block(kind, rows, beside, tests=False) for kind, rows in scored.items()),
        *(_console_columns(name, metrics[name], summary) for name in in_columns),
    ]
    shown = [*contrasts, *itertools.chain.from_iterable(scored.values())]
    note = textwrap.fill(interval_note(replication), CONSOLE_WIDTH) if shown else ""
    if any(_key(row) in beside for row in shown):
        note += "\nmass: probability on all candidates; said: sampled answers that name the target"
    return "\n\n".join(block for block in (*blocks, note) if block)


def _console_columns(
    eval_name: str, metrics: Sequence[Metric], summary: Sequence[SummaryRow]
) -> str:
    """An eval with a line for each row of the config, and a column for each metric that has one."""
    columns = {metric.name: metric.column for metric in metrics if metric.column}
    found: dict[str, dict[str, float | None]] = {}
    for row in summary:
        if row["eval"] == eval_name and row["metric"] in columns:
            found.setdefault(row["name"], {})[row["metric"]] = row["mean"]
    if not found:
        return ""
    lines = [[eval_name, *columns.values()]]
    for name, values in found.items():
        cells = [values.get(metric) for metric in columns]
        lines.append([name, *("-" if value is None else f"{value:.4g}" for value in cells)])
    return _columns(lines)


def _console_block(kind: str, rows: Sequence[SummaryRow], beside: Beside, *, tests: bool) -> str:
    if not rows:
        return ""
    header = [kind, "metric", "mean [95 %]", "n", *(("test", "p", "p Holm") if tests else ())]
    with_mass = any(_key(row) in beside for row in rows)
    lines = [[*header, *(("mass", "said") if with_mass else ())]]
    for row in rows:
        text = estimate(row, sign=tests).replace("−", "-").replace("–", "-")
        name = row["name"].partition("/")[2] or row["name"]  # the heading says which table
        line = [name, f"{row['eval']} {row['metric']}", text, str(row["n_lineages"])]
        if tests:
            line += [row["test"], *(p_value(row[p]).replace("–", "-") for p in ("p", "p_adjusted"))]
        if row["status"] == "incomplete":
            line[3] += "!"
        if with_mass:
            line += [cell.replace("–", "-") for cell in _beside(row, beside)]
        lines.append(line)
    note = "\n! incomplete: units are missing" if any(line[3][-1] == "!" for line in lines) else ""
    return _columns(lines) + note


def cost_table(
    lines: Sequence[tuple[str, Mapping[str, str], Callable[[float], str]]],
    num_chips: int,
    usd_per_chip_hour: float,
) -> str:
    """What units take, for a terminal.

    Args:
      lines: unit, cells of its own by column, and its hours times a number as text; the first line
        has every column.
      num_chips: that are paid for.
      usd_per_chip_hour: adds a column of money; 0: none.
    """
    prices = {"hours": 1.0, "chip-hours": num_chips}
    if usd_per_chip_hour:
        prices["USD"] = num_chips * usd_per_chip_hour
    columns = list(lines[0][1])
    text = [f"{'unit':44}{''.join(f' {name:>10}' for name in columns)}"]
    text[0] += "".join(f" {name:>17}" for name in prices)
    for unit, own, hours in lines:
        cells = "".join(f" {own.get(name, ''):>10}" for name in columns)
        text.append(f"{unit:44}{cells}" + "".join(f" {hours(n):>17}" for n in prices.values()))
    return "\n".join(text)


def _columns(lines: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, of which the first two give way where the line gets too long."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    excess = sum(widths) + 2 * (len(widths) - 1) - CONSOLE_WIDTH
    for index in (1, 0):
        cut = max(0, min(excess, widths[index] - 12))
        widths[index] -= cut
        excess -= cut
    return "\n".join(
        "  ".join(
            _shortened(text, width).ljust(width) for text, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 2]}.."
