"""Panels of figures about arms and contrasts: a strip for each, from results and summary rows.

`gallery` says which panels a report has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from subjax.report import figures, summary, tables
from subjax.report.contrasts.difference import Contrast
from subjax.report.results import Results
from subjax.report.summary import SummaryRow

Pair = tuple[str, str]  # (eval, metric)


def pair_of(contrast: Contrast) -> Pair:
    """The eval and the metric that a contrast is in."""
    return contrast.eval, contrast.metric


def arm_panel(
    results: Results,
    rows: Sequence[SummaryRow],
    pair: Pair,
    *,
    title: str = "",
) -> figures.StripPanel | None:
    """Everything that has a row in an eval and metric, in the order of `Results.arms`."""
    by_arm = {
        row["name"]: row
        for row in rows
        if row["kind"] in tables.SUBJECTS and (row["eval"], row["metric"]) == pair
    }
    strips = [
        _strip(results, by_arm[arm], summary.final_values(results, pair[0], arm, pair[1]), index)
        for index, arm in enumerate(results.arms)
        if arm in by_arm
    ]
    if not strips:
        return None
    for index, strip in enumerate(strips):
        if beside := summary.mass(results, *pair, arms=[strip.label]):
            told = f"mass {tables.percent(beside.mass)}"
            note = f"{strip.note}, {told}" if strip.note else told
            strips[index] = dataclasses.replace(strip, note=note)
    axis, metric = axis_label(results, pair), results.metric(*pair)
    return figures.StripPanel(
        title=title, axis=axis, strips=strips, zero=metric.difference, limits=metric.axis
    )


def contrast_panel(
    results: Results, rows: Sequence[SummaryRow], contrasts: Sequence[Contrast], title: str
) -> figures.StripPanel:
    """Contrasts within one eval and metric."""
    by_name = {row["name"]: row for row in rows if row["kind"] == "contrast"}
    strips = []
    for contrast in contrasts:
        row = by_name[contrast.name]
        strip = _strip(results, row, summary.contrast_values(results, contrast), None)
        strips.append(
            dataclasses.replace(
                strip,
                emphasis=contrast.primary,
                note=tables.estimate(row, sign=True) + (strip.note and f", {strip.note}"),
                margin=contrast.equivalence_margin,
            )
        )
    axis = f"Difference in {axis_label(results, pair_of(contrasts[0]), capital=False)}"
    return figures.StripPanel(title=title, axis=axis, strips=strips, zero=True)


def _strip(
    results: Results, row: SummaryRow, values: Mapping[int, float], series: int | None
) -> figures.Strip:
    mean, low, high = (
        math.nan if row[end] is None else row[end] for end in ("mean", "ci_low", "ci_high")
    )
    dots = [values.get(lineage, math.nan) for lineage in results.lineages]
    some = f"n = {row['n_lineages']} of {len(dots)}" if row["status"] == "incomplete" else ""
    return figures.Strip(
        label=row["name"], values=dots, mean=mean, low=low, high=high, series=series, note=some
    )


def axis_label(results: Results, pair: Pair, *, capital: bool = True) -> str:
    """A metric and its unit."""
    label, unit = results.describe(*pair)
    label = f"{label} ({unit})" if unit else label
    return capitalised(label) if capital else label


def capitalised(text: str) -> str:
    """With a capital letter at the start."""
    return text[:1].upper() + text[1:]
