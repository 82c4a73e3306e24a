"""The figures of a report: which there are, what each shows, and its caption.

Statistics are in `summary`, panels of arms and contrasts in `panels`, drawing in `figures`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from subjax.report import figures, heat_maps, summary, tables
from subjax.report.contrasts.matrix import Matrix, Table
from subjax.report.panels import Pair, arm_panel, axis_label, capitalised, contrast_panel, pair_of
from subjax.report.results import Results, kind_of
from subjax.report.summary import SummaryRow
from subjax.tasks.api import SHARE

Points = Mapping[int, Sequence[tuple[int, float]]]  # lineage -> (step, value)

NOTE = "Dots: lineages, each at the same height in every row. Bar: mean, interval. "
DIAMOND = " Diamond, and in brackets: published mean."
_DASHED = "Dashed: where its step is as long as a whole training of the teacher."
_LOSS = "Training loss of the students."
_ALIGNMENT = (
    "Cosine of each update of the student with what training did to the teacher's weights; students"
    " of another initialisation are there to compare with."
)
MAX_POINTS = 300  # per curve, to limit the size of the page


@dataclass(frozen=True)
class Picture:
    """A function that draws a figure (its argument: whether for a phone), and the caption.

    `earlier` has the same figure at earlier steps, by label, for a page on which one is chosen;
    `label` is then that of this one.
    """

    draw: Callable[[bool], Figure]
    caption: str
    earlier: Mapping[str, Callable[[bool], Figure]] = field(default_factory=dict)
    label: str = ""


def pictures(results: Results, rows: Sequence[SummaryRow]) -> dict[str, Picture]:
    """Name -> picture, for all figures with data; "effect" is always present.

    `rows` are the rows of summary.json.
    """
    found = {
        **{f"matrix_{one.name}": matrix(results, one) for one in results.matrices},
        "effect": _ratio(results) or _effect(results, rows),
        "signs": _signs(results),
        "sweeps": _sweeps(results, rows),
        "contrasts": _other_contrasts(results, rows),
        "sources": _sources(results, rows),
        "shares": _shares(results, rows),
        "checks": _checks(results, rows),
        "probes": _probes(results),
        "losses": _measured(results, "loss", "Training loss (nats)", _LOSS),
        "alignment": _measured(results, "alignment", "Cosine", _ALIGNMENT),
    }
    return {name: picture for name, picture in found.items() if picture}


def matrix(results: Results, contrast: Matrix) -> Picture:
    """The table of a matrix at the last step, and at those before."""
    steps = {
        step
        for arm in contrast.weights
        for eval_name in contrast.evals
        for records in results.scores.get((eval_name, arm), {}).values()
        for step in (record["step"] for record in records)
    }
    shown = {
        step: contrast.table(summary.reader(results, step), results.lineages)
        for step in sorted(steps)
    }
    found = {step: table for step, table in shown.items() if np.isfinite(table.cells).any()}
    if found:  # as the contrast is: each arm at its own last step
        read = summary.reader(results)
        found[max(found)] = contrast.table(read, results.lineages)
    else:
        return Picture(lambda narrow: figures.notice("No scores yet", narrow=narrow), "")
    top = max(float(np.nanmax(np.abs(table.cells))) for table in found.values())

    def drawing(table: Table) -> Callable[[bool], Figure]:
        return lambda narrow: heat_maps.diagonal(
            table.cells,
            table.rows,
            table.columns,
            axes=(capitalised(table.rows_are), capitalised(table.columns_are)),
            top=top,
            narrow=narrow,
        )

    *before, last = found
    on, off = (tables.number(mean, sign=True) for mean in found[last].means)
    label, unit = results.describe(contrast.eval, contrast.metric)
    caption = (
        f"{contrast.name}: {label}{unit and f' ({unit})'}, eval {contrast.eval}, by"
        f" {found[last].rows_are} and {found[last].columns_are}, {contrast.cell}."
        f" Framed: the diagonal, on average {on}; the other cells {off}."
    )
    name = results.step_name.lower()
    earlier = {f"{name} {step}": drawing(found[step]) for step in before}
    return Picture(drawing(found[last]), caption, earlier, f"{name} {last}")


def _sources(results: Results, rows: Sequence[SummaryRow]) -> Picture | None:
    """What teachers and data sets show before there is a student."""
    shown = dict.fromkeys(
        (row["eval"], row["metric"])
        for row in rows
        if row["kind"] in ("teacher", "dataset")
        and not results.metric(row["eval"], row["metric"]).is_distribution
        and not results.metric(row["eval"], row["metric"]).sanity
    )
    main = _main_pair(results)
    panels = [
        arm_panel(results, rows, pair, title=f"Eval {pair[0]}") for pair in shown if pair != main
    ]
    caption = "Teachers, and what they wrote. "
    found = [panel for panel in panels if panel]
    caption += tables.interval_note(results.replication)
    return _strips(results, found, caption) if found else None


def _effect(results: Results, rows: Sequence[SummaryRow]) -> Picture:
    pair = _main_pair(results)
    arms = arm_panel(results, rows, pair, title="Arms") if pair else None
    if pair and arms and results.sweeps:
        listed = _listed(results)
        arms = dataclasses.replace(arms, strips=[s for s in arms.strips if s.label in listed])
    if pair and arms and results.published:
        arms = dataclasses.replace(
            arms, strips=[_beside(results, rows, pair, strip) for strip in arms.strips]
        )
    beside = [contrast for contrast in results.ordered if pair_of(contrast) == pair]
    if arms is None and any(summary.contrast_values(results, contrast) for contrast in beside):
        # A table's cells are in several metrics, so that no arm has a strip in one.
        note = "Contrasts, taken within each lineage. " + tables.interval_note(results.replication)
        return _strips(results, [contrast_panel(results, rows, beside, "")], note)
    if pair is None or arms is None:
        return Picture(lambda narrow: figures.notice("No scores yet", narrow=narrow), "")
    label = results.describe(*pair)[0]
    kind = kind_of(arms.strips[0].label) if arms.strips else "arm"
    title, whose = tables.SUBJECTS[kind], " of the students" if kind == "arm" else ""
    arms = dataclasses.replace(arms, title=title)
    caption = [
        f"{title}: {label}{whose}, eval {pair[0]}, at the last step. Each dot is one lineage;"
        " the bar is the mean with its t-interval. " + tables.interval_note(results.replication)
    ]
    if summary.mass(results, *pair, arms=()):
        caption.append("Mass: probability on all the candidates together.")
    if beside:
        caption.append("Contrasts: differences between arms, taken within each lineage.")
    if beside and beside[0].primary:
        caption.append("The primary one is in bold.")
    if any(contrast.equivalence_margin for contrast in beside):
        caption.append("The grey block around zero is an equivalence margin.")
    if results.published:
        caption.append("Diamonds are published means.")
    panels = [arms, *([contrast_panel(results, rows, beside, "Contrasts")] if beside else [])]
    return _strips(results, panels, " ".join(caption), diamonds=bool(results.published))


def _beside(
    results: Results, rows: Sequence[SummaryRow], pair: Pair, strip: figures.Strip
) -> figures.Strip:
    """An arm's label and its published mean, if any."""
    if strip.label not in results.published:
        return strip
    wanted = ("arm", strip.label, *pair)
    [row] = [r for r in rows if (r["kind"], r["name"], r["eval"], r["metric"]) == wanted]
    value = results.published[strip.label]
    note = f"{tables.estimate(row)} ({value:.3f})"
    return dataclasses.replace(
        strip, published=value, note=note + (strip.note and f", {strip.note}")
    )


def _listed(results: Results) -> list[str]:
    """The arms that are shown separately: all but the points of sweeps."""
    swept = {arm for points in results.sweeps.values() for arm in points}
    return [arm for arm in results.arms if arm not in swept]


def _ratio(results: Results) -> Picture | None:
    """Inner product of the updates divided by the theorem's prediction, over the teacher's step."""
    panels = [
        figures.CurvePanel(
            title=row,
            x=curves["epsilon"],
            y=curves["ratio"],
            low=curves["ratio_low"],
            high=curves["ratio_high"],
            mark=_real_epsilon(curves),
            levels=(0.0, 1.0),
            limits=(-1.0, 3.0),
            series=index,
        )
        for index, (row, curves) in enumerate(results.theorems.items())
        if curves["ratio"]
    ]
    caption = (
        "Inner product of the student's and the teacher's updates, divided by its predicted leading"
        " term, against the teacher's step eps: median of the draws with the band from 5 to 95 %. "
        "The theorem says 1 on the left for the rows that it covers. " + _DASHED
    )
    return _curves(panels, "Teacher's step eps", "Inner product / prediction", caption)


def _signs(results: Results) -> Picture | None:
    panels = [
        figures.CurvePanel(
            title=row,
            x=curves["epsilon"],
            y=curves["share_positive"],
            mark=_real_epsilon(curves),
            levels=(0.5, 1.0),
            limits=(-0.05, 1.05),
            series=index,
        )
        for index, (row, curves) in enumerate(results.theorems.items())
    ]
    caption = (
        "Share of draws in which the student's step has a positive inner product with the "
        "teacher's. " + _DASHED
    )
    return _curves(panels, "Teacher's step eps", "Share of draws", caption)


def _sweeps(results: Results, rows: Sequence[SummaryRow]) -> Picture | None:
    """The main metric along each sweep."""
    pair = _main_pair(results)
    means = {
        row["name"]: row
        for row in rows
        if row["kind"] in tables.SUBJECTS
        and (row["eval"], row["metric"]) == pair
        and row["mean"] is not None
    }
    panels = []
    for index, (sweep, points) in enumerate(results.sweeps.items()):
        scored = [(at, means[arm]) for arm, at in points.items() if arm in means]
        found = sorted(scored, key=operator.itemgetter(0))  # arms may share a point
        banded = all(row["ci_low"] is not None for _, row in found)
        panels.append(
            figures.CurvePanel(
                title=sweep,
                x=[at for at, _ in found],
                y=[row["mean"] for _, row in found],
                low=[row["ci_low"] for _, row in found] if banded else (),
                high=[row["ci_high"] for _, row in found] if banded else (),
                series=index,
            )
        )
    if pair is None or not panels:
        return None
    axis = axis_label(results, pair)
    caption = f"{axis} along each sweep: mean. {tables.interval_note(results.replication)}"
    return _curves(panels, "See titles", axis, caption)


def _real_epsilon(curves: Mapping[str, Any]) -> float:
    """The eps at which the teacher's step is as long as a whole training; nan if off the grid."""
    epsilon = curves["real"] / curves["size"][0] * curves["epsilon"][0]
    return epsilon if 0 < epsilon <= curves["epsilon"][-1] else math.nan


def _other_contrasts(results: Results, rows: Sequence[SummaryRow]) -> Picture | None:
    """Contrasts in other metrics than the main figure, which need their own axes."""
    others = [c for c in results.ordered if pair_of(c) != _main_pair(results)]
    panels = [
        contrast_panel(results, rows, [c for c in others if pair_of(c) == pair], f"Eval {pair[0]}")
        for pair in dict.fromkeys(map(pair_of, others))
    ]
    caption = "Contrasts in the other metrics, taken within each lineage. "
    caption += tables.interval_note(results.replication)
    return _strips(results, panels, caption) if panels else None


def _shares(results: Results, rows: Sequence[SummaryRow]) -> Picture | None:
    """The distribution over candidates by arm, in the first eval with a distribution."""
    entries = [
        row
        for row in rows
        if row["kind"] in tables.SUBJECTS
        and results.metric(row["eval"], row["metric"]).role == SHARE
    ]
    means: dict[str, dict[str, float]] = {}
    for row in entries:
        if row["eval"] == entries[0]["eval"] and row["mean"] is not None:
            candidate = row["metric"].partition("/")[2]
            means.setdefault(row["name"], {})[candidate] = row["mean"]
    if not means:
        return None
    shares = {arm: means[arm] for arm in results.arms if arm in means}
    caption = (
        f"Distribution over the candidates by arm, eval {entries[0]['eval']}, at the last step:"
        " means over lineages, in per cent of the probability that is on the candidates at all."
    )
    draw = functools.partial(
        heat_maps.distribution, shares, target=results.targets.get(entries[0]["eval"], "")
    )
    return Picture(lambda narrow: draw(narrow=narrow), caption)


def _checks(results: Results, rows: Sequence[SummaryRow]) -> Picture | None:
    checks = [pair for pair in summary.evals_and_metrics(results) if results.metric(*pair).sanity]
    panels = [arm_panel(results, rows, pair) for pair in checks]
    caption = (
        "Whether a student without the trait has learned its data at all (gain in log-likelihood of"
        " held-out rows over its own base), and whether a student has fallen apart (probability on"
        " the candidates, likelihood of neutral text, empty and numeric answers)."
    )
    shown = [panel for panel in panels if panel]
    caption += f" {tables.interval_note(results.replication)}"
    return _strips(results, shown, caption) if shown else None


def _probes(results: Results) -> Picture | None:
    """The main metric over training steps, if it was measured at several."""
    pair = _main_pair(results)
    if pair is None:
        return None
    points: dict[str, Points] = {}
    for arm in _listed(results):
        by_lineage: dict[int, list[tuple[int, float]]] = {}
        for step, values in summary.trajectory(results, pair[0], arm, pair[1]).items():
            for lineage, value in values.items():
                by_lineage.setdefault(lineage, []).append((step, value))
        points[arm] = by_lineage
    if all(len(line) < 2 for lineages in points.values() for line in lineages.values()):
        return None
    label = results.describe(*pair)[0]
    caption = f"{capitalised(label)} during training. Thin: lineages; thick: their mean."
    return _lines(points, results.step_name, axis_label(results, pair), caption)


def _measured(results: Results, name: str, y_axis: str, caption: str) -> Picture | None:
    """A quantity that was measured at every update."""
    points: dict[str, Points] = {}
    for arm in _listed(results):
        lines = {
            lineage: [(record["step"], record[name]) for record in records if name in record]
            for lineage, records in results.curves.get(arm, {}).items()
        }
        if any(lines.values()):
            points[arm] = lines
    if not points:
        return None
    caption = f"{caption} Thin: lineages; thick: their mean."
    return _lines(points, "Training step", y_axis, caption)


def _main_pair(results: Results) -> Pair | None:
    """Eval and metric of the main figure: of the first contrast, else the first with scores."""
    pairs = [pair_of(contrast) for contrast in results.ordered]
    return next(iter(pairs or summary.evals_and_metrics(results)), None)


def _strips(
    results: Results,
    panels: Sequence[figures.StripPanel],
    caption: str,
    *,
    diamonds: bool = False,
) -> Picture:
    note = NOTE + tables.interval_note(results.replication) + DIAMOND * diamonds
    return Picture(lambda narrow: figures.strips(panels, narrow=narrow, note=note), caption)


def _lines(points: Mapping[str, Points], x_axis: str, y_axis: str, caption: str) -> Picture:
    panels = []
    for index, (arm, lineages) in enumerate(points.items()):
        lines = [_thinned(line) for _, line in sorted(lineages.items()) if line]
        if lines:
            panels.append(figures.LinePanel(title=arm, lines=lines, series=index))
    draw = functools.partial(figures.lines, panels, x_axis=x_axis, y_axis=y_axis)
    return Picture(lambda narrow: draw(narrow=narrow), caption)


def _curves(
    panels: Sequence[figures.CurvePanel], x_axis: str, y_axis: str, caption: str
) -> Picture | None:
    draw = functools.partial(figures.curves, panels, x_axis=x_axis, y_axis=y_axis)
    return Picture(lambda narrow: draw(narrow=narrow), caption) if panels else None


def _thinned(line: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """At most MAX_POINTS of the points, evenly spaced, with both ends, in order of step."""
    kept = np.unique(np.linspace(0, len(line) - 1, min(len(line), MAX_POINTS)).round().astype(int))
    points = sorted(line)
    return [points[i][0] for i in kept], [points[i][1] for i in kept]
