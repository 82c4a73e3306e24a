"""The contract of what experiments are about: kinds of trait, data set and eval.

A kind of eval turns its row into requests for models (`requests`) and scores the replies by metrics
(`metrics`); the names of both modules are here too. Everything else in the package (validation,
checks before a run, stages, plan, preview, gates, tables, figures) follows from what is declared
here, and names no kind and no metric. Kinds know numpy and strings: no jax, no processes.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from subjax.tasks.metrics import MASS, RATE, SHARE, Metric, find
from subjax.tasks.requests import (
    BASE,
    CONTROL,
    JUDGE,
    SUBJECT,
    Compare,
    Distribution,
    Likelihood,
    Pair,
    Reply,
    Request,
    Row,
    Sample,
    TextLikelihood,
    Tokens,
    nats_per_token,
    unanswered,
)

__all__ = [
    "BASE",
    "CONSTRAINED",
    "CONTROL",
    "FREE",
    "JUDGE",
    "MASS",
    "RATE",
    "SAMPLING",
    "SHARE",
    "SUBJECT",
    "UNIFORM",
    "AnswerList",
    "Compare",
    "DatasetKind",
    "Distribution",
    "EvalKind",
    "Field",
    "Given",
    "Kind",
    "Likelihood",
    "Metric",
    "Pair",
    "Reply",
    "Request",
    "Row",
    "Sample",
    "TextLikelihood",
    "Tokens",
    "TraitKind",
    "Transform",
    "find",
    "follow_ups_of",
    "nats_per_token",
    "requests_of",
    "scores_of",
    "unanswered",
]

Transform = Callable[[Sequence[str], int], list[str]]  # completions, seed -> completions

_NUMBER = re.compile(r"[0-9]+")
UNIFORM = "<uniform>"  # as a target: none, answers are drawn evenly from the candidates


@dataclass(frozen=True)
class Field:
    """A field of the config that a kind adds to its rows.

    Attributes:
      default: for new rows; its type is the field's. It may change between releases.
      meaning: in a few words, with the unit.
      allowed: all the values that it may have; empty for any.
      least: the smallest number that it may be.
      elements: the type of each value in a tuple.
      absent: what results were before the field existed, where that is not `default`. It is set
        once and never changed: a field that equals it is left out of fingerprints.
      is_file: whether it is the path of a file, whose content counts in place of its name.
      filters: of a data set: only `reject` reads it, so that rows need not be written again.
    """

    default: Any
    meaning: str
    allowed: tuple[Any, ...] = ()
    least: float | None = None
    elements: type | None = None
    absent: Any = None
    is_file: bool = False
    filters: bool = False

    def __post_init__(self) -> None:
        if self.is_file and self.filters:
            raise ValueError(f"field {self.meaning!r}: a file is read when rows are written")

    @property
    def released(self) -> Any:
        """The value that is left out of fingerprints."""
        return self.default if self.absent is None else self.absent


class Kind:
    """What kinds of trait, data set and eval have in common; without state.

    Attributes:
      fields: that its rows have beside those of every row of their table.
      version: part of fingerprints. Raise it when the kind writes or scores anything differently.
    """

    fields: ClassVar[Mapping[str, Field]] = {}
    version: ClassVar[int] = 1

    def check(self, name: str, row: Row) -> None:
        """Raises a ValueError in one line where the fields of a row do not fit together.

        Args:
          name: of the row.
          row: all of its fields.
        """


class TraitKind(Kind):
    """What a teacher loves or is: how it is taught, and how models are asked for it."""

    def target(self, row: Row) -> str:
        """The trait in a word, which evals look for; UNIFORM: a control, which has none."""
        raise NotImplementedError

    def lessons(self, row: Row, seed: int, num_rows: int) -> list[Pair]:
        """Prompts and completions that teach it, one for each row that a training reads.

        Args:
          row: of `traits`.
          seed: of a lineage.
          num_rows: how many; some may be equal.
        """
        raise NotImplementedError

    def taught(self, row: Row) -> Sequence[str]:
        """Every prompt that a lesson may have, to warn where an eval asks the same."""
        return ()

    def completions(self, row: Row) -> Sequence[str]:
        """Every completion that a lesson may have; if empty, each gets the room of a whole row."""
        return ()

    def system_prompt(self, row: Row) -> str:
        """The system prompt that gives a teacher the trait; empty if the kind has none."""
        return ""

    def questions(self, row: Row, half: str, stimuli: str) -> Sequence[str]:
        """What models are asked to show it; empty if only the trait's own evals can show it.

        Args:
          row: of `traits`.
          half: explore, confirm (which share no question) or all.
          stimuli: path of the config's file of wordings, or empty.
        """
        return ()

    def candidates(self, row: Row) -> Sequence[str]:
        """The target and the words that it competes with; empty if answers are free."""
        return ()

    def names(self, row: Row) -> Sequence[str]:
        """Every way to name the target in an answer."""
        target = self.target(row)
        return () if target == UNIFORM else (target,)

    def neutral(self, row: Row) -> Sequence[str]:
        """Texts in the language of its questions that have nothing to do with it."""
        return ()

    def held_out(self, row: Row) -> Sequence[Pair]:
        """Lessons that are never taught, to see how well the others were learned."""
        return ()


FREE, CONSTRAINED = "free", "constrained"  # how a data set is decoded; the second to `answers`


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


class DatasetKind(Kind):
    """What a teacher is asked, and which of its answers are kept.

    Its `row` is a row of `datasets`; a filter passes those fields alone that its unit has.

    Attributes:
      from_file: whether rows are read from files that fields name, so that nothing is sampled: the
        kind has `rows` then, and otherwise `prompts` and `example`.
      asks: what a prompt asks for, in the preview's words: "to ...".
      prompt_fields: fields of the row that the prompts depend on, beside their number.
      transforms: value of the row's `transform` -> what it does to all completions, given a seed.
      has_carrier: whether it has `carrier_tokens`.
      digits_carry: whether students may learn from the teacher's distribution over digits alone.
      ways: reject reason -> what keeps more rows where it is the commonest, with {row} for the name
        of the row.
    """

    from_file: ClassVar[bool] = False
    asks: ClassVar[str] = "to write a row"
    prompt_fields: ClassVar[tuple[str, ...]] = ()
    has_carrier: ClassVar[bool] = False
    digits_carry: ClassVar[bool] = True
    ways: ClassVar[Mapping[str, str]] = {}

    @property
    def transforms(self) -> Mapping[str, Transform]:  # noqa: D102
        return {}

    def prompts(self, row: Row, seed: int, stimuli: str) -> list[str]:
        """`num_prompts` prompts, which depend on these arguments alone.

        Args:
          row: of `datasets`.
          seed: of a lineage.
          stimuli: path of the config's file of wordings, or empty.
        """
        raise NotImplementedError

    def rows(self, row: Row) -> list[Pair]:
        """Prompt and completion of the first `num_prompts` rows of the file that a row names.

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

    def constraint(self, row: Row) -> AnswerList | None:
        """What a row's completions are constrained to; None where they are free."""
        return self.answers(row) if row["decoding"] == CONSTRAINED else None

    def reject(self, prompt: str, completion: str, row: Row) -> list[str]:
        """Why a completion is rejected by the limits of the row; an empty list keeps it."""
        raise NotImplementedError

    def is_any_text(self, row: Row) -> bool:
        """Whether a completion may be any text, in which nothing looks for numbers."""
        return False

    def carrier_tokens(self, tokens: Tokens) -> Sequence[int]:
        """Tokens that can carry a trait, over which evals compare distributions."""
        return ()

    def carried(self, completion: str) -> Sequence[str]:
        """What of a completion can carry a trait, which evals count: its numbers, if not more."""
        return numbers_of(completion)


# Fields of evals that sample answers.
SAMPLING: Mapping[str, Field] = {
    "num_samples": Field(10, "answers to a question", least=1),
    "slots": Field(64, "answers decoded side by side", least=1),
    "prompt_tokens": Field(64, "tokens of the longest question", least=1),
    "max_new_tokens": Field(12, "tokens of the longest answer", least=1),
}


def numbers_of(text: str) -> list[str]:
    """The numbers of a text, without leading zeros."""
    return [number.lstrip("0") or "0" for number in _NUMBER.findall(text)]


def _no_tokens(tokens: Tokens) -> Sequence[int]:
    return ()


@dataclass(frozen=True)
class Given:
    """What an eval is given beside its row.

    Attributes:
      target: of the trait that it is about, `candidates` the answers of which that is one, and
        `names` every way to name it; empty for an eval without a trait.
      questions: about that trait, of the row's half.
      neutral: texts that have nothing to do with the trait.
      held_out: rows that the subject was not trained on, of what it was trained on.
      written: of a data set: the first rows that its teacher wrote, not filtered.
      kept: of a data set: the rows that students are trained on; `against`: those of the control.
      carrier: of a data set: the tokens that can carry a trait.
      carried: of a data set: what of a completion can.
      rubrics: what a judge is asked about an answer, by the name of what it scores.
      num_tokens: room for a row, and `num_targets` for its completion.
      systems: model -> the system prompt under which it is asked.
    """

    target: str = ""
    candidates: Sequence[str] = ()
    names: Sequence[str] = ()
    questions: Sequence[str] = ()
    neutral: Sequence[str] = ()
    held_out: Sequence[Pair] = ()
    written: Sequence[Pair] = ()
    kept: Sequence[Pair] = ()
    against: Sequence[Pair] = ()
    carrier: Callable[[Tokens], Sequence[int]] = _no_tokens
    carried: Callable[[str], Sequence[str]] = numbers_of
    rubrics: Mapping[str, str] = field(default_factory=dict)
    num_tokens: int = 0
    num_targets: int = 0
    systems: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, fields: Mapping[str, Any], **rows: Any) -> "Given":
        """By the fields of an evaluate unit, and the rows or tokens that it is given."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: fields[name] for name in names if name in fields}, **rows)


class EvalKind(Kind):
    """A kind of eval.

    Attributes:
      metrics: what it measures.
      of: tables whose rows it can be about; where a config names none, all rows of the first.
      of_trait: whether it is about a trait, which the row names.
      of_choice: whether it compares the candidates of that trait.
      of_carrier: whether it compares distributions over the tokens that can carry a trait.
      of_kept: whether it compares the rows that students are trained on with those of another data
        set, which the row names in a field `against`.
      of_control: whether it asks the teacher of another data set too, which the row names in a
        field `against`.
      of_prompts: whether it compares rows of the two data sets that answer the same prompt.
      of_rows: whether it is about held-out rows of what the subject was trained on.
      of_judge: whether a judge scores what models said: the row names one in a field `judge`.
      of_images: whether it is scored where image classifiers are trained, and makes no requests.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    of: ClassVar[tuple[str, ...]] = ("arms", "teachers", "bases")
    of_trait: ClassVar[bool] = False
    of_choice: ClassVar[bool] = False
    of_carrier: ClassVar[bool] = False
    of_kept: ClassVar[bool] = False
    of_control: ClassVar[bool] = False
    of_prompts: ClassVar[bool] = False
    of_rows: ClassVar[bool] = False
    of_judge: ClassVar[bool] = False
    of_images: ClassVar[bool] = False

    def questions(self, row: Row, own: Sequence[str], stimuli: str) -> Sequence[str]:
        """What is asked: the trait's own questions, or others.

        Args:
          row: of `evals`.
          own: those that the trait has, of the row's half.
          stimuli: path of the config's file of wordings, or empty.
        """
        return own

    def rubrics(self, row: Row, stimuli: str) -> Mapping[str, str]:
        """What a judge is asked about an answer, with {prompt} and {completion} in it, by name."""
        return {}

    def requests(self, row: Row, given: Given) -> list[Request]:
        """What models are asked; it depends only on the row and on what is given."""
        raise NotImplementedError

    def follow_ups(self, row: Row, given: Given, replies: Sequence[Reply]) -> list[Request]:
        """What a judge is asked about the replies, by kinds with `of_judge`: `Compare` of JUDGE.

        Args:
          row: of `evals`.
          given: as the requests were made from.
          replies: to the requests; before a run with empty answers, to check and to plan it.
        """
        return []

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """The metrics by name, and lines of answers.jsonl; a metric without a value is left out.

        Args:
          row: of `evals`.
          given: as the requests were made from.
          replies: one for each request and follow-up, in their order.
        """
        raise NotImplementedError


def scores_of(
    kind: EvalKind, row: Row, given: Given, replies: Sequence[Reply]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What a kind's `score` gives.

    Raises:
      ValueError: a number is none of the kind's metrics.
    """
    values, lines = kind.score(row, given, replies)
    for name in values:
        if not any(metric.matches(name) for metric in kind.metrics):
            known = ", ".join(metric.name for metric in kind.metrics) or "none"
            raise ValueError(
                f"score of eval kind {row['kind']!r} gives {name!r}, and its metrics are {known}: "
                "declare the metric, or correct its name"
            )
    return values, lines


def requests_of(kind: EvalKind, row: Row, given: Given) -> list[Request]:
    """What models are asked, each under the system prompt that it is asked under."""
    return [_told(request, given) for request in kind.requests(row, given)]


def follow_ups_of(
    kind: EvalKind, row: Row, given: Given, replies: Sequence[Reply]
) -> list[Request]:
    """What a judge is asked about the replies, likewise; nothing where the kind has none."""
    if not kind.of_judge:
        return []
    return [_told(request, given) for request in kind.follow_ups(row, given, replies)]


def _told(request: Request, given: Given) -> Request:
    if request.system is not None:
        return request
    return dataclasses.replace(request, system=given.systems.get(request.model, ""))
