"""A difference of arms within each lineage, and what all kinds of contrast have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from subjax import checks, schema, subjects
from subjax.report import stats

Read = Callable[[str, str, str], Mapping[int, float]]  # eval, arm, metric -> lineage -> value


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A linear contrast of arms within one metric: the sum of `plus` less the sum of `minus`.

    `family` is corrected together by Holm's method; `equivalence_margin` 0 asks for no equivalence
    test; `expected_low` is the lower end of the interval that the config predicts. A kind that
    `has_margin` tells a second value beside the tested one.
    """

    test: ClassVar[str] = "sign_flip"
    test_words: ClassVar[str] = "sign-flip test"
    has_margin: ClassVar[bool] = False

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
    def columns(self) -> Sequence[tuple[str, str]]:
        """Every eval and metric that is read."""
        return [(self.eval, self.metric)]

    @property
    def evals(self) -> Sequence[str]:
        """The evals that are read."""
        return list(dict.fromkeys(eval_name for eval_name, _ in self.columns))

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

    def margins(self, read: Read, lineages: Sequence[int]) -> dict[int, float]:
        """Lineage -> a second value that is told without a test, where a kind has one."""
        return {}

    def p_value(self, read: Read, lineages: Sequence[int]) -> float:
        """Two-sided, of the hypothesis that there is no difference; nan without values."""
        values = list(self.values(read, lineages).values())
        return stats.sign_flip_test(values) if values else np.nan

    def smallest_p(self, num_values: int) -> float:
        """The smallest p that the test can give with so many values."""
        return 2.0 ** (1 - num_values)
