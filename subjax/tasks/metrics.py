"""What an eval measures: its name, and how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass

# What stands beside a number that is about candidates alone, by `Metric.role`.
MASS = "mass"
RATE = "rate"
SHARE = "share"  # a part of a distribution, which is drawn as one


@dataclass(frozen=True)
class Metric:
    """A number that an eval measures.

    Attributes:
      name: "share/*" is one metric for each candidate, a distribution together.
      label: for axes and tables; {target} is the target of the eval, {candidate} that of "*".
      unit: empty for shares and ratios.
      axis: ends of the axis, where the metric cannot lie outside.
      sanity: whether it tells a student that did not learn, or that fell apart, from one without
        the trait: drawn among the checks.
      difference: whether zero is "no difference", and is drawn.
      always: shown in the terminal although no contrast is about it.
      relative: about the candidates alone, so that their mass and the sampled rate stand beside it.
      role: MASS, the probability on all candidates; RATE, the share of sampled answers that name
        the target; SHARE, the part of each candidate in a distribution; or empty.
      absent: why it may have no value, which closes a gate; empty for one that always has.
      column: heading in the terminal, where a row of the config is a line of all its metrics.
    """

    name: str
    label: str
    unit: str = ""
    axis: tuple[float, float] | None = None
    sanity: bool = False
    difference: bool = False
    always: bool = False
    relative: bool = False
    role: str = ""
    absent: str = ""
    column: str = ""

    @property
    def is_distribution(self) -> bool:
        """Whether it is one number for each candidate."""
        return self.name.endswith("/*")

    def names(self, candidates: Sequence[str]) -> list[str]:
        """The names under which it is measured."""
        return [
            self.name.replace("*", one) for one in (candidates if self.is_distribution else "*")
        ]

    def matches(self, name: str) -> bool:
        """Whether it is measured under this name."""
        return name == self.name or (self.is_distribution and name.startswith(self.name[:-1]))

    def describe(self, name: str, target: str) -> str:
        """The label of it as measured under a name."""
        candidate = name.removeprefix(self.name[:-1]) if self.is_distribution else ""
        candidate = "each candidate" if candidate == "*" else candidate
        return self.label.format(target=target or "the target", candidate=candidate)


def find(metrics: Sequence[Metric], name: str) -> Metric:
    """The metric that is measured under a name.

    Raises:
      ValueError: none is.
    """
    for metric in metrics:
        if metric.matches(name):
            return metric
    known = ", ".join(metric.name for metric in metrics)
    raise ValueError(f"no metric is called {name!r}: known: {known or 'none'}")
