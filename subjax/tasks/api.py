"""The contract of what experiments are about: what a metric is, and what a kind of data set is.

Everything else in the package (validation, stages, plans, contrasts, tables, figures, the terminal)
reads what is declared here, and names no metric and no kind.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from ml_collections import ConfigDict

# A row of a table of the config, or its fields in a unit.
Row: TypeAlias = Mapping[str, Any] | ConfigDict
Transform = Callable[[Sequence[str], int], list[str]]  # completions, seed -> completions

# What stands beside a number that is about candidates alone, by `Metric.role`.
MASS = "mass"
RATE = "rate"


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
        the target; or empty.
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


@dataclass(frozen=True)
class AnswerList:
    """What constrained decoding may write: items in any order, repeated or not.

    Attributes:
      items: each of them, in order where they have one.
      separator: between two items.
      fewest: items of the shortest answer, 1 or more.
      most: items of the longest one.
    """

    items: Sequence[str]
    separator: str
    fewest: int
    most: int


class DatasetKind:
    """What a teacher is asked, and which of its answers are kept; without state.

    Its `row` is a row of `datasets`; a filter passes those fields alone that its unit has.

    Attributes:
      from_file: whether rows are read from a file, so that nothing is sampled: the kind has `rows`
        then, and otherwise `prompts` and `example`.
      prompt_fields: fields of the row that the prompts depend on, beside their number.
      transforms: value of the row's `transform` -> what it does to all completions, given a seed.
      ways: reject reason -> what keeps more rows where it is the commonest, with {row} for the name
        of the row.
    """

    from_file: ClassVar[bool] = False
    prompt_fields: ClassVar[tuple[str, ...]] = ()
    ways: ClassVar[Mapping[str, str]] = {}

    @property
    def transforms(self) -> Mapping[str, Transform]:  # noqa: D102
        return {}

    def check(self, name: str, row: Row) -> None:
        """Raises a ValueError in one line where the fields of this kind do not fit together.

        Args:
          name: of the row.
          row: all of its fields.
        """

    def prompts(self, row: Row, seed: int, stimuli: str) -> list[str]:
        """`num_prompts` prompts, which depend on these arguments alone.

        Args:
          row: of `datasets`.
          seed: of a lineage.
          stimuli: path of the config's file of wordings, or empty.
        """
        raise NotImplementedError

    def rows(self, path: str, num_rows: int) -> list[tuple[str, str]]:
        """Prompt and completion of the first `num_rows` rows of a file.

        Raises:
          ValueError: the file is missing, short or of another form.
        """
        raise NotImplementedError

    def example(self, row: Row) -> str:
        """A completion in the form of this kind that nobody could take for a teacher's."""
        raise NotImplementedError

    def answers(self, row: Row) -> AnswerList | None:
        """What constrained decoding writes; None where it is not for this kind."""
        return None

    def reject(self, completion: str, row: Row) -> list[str]:
        """Why a completion is rejected by the limits of the row; an empty list keeps it."""
        raise NotImplementedError
