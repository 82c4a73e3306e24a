"""Tables of shaded cells: a distribution by arm, and a table whose diagonal is of interest.

Functions take plain numbers and return a `matplotlib` figure, in the style of `figures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subjax.report.figures import INK, NARROW_IN, PAPER, SERIES, WIDE_IN, figure, wrapped

_MANY = 12  # columns from which on a narrow figure has no numbers in its cells


def distribution(
    shares: Mapping[str, Mapping[str, float]], *, target: str = "", narrow: bool = False
) -> Figure:
    """Share of each candidate by arm, as a table of shaded cells with per cent in them.

    `shares` {arm: {candidate: share in 0..1}}; the cell of a missing share is empty. The target is
    first and bold. Arms are rows, or columns if `narrow`.
    """
    arms = list(shares)
    found = {candidate for row in shares.values() for candidate in row}
    candidates = sorted(found, key=lambda candidate: (candidate != target, candidate))
    table = np.array([[shares[arm].get(c, math.nan) for c in candidates] for arm in arms])
    rows, columns = (candidates, arms) if narrow else (arms, candidates)
    table = table.T if narrow else table
    longest = max(len(column) for column in columns)
    room_in = (NARROW_IN if narrow else WIDE_IN) - 0.07 * max(len(row) for row in rows) - 0.4
    rotated = 0.08 * longest > room_in / len(columns)
    height = 0.36 * len(rows) + 0.7 + (0.055 * longest if rotated else 0.0)
    with figure(narrow=narrow, height_in=height) as drawn:
        ax = drawn.subplots()
        top = np.nanmax(table)
        for (y, x), share in np.ndenumerate(table):
            if math.isfinite(share):
                _cell(ax, x, y, f"{100.0 * share:.0f}", share / top if top > 0.0 else 0.0)
        ax.set_xlim(-0.5, len(columns) - 0.5)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xticks(range(len(columns)), [wrapped(name, 24) for name in columns])
        ax.set_yticks(range(len(rows)), [wrapped(name, 20) for name in rows])
        ax.tick_params(length=0, labelcolor=INK)
        ax.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
        if rotated:
            for text in ax.get_xticklabels():
                text.set(rotation=40, ha="left", rotation_mode="anchor")
        if target in candidates:
            labels = ax.get_yticklabels() if narrow else ax.get_xticklabels()
            labels[candidates.index(target)].set_fontweight("bold")
        ax.spines[:].set_visible(False)
        ax.set_xlabel("Share of the probability on the candidates (%)")
    return drawn


def diagonal(
    cells: npt.NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    axes: tuple[str, str],
    top: float,
    narrow: bool = False,
) -> Figure:
    """Signed values as shaded cells with a frame around those on the diagonal.

    `cells` [rows, columns] in the unit of the metric, nan for an empty cell; `axes` say what rows
    and columns are; a cell of +-`top` is darkest.
    """
    numbered = not narrow or len(columns) < _MANY
    longest = max(len(column) for column in columns)
    width = NARROW_IN if narrow else WIDE_IN
    height = min(0.36 * len(rows), width) + 0.9 + 0.055 * longest
    with figure(narrow=narrow, height_in=height) as drawn:
        ax = drawn.subplots()
        for (y, x), value in np.ndenumerate(cells):
            if math.isfinite(value):
                text = f"{round(value, 1) + 0.0:.1f}".replace("-", "−") if numbered else ""
                share = min(abs(value) / top, 1.0) if top > 0.0 else 0.0
                _cell(ax, x, y, text, share, SERIES[0] if value > 0.0 else SERIES[1])
            if x == y:
                ax.plot(
                    [x - 0.49, x + 0.49, x + 0.49, x - 0.49, x - 0.49],
                    [y - 0.49, y - 0.49, y + 0.49, y + 0.49, y - 0.49],
                    color=INK,
                    linewidth=1.2,
                )
        ax.set_xlim(-0.55, len(columns) - 0.45)
        ax.set_ylim(len(rows) - 0.45, -0.55)
        ax.set_xticks(range(len(columns)), columns, rotation=40 if longest > 3 else 0)
        if longest > 3:
            for label in ax.get_xticklabels():
                label.set(ha="left", rotation_mode="anchor")
        ax.set_yticks(range(len(rows)), [wrapped(name, 20) for name in rows])
        ax.tick_params(length=0, labelcolor=INK)
        ax.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
        ax.spines[:].set_visible(False)
        ax.set_ylabel(axes[0])
        ax.set_xlabel(axes[1])
        ax.xaxis.set_label_position("top")
    return drawn


def _cell(ax: Axes, x: int, y: int, text: str, darkness: float, colour: str = SERIES[0]) -> None:
    ax.fill_between(
        [x - 0.47, x + 0.47], y - 0.45, y + 0.45, color=colour, alpha=0.9 * darkness, linewidth=0
    )
    ink = PAPER if darkness > 0.55 else INK
    if text:
        ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=8.5)
