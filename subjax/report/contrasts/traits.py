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

    A cell is the score of an arm of `plus` for a trait's target, less that of the control, which is
    the only arm of `minus`. The value of a lineage is the mean of the diagonal less that of the
    other cells.

    Attributes:
      targets: arm -> the target of its teacher, which names the column.
      asked_in: arm -> the eval that asks for this target.
    """

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
            lineage: float(cells.diagonal().mean() - off_diagonal(cells).mean())
            for lineage, cells in self.cells(read, lineages).items()
        }

    def margins(self, read: Read, lineages: Sequence[int]) -> dict[int, float]:
        """Lineage -> the gain of the own target less the best other's, mean over arms.

        Below 0 where no arm has a trait of its own, since the best of several noisy cells is taken.
        """
        return {
            lineage: float((cells.diagonal() - off_diagonal(cells).max(axis=1)).mean())
            for lineage, cells in self.cells(read, lineages).items()
        }

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
