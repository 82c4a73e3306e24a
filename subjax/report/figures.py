"""The figures of a report: dots with intervals, a distribution by arm, lines over steps.

Functions take plain numbers and return a `matplotlib` figure. `png` turns it into bytes, `svg` into
markup that uses the colours of the page. Computes no statistics.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

# Okabe and Ito's palette, which is distinct for all common kinds of colour blindness, without its
# black and with a darker yellow; in the page --series-0 and so on.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#7a5cc8", "#8c6d5a")
PAPER, INK, MUTED, LINE, BAND = "#fffffe", "#1b1f24", "#5f6772", "#d5d9de", "#eef2f6"
ROLES = {"paper": PAPER, "ink": INK, "muted": MUTED, "line": LINE, "band": BAND}
VARIABLES = {colour: f"var(--{role})" for role, colour in ROLES.items()}
VARIABLES |= {colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)}

WIDE_IN, NARROW_IN = 9.0, 4.0  # widths of a figure on a screen and on a phone
PNG_DPI = 200
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures are equal on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "text.color": INK,
    "text.parse_math": False,  # names may contain dollar signs
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
}


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One row of a panel: a dot for each lineage, and their mean with its interval.

    `values` [lineages] is nan for a missing lineage, so that a lineage has the same height in
    every row. `low` and `high` are nan if there is no interval. `series` None draws in grey,
    `margin` > 0 shades 0 +- margin, and `published` is a mean to compare with, nan for none.
    """

    label: str
    values: Sequence[float]
    mean: float
    low: float
    high: float
    series: int | None = None
    emphasis: bool = False
    note: str = ""
    margin: float = 0.0
    published: float = math.nan


@dataclass(frozen=True, kw_only=True)
class StripPanel:
    """Rows that share an axis; `axis` is its title with the unit, `zero` draws a line at 0.

    `limits` are the ends of the axis, for values whose distance from the ends matters.
    """

    title: str
    axis: str
    strips: Sequence[Strip]
    zero: bool = False
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class LinePanel:
    """Lines over steps: a thin one for each lineage, (steps [S], values [S]), and their mean."""

    title: str
    lines: Sequence[tuple[Sequence[int], Sequence[float]]]
    series: int = 0


@dataclass(frozen=True, kw_only=True)
class CurvePanel:
    """A curve over positive x [N] with a band (may be empty).

    `mark` is a dashed line across x, nan for none; `levels` are dotted lines across y; `limits` of
    the first panel are used for all.
    """

    title: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    mark: float = math.nan
    levels: Sequence[float] = ()
    limits: tuple[float, float] | None = None
    series: int = 0


def strips(panels: Sequence[StripPanel], *, narrow: bool = False, note: str = "") -> Figure:
    """Panels of dots with intervals, side by side, or one below the other if `narrow`.

    In a wide figure a panel has no row labels if they equal those of its left neighbour.
    """
    num_columns = 1 if narrow else min(len(panels), 3)
    grid = [panels[i : i + num_columns] for i in range(0, len(panels), num_columns)]
    heights = [0.85 + 0.46 * max(len(panel.strips) for panel in row) for row in grid]
    with figure(narrow=narrow, height_in=sum(heights) + (0.3 if note else 0.0)) as drawn:
        axes = drawn.subplots(len(grid), num_columns, squeeze=False, height_ratios=heights)
        for row, row_axes in zip(grid, axes, strict=True):
            shared: list[str] = []
            for panel, ax in zip(row, row_axes, strict=False):
                labels = [strip.label for strip in panel.strips]
                _strip_panel(ax, panel, labelled=labels != shared)
                ax.set_xlabel(wrapped(panel.axis, 30 if narrow else 36))
                if panel.limits:
                    low, high = panel.limits
                    margin = 0.05 * (high - low)
                    ax.set_xlim(low - margin, high + margin)
                    ax.set_xticks([low, (low + high) / 2, high])
                else:
                    ax.xaxis.set_major_locator(MaxNLocator(5 if num_columns < 3 else 3))
                shared = labels
            for ax in row_axes[len(row) :]:
                ax.remove()
        if note:
            note = textwrap.fill(note, 56 if narrow else 120)
            drawn.supxlabel(note, x=0.01, ha="left", fontsize=8, color=MUTED)
    return drawn


def _strip_panel(ax: Axes, panel: StripPanel, *, labelled: bool) -> None:
    count = len(panel.strips)
    if panel.zero:
        ax.axvline(0.0, color=MUTED, linewidth=1.0, zorder=1)
    for y, strip in enumerate(panel.strips):
        _strip(ax, strip, y)
    ax.set_ylim(count - 0.45, -0.55)  # the first row on top
    ax.set_yticks(range(count), [_row_label(strip) if labelled else "" for strip in panel.strips])
    for text, strip in zip(ax.get_yticklabels(), panel.strips, strict=True):
        text.set_fontweight("bold" if strip.emphasis else "normal")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.08)
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    ax.set_title(panel.title)


def _strip(ax: Axes, strip: Strip, y: float) -> None:
    colour = MUTED if strip.series is None else _series(strip.series)
    if strip.emphasis:
        ax.axhspan(y - 0.48, y + 0.43, color=BAND, linewidth=0, zorder=0)
    if strip.margin:
        ax.fill_betweenx(
            [y - 0.4, y + 0.4], -strip.margin, strip.margin, color=LINE, linewidth=0, zorder=0.5
        )
    # Dots above, interval below, so that neither hides the other; each lineage has its own height.
    heights = y - 0.13 + np.linspace(-0.13, 0.13, len(strip.values)) * (len(strip.values) > 1)
    ax.scatter(strip.values, heights, s=20, color=colour, alpha=0.75, linewidth=0, zorder=2)
    width = 2.6 if strip.emphasis else 1.8
    if math.isfinite(strip.low):
        ax.plot([strip.low, strip.high], [y + 0.2, y + 0.2], color=INK, linewidth=width, zorder=3)
    ax.plot(strip.mean, y + 0.2, "o", color=INK, markersize=5.5, zorder=4)
    if math.isfinite(strip.published):
        ax.plot(strip.published, y + 0.36, "D", color=PAPER, markeredgecolor=INK, markersize=5)


def _row_label(strip: Strip) -> str:
    label = wrapped(strip.label, 20)
    return f"{label}\n{strip.note}" if strip.note else label


def lines(panels: Sequence[LinePanel], *, x_axis: str, y_axis: str, narrow: bool = False) -> Figure:
    """Small multiples over steps with shared axes, at most three in a row.

    Steps that grow by factors (0, 16, 64, 256, 512) have a logarithmic axis.
    """
    num_columns = min(len(panels), 2 if narrow else 3)
    num_rows = math.ceil(len(panels) / num_columns)
    height = (1.75 if narrow else 2.1) * num_rows + 0.4
    with figure(narrow=narrow, height_in=height) as drawn:
        grid = drawn.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
        for ax, panel in zip(grid.flat, panels, strict=False):
            _line_panel(ax, panel)
        for ax in grid.flat[len(panels) :]:
            ax.set_visible(False)
        _space_steps(grid[0, 0], panels, every=2 if narrow else 1)
        drawn.supxlabel(x_axis, fontsize=9, color=MUTED)
        drawn.supylabel(y_axis, fontsize=9, color=MUTED)
    return drawn


def curves(panels: Sequence[CurvePanel], *, x_axis: str, y_axis: str, narrow: bool) -> Figure:
    """Small multiples over a logarithmic axis with shared axes, at most three in a row."""
    num_columns = min(len(panels), 2 if narrow else 3)
    num_rows = math.ceil(len(panels) / num_columns)
    with figure(narrow=narrow, height_in=(1.6 if narrow else 1.9) * num_rows + 0.4) as drawn:
        grid = drawn.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
        for ax, panel in zip(grid.flat, panels, strict=False):
            colour = _series(panel.series)
            if panel.low:
                ax.fill_between(panel.x, panel.low, panel.high, color=colour, alpha=0.25, lw=0)
            ax.plot(panel.x, panel.y, color=colour, linewidth=2.0)
            for value in panel.levels:
                ax.axhline(value, color=MUTED, linewidth=0.8, linestyle=":")
            if math.isfinite(panel.mark):
                ax.axvline(panel.mark, color=INK, linewidth=0.9, linestyle="--")
            ax.set_xscale("log")
            ax.set_title(wrapped(panel.title, 24))
            ax.grid()
            ax.set_axisbelow(True)
        if panels and panels[0].limits:
            grid[0, 0].set_ylim(*panels[0].limits)
        grid[0, 0].xaxis.set_major_locator(LogLocator(numticks=5))
        grid[0, 0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        grid[0, 0].minorticks_off()
        for ax in grid.flat[: len(panels)][-num_columns:]:
            ax.tick_params(axis="x", labelbottom=True)
        for ax in grid.flat[len(panels) :]:
            ax.set_visible(False)
        drawn.supxlabel(x_axis, fontsize=9, color=MUTED)
        drawn.supylabel(y_axis, fontsize=9, color=MUTED)
    return drawn


def _line_panel(ax: Axes, panel: LinePanel) -> None:
    colour = _series(panel.series)
    totals: dict[int, list[float]] = {}
    for steps, values in panel.lines:
        ax.plot(steps, values, color=colour, alpha=0.35, linewidth=0.9)
        for step, value in zip(steps, values, strict=True):
            totals.setdefault(step, []).append(value)
    # The mean ends with the first lineage that ends: a mean of fewer lineages is another quantity.
    steps = [step for step in sorted(totals) if len(totals[step]) == len(panel.lines)]
    means = [float(np.mean(totals[step])) for step in steps]
    few = len(steps) <= 12
    ax.plot(steps, means, color=colour, linewidth=2.2, marker="o" if few else "", markersize=4)
    ax.set_title(wrapped(panel.title, 24))
    ax.grid()
    ax.set_axisbelow(True)


def _space_steps(ax: Axes, panels: Sequence[LinePanel], every: int) -> None:
    steps = sorted({step for panel in panels for line in panel.lines for step in line[0]})
    positive = [step for step in steps if step > 0]
    if 3 <= len(steps) <= 9 and positive and positive[-1] >= 8 * positive[0]:
        ax.set_xscale("symlog", linthresh=positive[0])
        labelled = steps[::-every]  # counted from the last step
        ax.set_xticks(steps, [str(step) if step in labelled else "" for step in steps])
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def notice(text: str, *, narrow: bool = False) -> Figure:
    """A figure with a text only, on why there is nothing to draw."""
    with figure(narrow=narrow, height_in=1.5) as drawn:
        drawn.text(0.5, 0.5, text, ha="center", va="center", color=MUTED)
    return drawn


@contextmanager
def figure(*, narrow: bool, height_in: float) -> Iterator[Figure]:
    """A figure in the style of the reports, which is in effect while the context is open."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(NARROW_IN if narrow else WIDE_IN, height_in))


def png(drawn: Figure) -> bytes:
    """PNG, 1800 pixels wide for a wide figure; the same bytes for the same figure."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(drawn)
        drawn.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
        drawn.set_layout_engine("none")  # layout is done; svg reuses it
    return buffer.getvalue()


def svg(drawn: Figure, *, name: str, label: str) -> str:
    """An `<svg>` element for a page that defines the colours in VARIABLES.

    `name` must be unique on the page, since ids contain it; `label` is for screen readers. The
    element scales with its container, and its text remains text.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    markup = buffer.getvalue()
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.DOTALL)
    # matplotlib repeats the ids of groups in every figure; nothing refers to them.
    markup = re.sub(r' id="[a-zA-Z][a-zA-Z0-9.]*_\d+"', "", markup)
    markup = markup.replace("xlink:href", "href")  # HTML has no namespaces
    markup = re.sub(r"#[0-9a-f]{6}\b", lambda m: VARIABLES.get(m[0], m[0]), markup)
    opening = f'<svg role="img" aria-label="{escape(label)}" '
    size = re.search(r'viewBox="([^"]*)"', markup)
    assert size, "matplotlib writes a viewBox"
    return f'{opening}viewBox="{size[1]}">' + markup[markup.index(">") + 1 :].rstrip()


def _series(index: int) -> str:
    return SERIES[index % len(SERIES)]


def wrapped(text: str, width: int) -> str:
    """`text` broken after spaces, underscores and dashes into at most three lines of `width`."""
    broken = [""]
    for piece in re.findall(r"[^ _/-]+[ _/-]?|[ _/-]", text):
        if broken[-1] and len(broken[-1]) + len(piece.rstrip()) > width:
            broken.append("")
        broken[-1] += piece
    shortened = [line if len(line) <= width + 4 else f"{line[: width + 2]}…" for line in broken]
    return "\n".join([*shortened[:2], "…"] if len(shortened) > 3 else shortened)
