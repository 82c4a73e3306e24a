"""What a run tests: a difference of arms, or the diagonal of a table of arms against its rest.

Each kind of contrast says what it is in a lineage, and how it is tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from subjax.report import stats

Read = Callable[[str, str], Mapping[int, float]]  # arm and metric -> lineage -> value


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A linear contrast of arms within one metric: the sum of `plus` less the sum of `minus`.

    `family` is corrected together by Holm's method; `equivalence_margin` 0 asks for no equivalence
    test; `expected_low` is the lower end of the interval that the config predicts.
    """

    test: ClassVar[str] = "sign_flip"
    test_words: ClassVar[str] = "sign-flip test"

    name: str
    eval: str
    metric: str
    plus: Sequence[str]
    minus: Sequence[str]
    primary: bool = False
    family: str = "secondary"
    equivalence_margin: float = 0.0
    expected_low: float | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each arm; an arm that is named twice weighs double."""
        net = Counter(self.plus)
        net.subtract(Counter(self.minus))
        return {arm: float(weight) for arm, weight in net.items()}

    @property
    def formula(self) -> str:
        """The contrast in the names of its arms, such as "owl − placebo"."""
        return " + ".join(self.plus) + "".join(f" − {arm}" for arm in self.minus)

    def values(self, read: Read, lineages: Sequence[int]) -> dict[int, float]:
        """Lineage -> value, for the lineages that every arm has."""
        arms = {arm: read(arm, self.metric) for arm in self.weights}
        shared = [one for one in lineages if all(one in found for found in arms.values())]
        if not shared:
            return {}
        columns = {arm: [found[one] for one in shared] for arm, found in arms.items()}
        return dict(zip(shared, stats.combine(columns, self.weights).tolist(), strict=True))

    def p_value(self, read: Read, lineages: Sequence[int]) -> float:
        """Two-sided, of the hypothesis that there is no difference; nan without values."""
        values = list(self.values(read, lineages).values())
        return stats.sign_flip_test(values) if values else np.nan

    def smallest_p(self, num_values: int) -> float:
        """The smallest p that the test can give with so many values."""
        return 2.0 ** (1 - num_values)


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
        return float(self.cells.diagonal().mean()), float(_off_diagonal(self.cells).mean())


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
                    scores = read(arm, self.metric)
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


@dataclass(frozen=True, kw_only=True)
class OfTraits(Matrix):
    """Students of teachers with different traits by the traits that they are asked for.

    A cell is the score of an arm of `plus` for a trait's target, less that of the control, which is
    the only arm of `minus`. The value of a lineage is the mean of the diagonal less that of the
    other cells.

    Attributes:
      targets: arm -> the target of its teacher, which names the column.
    """

    targets: Mapping[str, str]

    @property
    def formula(self) -> str:
        """In the names of its arms."""
        [control] = self.minus
        return f"own target less others, {len(self.plus)} arms, each less {control}"

    @property
    def cell(self) -> str:
        """Of an arm, less the control."""
        return f"less that of {self.minus[0]}"

    @property
    def weights(self) -> dict[str, float]:
        """The arms; what the control weighs cancels, since it is in every column."""
        return dict.fromkeys((*self.plus, *self.minus), 1.0)

    def cells(self, read: Read, lineages: Sequence[int]) -> dict[int, stats.Floats]:
        """Lineage -> cells [arm, target], for the lineages that every arm has."""
        [control] = self.minus
        metrics = [self.metric.replace("*", self.targets[arm]) for arm in self.plus]
        scores = {(arm, one): read(arm, one) for arm in self.weights for one in metrics}
        shared = [one for one in lineages if all(one in found for found in scores.values())]
        return {
            lineage: np.array(
                [
                    [scores[arm, one][lineage] - scores[control, one][lineage] for one in metrics]
                    for arm in self.plus
                ]
            )
            for lineage in shared
        }

    def values(self, read: Read, lineages: Sequence[int]) -> dict[int, float]:
        """Lineage -> value, for the lineages that every arm has."""
        return {
            lineage: float(cells.diagonal().mean() - _off_diagonal(cells).mean())
            for lineage, cells in self.cells(read, lineages).items()
        }

    def margins(self, read: Read, lineages: Sequence[int]) -> dict[int, float]:
        """Lineage -> the gain of the own target less the best other's, mean over arms.

        Below 0 where no arm has a trait of its own, since the best of several noisy cells is taken.
        """
        return {
            lineage: float((cells.diagonal() - _off_diagonal(cells).max(axis=1)).mean())
            for lineage, cells in self.cells(read, lineages).items()
        }

    def table(self, read: Read, lineages: Sequence[int]) -> Table:
        """The mean over lineages."""
        found = self.cells(read, lineages)
        size = len(self.plus)
        cells = np.mean(list(found.values()), axis=0) if found else np.full((size, size), np.nan)
        columns = [self.targets[arm] for arm in self.plus]
        return Table(self.plus, columns, cells, "students", "asked for")


def _off_diagonal(cells: stats.Floats) -> stats.Floats:
    """Each row [rows, rows - 1] without its cell on the diagonal."""
    size = len(cells)
    return cells[~np.eye(size, dtype=bool)].reshape(size, size - 1)
