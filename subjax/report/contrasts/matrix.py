"""Contrasts that are the diagonal of a table of arms, less its other cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subjax.report import stats
from subjax.report.contrasts.difference import Contrast, Read


@dataclass(frozen=True)
class Table:
    """Cells with names, of which the diagonal is what a contrast is about.

    `cells` [rows, columns] is nan where something is missing.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    cells: stats.Floats
    rows_are: str
    columns_are: str

    @property
    def means(self) -> tuple[float, float]:
        """Of the diagonal and of the other cells; nan where one is missing."""
        return float(self.cells.diagonal().mean()), float(off_diagonal(self.cells).mean())


@dataclass(frozen=True, kw_only=True)
class Matrix(Contrast):
    """A contrast that is the diagonal of a table, less the mean of its other cells."""

    @property
    def cell(self) -> str:
        """What a cell is, in the names of arms."""
        raise NotImplementedError

    def table(self, read: Read, lineages: Sequence[int]) -> Table:
        """What a heat map shows."""
        raise NotImplementedError


def off_diagonal(cells: stats.Floats) -> stats.Floats:
    """Each row [rows, rows - 1] without its cell on the diagonal."""
    size = len(cells)
    return cells[~np.eye(size, dtype=bool)].reshape(size, size - 1)
