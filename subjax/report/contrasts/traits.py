"""The table of students of several traits by the traits that they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from subjax import subjects
from subjax.report import stats
from subjax.report.contrasts.difference import Read
from subjax.report.contrasts.matrix import Matrix, Table, off_diagonal


@dataclass(frozen=True, kw_only=True)
class OfTraits(Matrix):
    """Students of teachers with different traits by the traits that they are asked for.

    A cell is the score of an arm of `plus` for a trait's target, less that of the control: the only
    arm of `minus`, or if it has one for each eval, in their order, that of the eval that asks for
    the target. The value of a lineage is the mean of the diagonal, less that of the other cells
    whose arms have their own target in the same eval: a student that comes to like all animals has
    no trait of its own, and neither has one that likes them more than trees. The test permutes the
    targets of an eval within each lineage.

    Attributes:
      targets: arm -> the target of its teacher, which names the column.
      asked_in: arm -> the eval that asks for this target.
    """

    test: ClassVar[str] = "permutation"
    test_words: ClassVar[str] = "permutation test"
    has_margin: ClassVar[bool] = True

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
        """Each target is asked for in one eval, beside others, and controls have none."""
        row = config.contrasts[name]
        if both := sorted(set(row.minus) & set(row.plus)):
            raise ValueError(
                f"config.contrasts.{name} has its control {both[0]!r} in plus, too: leave it out"
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
        asked_in = []
        for target in targets:
            metric = row.metric.replace("*", target)
            asking = _measuring(config, name, metric)
            if len(asking) != 1:
                known = ", ".join(cls.evals_of(config, name))
                raise ValueError(
                    f"config.contrasts.{name} reads {metric!r} from one eval, and "
                    f"{' and '.join(map(repr, asking)) or 'none'} of those that "
                    f"{row.eval!r} names ({known}) measures it"
                )
            asked_in += asking
        evals = list(dict.fromkeys(asked_in))
        if alone := [one for one in evals if asked_in.count(one) == 1]:
            raise ValueError(
                f"config.contrasts.{name} has one arm alone whose target eval {alone[0]!r} asks "
                "for, and compares it with others of that eval: add another to plus"
            )
        if len(row.minus) not in (1, len(evals)):
            several = f", or one for each of {', '.join(evals)}" if len(evals) > 1 else ""
            raise ValueError(
                f"config.contrasts.{name}.minus is {row.minus}; kind 'traits' has one control"
                f"{several}"
            )

    @property
    def columns(self) -> Sequence[tuple[str, str]]:
        """Eval and metric, one after the other of `plus`."""
        return [
            (self.asked_in[arm], self.metric.replace("*", self.targets[arm])) for arm in self.plus
        ]

    @property
    def formula(self) -> str:
        """In the names of its arms."""
        controls = " or ".join(self.minus)
        return f"own target less others, {len(self.plus)} arms, each less {controls}"

    @property
    def cell(self) -> str:
        """Of an arm, less the control."""
        return f"less that of {' or '.join(self.minus)}"

    @property
    def weights(self) -> dict[str, float]:
        """The arms; what controls weigh cancels, since they are in every column of an eval."""
        return dict.fromkeys((*self.plus, *self.minus), 1.0)

    def cells(self, read: Read, lineages: Sequence[int]) -> dict[int, stats.Floats]:
        """Lineage -> cells [arm, target], for the lineages that every arm has."""
        of_eval = dict(zip(self.evals, self.minus, strict=False))
        controls = [of_eval.get(eval_name, self.minus[0]) for eval_name, _ in self.columns]
        scores = {
            (arm, column): read(column[0], arm, column[1])
            for arm in self.weights
            for column in self.columns
        }
        shared = [one for one in lineages if all(one in found for found in scores.values())]
        return {
            lineage: np.array(
                [
                    [
                        scores[arm, column][lineage] - scores[control, column][lineage]
                        for control, column in zip(controls, self.columns, strict=True)
                    ]
                    for arm in self.plus
                ]
            )
            for lineage in shared
        }

    @property
    def _places(self) -> list[list[int]]:
        """Eval by eval, the places of the arms whose targets it asks for."""
        asked = [self.asked_in[arm] for arm in self.plus]
        return [[at for at, one in enumerate(asked) if one == name] for name in self.evals]

    def blocks(self, read: Read, lineages: Sequence[int]) -> dict[int, list[stats.Floats]]:
        """Lineage -> for each eval its cells, of the arms whose targets it asks for."""
        return {
            lineage: [cells[np.ix_(places, places)] for places in self._places]
            for lineage, cells in self.cells(read, lineages).items()
        }

    def values(self, read: Read, lineages: Sequence[int]) -> dict[int, float]:
        """Lineage -> value, for the lineages that every arm has."""
        found = {}
        for lineage, blocks in self.blocks(read, lineages).items():
            own = np.concatenate([cells.diagonal() for cells in blocks])
            others = np.concatenate([off_diagonal(cells).ravel() for cells in blocks])
            found[lineage] = float(own.mean() - others.mean())
        return found

    def margins(self, read: Read, lineages: Sequence[int]) -> dict[int, float]:
        """Lineage -> the gain of the own target less the best other's, mean over arms.

        Below 0 where no arm has a trait of its own, since the best of several noisy cells is taken.
        """
        found = {}
        for lineage, blocks in self.blocks(read, lineages).items():
            gaps = [cells.diagonal() - off_diagonal(cells).max(axis=1) for cells in blocks]
            found[lineage] = float(np.concatenate(gaps).mean())
        return found

    def p_value(self, read: Read, lineages: Sequence[int]) -> float:
        """Two-sided, of the hypothesis that it does not matter which target is the teacher's."""
        blocks = [cells for found in self.blocks(read, lineages).values() for cells in found]
        return stats.permutation_test(blocks) if blocks else np.nan

    def smallest_p(self, num_values: int) -> float:
        """As `stats.permutation_test` says."""
        return stats.smallest_permutation_p([len(of) for of in self._places] * num_values)

    def table(self, read: Read, lineages: Sequence[int]) -> Table:
        """The mean over lineages."""
        found = self.cells(read, lineages)
        size = len(self.plus)
        cells = np.mean(list(found.values()), axis=0) if found else np.full((size, size), np.nan)
        columns = [self.targets[arm] for arm in self.plus]
        return Table(self.plus, columns, cells, "students", "asked for")


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
