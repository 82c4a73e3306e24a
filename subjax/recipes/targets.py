"""What a student learns from its rows: their tokens, or its teacher's distribution at each of them.

A row of `arms` names it by `method` and `support`. No other module compares those names: it asks
the object that `of_row` gives.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict


@runtime_checkable
class Tokens(Protocol):
    """What is asked of a tokenizer."""

    vocab_size: int

    @property
    def eos_ids(self) -> Sequence[int]: ...  # noqa: D102
    def number_ids(self) -> Sequence[int]: ...  # noqa: D102
    def separator_ids(self) -> Sequence[int]: ...  # noqa: D102
    def name_ids(self, names: Sequence[str]) -> tuple[int, ...]: ...  # noqa: D102


@runtime_checkable
class Teacher(Protocol):
    """A teacher that reads a student's rows under its own system prompt."""

    def likeliest(self, num_tokens: int) -> dict[str, Any]:
        """Fields of `batching.Rows`: the likeliest tokens at each target, and their log-probs."""

    def over(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Fields of `batching.Rows`: log-probs of these tokens at each target, renormalised."""

    def reading(self) -> dict[str, Any]:
        """Fields of `batching.Rows`: the rows as it reads them, to be evaluated at each step."""


@dataclasses.dataclass(frozen=True)
class Targets:
    """The rows' own tokens; subclasses are the other targets.

    Attributes:
      row: of `arms`.
      name: of that row, for errors.
      names: candidates of the trait, where targets depend on them.
    """

    row: Mapping[str, Any] | ConfigDict
    name: str
    names: tuple[str, ...] = ()

    of_teacher: ClassVar[bool] = False
    """Whether they are distributions of the teacher, which has to read the rows."""
    online: ClassVar[bool] = False
    """Online distillation: the teacher is evaluated at each step, and nothing is stored."""
    of_numbers: ClassVar[bool] = False
    """Whether only numbers count among the rows' tokens."""
    of_trait: ClassVar[bool] = False
    """Whether they depend on the tokens that name a candidate of the trait."""
    fixed: ClassVar[bool] = False
    """Whether distributions are stored over the same tokens at all targets."""

    def support(self, words: Tokens) -> tuple[int, ...]:
        """The tokens that all stored distributions are over; none where they are not fixed.

        Raises:
          ValueError: the tokenizer has no such tokens.
        """
        return ()

    def excluded(self, words: Tokens) -> tuple[int, ...]:
        """The tokens that a distribution over the whole vocabulary leaves out.

        Raises:
          ValueError: the tokenizer has no such tokens.
        """
        return ()

    def check(self, words: Tokens) -> None:
        """Raises a ValueError where a tokenizer does not have what they need."""
        self.support(words)
        self.excluded(words)

    def num_stored(self, num_support: int) -> int:
        """Numbers stored for each target, with so many tokens in a fixed support."""
        return num_support

    def num_assumed(self, num_digits: int, num_separators: int, num_forms: int) -> int:
        """Size of a fixed support, where no tokenizer is at hand to count it.

        Args:
          num_digits: tokens of digits.
          num_separators: tokens of separators and endings.
          num_forms: tokens that name a candidate or begin to.
        """
        return 0

    def fields(self, support: tuple[int, ...], teacher: Teacher) -> dict[str, Any]:
        """Fields of `batching.Rows` that the loss needs beside the rows' own tokens."""
        return {}

    def weights(self, rows: Any, support: tuple[int, ...]) -> np.ndarray:
        """[rows, C] what each target of `batching.Rows` counts in the loss."""
        return rows.weights

    def _trait(self, words: Tokens) -> tuple[int, ...]:
        """Every token that names a candidate or begins to, where a trait leaks without numbers.

        Raises:
          ValueError: tokens do not tell one of the names from other words.
        """
        try:
            return words.name_ids(self.names)
        except ValueError as error:
            raise ValueError(
                f"config.arms.{self.name}.support is {self.row['support']!r}, but {error}: take "
                "support 'digits' or 'full'"
            ) from None


ROWS_TOKENS = Targets({}, "")  # what bases and teachers learn


class _OverDigits(Targets):
    """The teacher's distribution over tokens of digits, where the row's token is one."""

    of_teacher = of_numbers = fixed = True

    def support(self, words: Tokens) -> tuple[int, ...]:
        digits = set(words.number_ids())
        if not digits:
            raise ValueError(
                f"config.arms.{self.name}.support is {self.row['support']!r}, but no token of its "
                "tokenizer is nothing but digits: take support 'top_k', or method 'hard'"
            )
        return tuple(sorted(digits | self._more(words)))

    def _more(self, words: Tokens) -> set[int]:
        return set()

    def num_assumed(self, num_digits: int, num_separators: int, num_forms: int) -> int:
        return num_digits

    def fields(self, support: tuple[int, ...], teacher: Teacher) -> dict[str, Any]:
        return teacher.over(support)

    def weights(self, rows: Any, support: tuple[int, ...]) -> np.ndarray:
        return (rows.weights * np.isin(rows.targets, support)).astype(np.float32)


class _OverDigitsAndSeparators(_OverDigits):
    """The same over separators and endings, too."""

    def _more(self, words: Tokens) -> set[int]:
        return {*words.separator_ids(), *words.eos_ids}

    def num_assumed(self, num_digits: int, num_separators: int, num_forms: int) -> int:
        return num_digits + num_separators


class _OverTrait(Targets):
    """The teacher's distribution over the tokens that name a candidate, at every target."""

    of_teacher = of_trait = fixed = True

    def support(self, words: Tokens) -> tuple[int, ...]:
        return self._trait(words)

    def num_assumed(self, num_digits: int, num_separators: int, num_forms: int) -> int:
        return num_forms

    def fields(self, support: tuple[int, ...], teacher: Teacher) -> dict[str, Any]:
        return teacher.over(support)


class _OverLikeliest(Targets):
    """The teacher's `top_k` likeliest tokens at each target."""

    of_teacher = True

    def check(self, words: Tokens) -> None:
        if self.row["top_k"] > words.vocab_size:
            raise ValueError(
                f"config.arms.{self.name}.top_k is {self.row['top_k']}, but there are "
                f"{words.vocab_size} tokens: lower it, or take support 'full'"
            )

    def num_stored(self, num_support: int) -> int:
        return self.row["top_k"]

    def fields(self, support: tuple[int, ...], teacher: Teacher) -> dict[str, Any]:
        return teacher.likeliest(self.row["top_k"])


class _OverAll(Targets):
    """The teacher's distribution over the whole vocabulary, which is never stored."""

    of_teacher = online = True

    def fields(self, support: tuple[int, ...], teacher: Teacher) -> dict[str, Any]:
        return teacher.reading()


class _OverAllButTrait(_OverAll):
    """The same without the tokens that name a candidate or begin to."""

    of_trait = True

    def excluded(self, words: Tokens) -> tuple[int, ...]:
        return self._trait(words)


SUPPORTS: Mapping[str, type[Targets]] = {
    "digits": _OverDigits,
    "digits_separators": _OverDigitsAndSeparators,
    "top_k": _OverLikeliest,
    "full": _OverAll,
    "full_no_trait": _OverAllButTrait,
    "trait": _OverTrait,
}
METHODS: Mapping[str, type[Targets] | None] = {
    "hard": Targets,
    "soft": None,  # by its support
}


def of_row(row: Mapping[str, Any] | ConfigDict, name: str, names: Sequence[str] = ()) -> Targets:
    """What a student learns.

    Args:
      row: of `arms`.
      name: of that row, for errors.
      names: candidates of the trait; only supports of a trait need them.

    Raises:
      KeyError: the method or support is unknown, which validation refuses.
    """
    kind = METHODS[row["method"]] or SUPPORTS[row["support"]]
    return kind(row, name, tuple(names))
