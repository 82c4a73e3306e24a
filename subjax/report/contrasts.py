"""What a run tests: a difference of arms, or the diagonal of a table of arms against its rest.

Each kind of contrast says what a row of it must be, what it is in a lineage, and how it is tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from subjax import checks, schema, subjects, unit_builder
from subjax.report import stats

Read = Callable[[str, str, str], Mapping[int, float]]  # eval, arm, metric -> lineage -> value


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

    @classmethod
    def of_row(cls, config: ConfigDict, name: str) -> Contrast:
        """A row of `contrasts` that is of this kind."""
        row = {field: value for field, value in config.contrasts[name].items() if field != "kind"}
        low = row["expected_low"] if row["expected_low"] > schema.OFF else None
        return cls(**{**row, "name": name, "expected_low": low, **cls._more(config, name)})

    @classmethod
    def _more(cls, config: ConfigDict, name: str) -> dict[str, Any]:
        """What a kind knows of a row beside its fields."""
        return {}

    @classmethod
    def evals_of(cls, config: ConfigDict, name: str) -> Sequence[str]:
        """The rows of `evals` that a row may read.

        Raises:
          ValueError: there is none.
        """
        row = config.contrasts[name]
        checks.reference(config, f"contrasts.{name}.eval", row.eval, "evals")
        return [row.eval]

    @classmethod
    def check(cls, config: ConfigDict, name: str) -> None:
        """Refuses a row that this kind can make nothing of.

        Raises:
          ValueError: says what to change.
        """
        row = config.contrasts[name]
        measured = subjects.metrics(config, row.eval)
        if row.metric not in measured:
            raise ValueError(
                f"config.contrasts.{name}.metric is {row.metric!r}, but its eval {row.eval!r} of "
                f"kind {config.evals[row.eval].kind!r} measures {', '.join(measured)}"
            )

    @property
    def evals(self) -> Sequence[str]:
        """The evals that are read."""
        return [self.eval]

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
        arms = {arm: read(self.eval, arm, self.metric) for arm in self.weights}
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


@dataclass(frozen=True, kw_only=True)
class OfTraits(Matrix):
    """Students of teachers with different traits by the traits that they are asked for.

    A cell is the score of an arm of `plus` for a trait's target, less that of the control, which is
    the only arm of `minus`. The value of a lineage is the mean of the diagonal less that of the
    other cells.

    Attributes:
      targets: arm -> the target of its teacher, which names the column.
      asked_in: arm -> the eval that asks for this target.
    """

    targets: Mapping[str, str]
    asked_in: Mapping[str, str]

    @classmethod
    def _more(cls, config: ConfigDict, name: str) -> dict[str, Any]:
        targets = _targets(config, name)
        metric = config.contrasts[name].metric
        asked_in = {
            arm: _measuring(config, name, metric.replace("*", target))[0]
            for arm, target in targets.items()
        }
        return {"targets": targets, "asked_in": asked_in}

    @classmethod
    def evals_of(cls, config: ConfigDict, name: str) -> Sequence[str]:
        """Those that match `eval`, since animals and trees have different questions."""
        pattern = config.contrasts[name].eval
        found = subjects.matching(list(config.evals), [pattern])
        return found or super().evals_of(config, name)

    @classmethod
    def check(cls, config: ConfigDict, name: str) -> None:
        """Each target is asked for in one eval, and the control has none."""
        row = config.contrasts[name]
        if len(row.minus) != 1:
            raise ValueError(
                f"config.contrasts.{name}.minus is {row.minus}; kind 'traits' has one control"
            )
        if row.minus[0] in row.plus:
            raise ValueError(
                f"config.contrasts.{name} has its control {row.minus[0]!r} in plus, too: leave it "
                "out"
            )
        if config.images:
            raise ValueError(
                f"config.contrasts.{name}.kind is 'traits', which image classifiers have none of: "
                "take 'difference'"
            )
        targets = list(_targets(config, name).values())
        if len(targets) < 2 or len(set(targets)) != len(targets) or "" in targets:
            raise ValueError(
                f"config.contrasts.{name}.plus has the targets {', '.join(targets) or 'none'}; kind"
                " 'traits' is of two arms or more whose teachers have targets of their own"
            )
        if "*" not in row.metric:
            raise ValueError(
                f"config.contrasts.{name}.metric is {row.metric!r}; kind 'traits' reads one for "
                "each candidate, such as 'log_odds/*' of an eval of kind 'candidates'"
            )
        for target in targets:
            metric = row.metric.replace("*", target)
            asking = _measuring(config, name, metric)
            if len(asking) != 1:
                evals = ", ".join(cls.evals_of(config, name))
                raise ValueError(
                    f"config.contrasts.{name} reads {metric!r} from one eval, and "
                    f"{' and '.join(map(repr, asking)) or 'none'} of those that "
                    f"{row.eval!r} names ({evals}) measures it"
                )

    @property
    def evals(self) -> Sequence[str]:
        """The evals that are read."""
        return list(dict.fromkeys(self.asked_in.values()))

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
        columns = [
            (self.asked_in[arm], self.metric.replace("*", self.targets[arm])) for arm in self.plus
        ]
        scores = {
            (arm, column): read(column[0], arm, column[1])
            for arm in self.weights
            for column in columns
        }
        shared = [one for one in lineages if all(one in found for found in scores.values())]
        return {
            lineage: np.array(
                [
                    [scores[arm, one][lineage] - scores[control, one][lineage] for one in columns]
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


KINDS: Mapping[str, type[Contrast]] = {
    "difference": Contrast,
    "bases": OfBases,
    "traits": OfTraits,
}


def of_config(config: ConfigDict) -> list[Contrast]:
    """The rows of `contrasts`."""
    # Scores of earlier releases do not say the kind.
    kinds = {name: row.get("kind", "difference") for name, row in config.contrasts.items()}
    return [KINDS[kind].of_row(config, name) for name, kind in kinds.items()]


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


def _targets(config: ConfigDict, name: str) -> dict[str, str]:
    """Arm -> the target of its teacher; "" is none."""
    traits = {
        arm: subjects.trait_of(config, subjects.full_name(arm))
        for arm in config.contrasts[name].plus
    }
    return {arm: subjects.target_of(config, trait) for arm, trait in traits.items()}


def _measuring(config: ConfigDict, name: str, metric: str) -> list[str]:
    """The evals of a table of traits that measure a metric."""
    evals = OfTraits.evals_of(config, name)
    return [one for one in evals if metric in subjects.metrics(config, one)]


def _off_diagonal(cells: stats.Floats) -> stats.Floats:
    """Each row [rows, rows - 1] without its cell on the diagonal."""
    size = len(cells)
    return cells[~np.eye(size, dtype=bool)].reshape(size, size - 1)
