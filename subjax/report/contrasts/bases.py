"""The table of teachers' bases by students' bases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from subjax import unit_builder
from subjax.report import stats
from subjax.report.contrasts.difference import Read
from subjax.report.contrasts.matrix import Matrix, Table


@dataclass(frozen=True, kw_only=True)
class OfBases(Matrix):
    """Teachers' bases by students' bases, each base being that of a lineage (the paper's figure 8).

    A cell is `plus` less `minus` of the teacher's lineage and the student's. The value of a lineage
    is its cell on the diagonal, less the mean of the others in its row and in its column. Values of
    lineages share cells, so that a t-interval is a little narrow (95 % are 94 with 16 bases and 93
    with 4, by simulation); the permutation test is not concerned.

    Attributes:
      offsets: arm -> the lineages from its teacher's to that of its base.
      cycle: lineages of a block, within which bases wrap.
    """

    test: ClassVar[str] = "permutation"
    test_words: ClassVar[str] = "permutation test"

    offsets: Mapping[str, int]
    cycle: int

    @classmethod
    def _more(cls, config: ConfigDict, name: str) -> dict[str, Any]:
        row = config.contrasts[name]
        bases = {arm: config.arms[arm].base for arm in row.plus + row.minus}
        offsets = {arm: unit_builder.offset(base) or 0 for arm, base in bases.items()}
        return {"offsets": offsets, "cycle": config.lineage_cycle}

    @classmethod
    def check(cls, config: ConfigDict, name: str) -> None:
        """A table has no empty cell, and cells that differ in their bases alone."""
        super().check(config, name)
        cycle = config.lineage_cycle
        if cycle < 2:
            raise ValueError(
                f"config.contrasts.{name} is of several bases, and config.lineage_cycle is {cycle}:"
                " raise it"
            )
        for side in ("plus", "minus"):
            _check_side(config, name, side)
        firsts = {lineage - lineage % cycle for lineage in config.lineages}
        whole = {first + more for first in firsts for more in range(cycle)}
        if missing := sorted(whole - set(config.lineages)):
            raise ValueError(
                f"config.contrasts.{name} is of whole blocks of config.lineage_cycle, {cycle}, and "
                f"config.lineages lacks {', '.join(map(str, missing))}: add them"
            )

    @property
    def formula(self) -> str:
        """In the names of the arms on the diagonal."""
        return f"{self.cell} on the teacher's base, less that on others"

    @property
    def cell(self) -> str:
        """In the names of the arms on the diagonal."""
        plus, minus = ([arm for arm in arms if not self.offsets[arm]] for arms in self._sides)
        return " + ".join(plus) + "".join(f" − {arm}" for arm in minus)

    @property
    def _sides(self) -> tuple[Sequence[str], Sequence[str]]:
        return self.plus, self.minus

    def blocks(self, read: Read, lineages: Sequence[int]) -> dict[int, stats.Floats]:
        """First lineage -> cells [teacher's base, student's base], nan where one is missing."""
        found = {}
        for first in sorted({lineage - lineage % self.cycle for lineage in lineages}):
            cells = np.zeros((self.cycle, self.cycle))
            for arms, sign in zip(self._sides, (1.0, -1.0), strict=True):
                for arm in arms:
                    scores = read(self.eval, arm, self.metric)
                    for row in range(self.cycle):
                        column = (row + self.offsets[arm]) % self.cycle
                        cells[row, column] += sign * scores.get(first + row, np.nan)
            found[first] = cells
        return found

    def values(self, read: Read, lineages: Sequence[int]) -> dict[int, float]:
        """Lineage -> value, for the lineages of blocks without a missing cell."""
        found: dict[int, float] = {}
        for first, cells in self.blocks(read, lineages).items():
            if np.isfinite(cells).all():
                others = (cells.sum(0) + cells.sum(1) - 2 * cells.diagonal()) / 2
                of_block = cells.diagonal() - others / (self.cycle - 1)
                found |= {first + row: float(value) for row, value in enumerate(of_block)}
        return found

    def p_value(self, read: Read, lineages: Sequence[int]) -> float:
        """Two-sided, of the hypothesis that it does not matter which base is the teacher's."""
        blocks = self.blocks(read, lineages).values()
        complete = [cells for cells in blocks if np.isfinite(cells).all()]
        return stats.permutation_test(complete) if complete else np.nan

    def smallest_p(self, num_values: int) -> float:
        """As `stats.permutation_test` says."""
        return stats.smallest_permutation_p([self.cycle] * (num_values // self.cycle))

    def table(self, read: Read, lineages: Sequence[int]) -> Table:
        """The mean over blocks, of which there usually is one."""
        blocks = self.blocks(read, lineages)
        [first, *more] = blocks
        names = [str(i if more else first + i) for i in range(self.cycle)]
        found = list(blocks.values())
        complete = [cells for cells in found if np.isfinite(cells).all()]
        cells = np.mean(complete or found, axis=0)
        return Table(names, names, cells, "base of the teacher", "base of the student")


def _check_side(config: ConfigDict, name: str, side: str) -> None:
    """The arms that are added to a table of bases, or subtracted: one for each base."""
    arms, cycle = config.contrasts[name][side], config.lineage_cycle
    if others := [arm for arm in arms if arm not in config.arms]:
        raise ValueError(
            f"config.contrasts.{name}.{side} names {others[0]!r}, and kind 'bases' is of arms"
        )
    offsets = Counter(unit_builder.offset(config.arms[arm].base) for arm in arms)
    if arms and offsets != Counter(range(cycle)):
        raise ValueError(
            f"config.contrasts.{name}.{side} must have one arm for each base of a block of "
            f"config.lineage_cycle, {cycle}: same, and lineage+1 up to lineage+{cycle - 1}"
        )
    for arm in arms[1:]:
        first, other = (
            {field: v for field, v in config.arms[one].to_dict().items() if field != "base"}
            for one in (arms[0], arm)
        )
        if differing := [field for field in first if first[field] != other[field]]:
            raise ValueError(
                f"config.contrasts.{name}.{side} has arms {arms[0]!r} and {arm!r}, whose "
                f"{differing[0]} differs: their bases alone may"
            )
