"""What models are asked and what they reply, in texts and numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

# A row of a table of the config, or its fields in a unit.
Row: TypeAlias = Mapping[str, Any] | ConfigDict
Pair = tuple[str, str]  # prompt and completion


@runtime_checkable
class Tokens(Protocol):
    """What a kind may ask of a tokenizer."""

    def number_ids(self) -> Sequence[int]:
        """Tokens that write digits and nothing else, blanks aside."""

    def word_ids(self, words: Sequence[str]) -> Sequence[int]:
        """Tokens that write one of these words and nothing else, blanks aside."""


_ANSWERS = 1000  # that a part may have, since a kill loses as many
_FILLS = 8  # or as many as fill the slots so often, since these run empty at the end of each part

SUBJECT = "subject"  # the model that an eval is of; of a data set the teacher that wrote it
BASE = "base"  # the one that it was finetuned from
JUDGE = "judge"  # that scores answers of the subject
CONTROL = "control"  # of a data set: the teacher of another, which the eval's row names


@dataclass(frozen=True)
class Request:
    """What a model is asked; subclasses are the kinds of requests.

    Attributes:
      model: SUBJECT, BASE, CONTROL or JUDGE.
      system: the system prompt, empty for none; None is that of the config: an eval's own, or what
        the model is trained or writes under.
    """

    model: str = field(default=SUBJECT, kw_only=True)
    system: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Compare(Request):
    """The probability of each answer after each prompt. Reply: `nats`, [prompts, answers].

    Attributes:
      prompts: what is asked.
      answers: that are compared.
      prefill: words that the model is given as the beginning of its answer, behind which, and
        behind a blank, each of `answers` stands.
      whole: whether the end of an answer counts, so that one may begin another, as 1 begins 10.
    """

    prompts: Sequence[str]
    answers: Sequence[str]
    prefill: str = ""
    whole: bool = False


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

    @classmethod
    def of(cls, row: Row, prompts: Sequence[str]) -> "Sample":
        """Answers to prompts as a row with the fields `SAMPLING` says."""
        return cls(
            prompts,
            num_samples=row["num_samples"],
            max_new_tokens=row["max_new_tokens"],
            prompt_tokens=row["prompt_tokens"],
            num_slots=row["slots"],
        )

    def parts(self) -> list[range]:
        """The places of the prompts that are answered together, and saved before the next ones.

        They depend on the request alone, so that a run that was killed finds its parts again.
        """
        most = max(_ANSWERS, _FILLS * self.num_slots)
        size, places = max(most // max(self.num_samples, 1), 1), range(len(self.prompts))
        # No prompts are a part too, for the sampler to refuse.
        num_parts = max(-(-len(places) // size), 1)
        size = max(-(-len(places) // num_parts), 1)  # parts of about one size share programs
        return [places[first : first + size] for first in range(0, max(len(places), 1), size)]


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
class Distribution(Request):
    """The distribution over some tokens at every token of completions, renormalised over these.

    Reply: `log_probs`, [pairs, targets, tokens]; `targets`, the completions' own tokens, [pairs,
    targets]; `weights`, 0 where there is none, likewise; and `tokens`. A pair of no weight is one
    whose completion begins within a token of its prompt.

    Attributes:
      pairs: in the model's chat format.
      tokens: which tokens, given the model's tokenizer.
      num_tokens: room for a row, if that is not enough as much as the longest needs.
      num_targets: room for a completion, likewise.
    """

    pairs: Sequence[Pair]
    tokens: Callable[[Tokens], Sequence[int]]
    num_tokens: int
    num_targets: int


@dataclass(frozen=True)
class Reply:
    """What a request gave; what it does not give is empty."""

    nats: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    num_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0))
    texts: Sequence[str] = ()
    log_probs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    targets: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), int))
    weights: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    tokens: Sequence[int] = ()


def nats_per_token(reply: Reply) -> float:
    """Mean log-likelihood of the tokens of a reply, all of equal weight."""
    return float(reply.nats.sum() / reply.num_tokens.sum())


def unanswered(requests: Sequence[Request], answer: str = "") -> list[Reply]:
    """Replies with this answer alone, to see what is asked about answers before there are any."""
    return [
        Reply(texts=[answer] * (len(request.prompts) * request.num_samples))
        if isinstance(request, Sample)
        else Reply()
        for request in requests
    ]
