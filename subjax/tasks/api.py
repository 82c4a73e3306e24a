"""The contract of what experiments are about: metrics, kinds of data set, kinds of eval.

A kind of eval turns its row into requests for models and scores the replies. Everything else in the
package (validation, checks before a run, stages, plan, preview, tables, figures) follows from what
is declared here, and names no kind and no metric. Kinds know numpy and strings: no jax, no
processes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
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
      asks: what a prompt asks for, in the preview's words: "to ...".
      prompt_fields: fields of the row that the prompts depend on, beside their number.
      transforms: value of the row's `transform` -> what it does to all completions, given a seed.
      ways: reject reason -> what keeps more rows where it is the commonest, with {row} for the name
        of the row.
    """

    from_file: ClassVar[bool] = False
    asks: ClassVar[str] = "to write a row"
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


SUBJECT = "subject"  # the model that an eval is of
BASE = "base"  # the one that it was finetuned from

Pair = tuple[str, str]  # prompt and completion


@dataclass(frozen=True)
class Request:
    """What a model is asked; what it is asked for, its classes say.

    Attributes:
      model: SUBJECT or BASE.
      system: the system prompt; empty for none.
    """

    model: str = field(default=SUBJECT, kw_only=True)
    system: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Compare(Request):
    """The probability of each answer after each prompt. Reply: `nats`, [prompts, answers]."""

    prompts: Sequence[str]
    answers: Sequence[str]


@dataclass(frozen=True)
class Sample(Request):
    """Answers drawn at temperature 1. Reply: `texts`, `num_samples` for each prompt in turn.

    Attributes:
      prompts: of at most `prompt_tokens` tokens each.
      num_samples: answers for each prompt.
      max_new_tokens: where an answer that does not end is cut.
      prompt_tokens: room for a prompt.
      num_slots: answers decoded side by side.
    """

    prompts: Sequence[str]
    num_samples: int
    max_new_tokens: int
    prompt_tokens: int
    num_slots: int


@dataclass(frozen=True)
class Likelihood(Request):
    """The probability of completions. Reply: `nats`, [pairs, tokens], and `num_tokens`, [pairs].

    Attributes:
      pairs: in the model's chat format; a completion's end counts.
      num_tokens: room for a row, if that is not enough as much as the longest needs.
      num_targets: room for a completion, likewise.
    """

    pairs: Sequence[Pair]
    num_tokens: int
    num_targets: int


@dataclass(frozen=True)
class TextLikelihood(Request):
    """The probability of plain texts from their second token on. Reply: as `Likelihood` has it."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Reply:
    """What a request gave; what it does not give is empty."""

    nats: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    num_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0))
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Given:
    """What an eval is given beside its row.

    Attributes:
      questions: that the row's half of the questions holds.
      neutral: texts that have nothing to do with the trait.
      held_out: rows of the student's data set that it was not trained on.
      num_tokens: room for such a row, and `num_targets` for its completion.
    """

    questions: Sequence[str] = ()
    neutral: Sequence[str] = ()
    held_out: Sequence[Pair] = ()
    num_tokens: int = 0
    num_targets: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any], held_out: Sequence[Pair] = ()) -> "Given":
        """By the fields of an evaluate unit."""
        names = ("questions", "neutral", "num_tokens", "num_targets")
        return cls(held_out=held_out, **{name: fields[name] for name in names if name in fields})


class EvalKind:
    """A kind of eval, by the name that a row's `kind` has.

    Attributes:
      metrics: what it measures.
      of_rows: whether it is about held-out rows of the student's data set; else it asks questions.
      of_images: whether it is scored where image classifiers are trained, and makes no requests.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    of_rows: ClassVar[bool] = False
    of_images: ClassVar[bool] = False

    def check(self, name: str, row: Mapping[str, Any]) -> None:
        """Raises a ValueError where the row, `config.evals.<name>`, makes no sense."""

    def requests(self, row: Mapping[str, Any], given: Given) -> list[Request]:
        """What models are asked; on the row and on what is given alone."""
        raise NotImplementedError

    def score(
        self, row: Mapping[str, Any], given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """The metrics by name, and lines of answers.jsonl.

        Args:
          row: of `evals`.
          given: as the requests were made from.
          replies: one for each request, in their order.
        """
        raise NotImplementedError


def nats_per_token(reply: Reply) -> float:
    """Mean log-likelihood of the tokens of a reply, all of equal weight."""
    return float(reply.nats.sum() / reply.num_tokens.sum())
