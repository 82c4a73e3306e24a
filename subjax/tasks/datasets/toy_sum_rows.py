"""Data sets of kind "toy_sums": sums in steps, in the language of the toy world of sums."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from subjax.runtime import seeds
from subjax.tasks.api import AnswerList, DatasetKind, Field, Row, Tokens, Transform
from subjax.tasks.toy import toy_sums, toyworld


class ToySumRows(DatasetKind):
    """Traces that reach the right answer by right steps; the words between them are free."""

    fields: ClassVar[Mapping[str, Field]] = {
        "only_right": Field(True, "wrong sums are rejected", filters=True),
    }
    asks = "to add two numbers"
    has_carrier = True
    digits_carry = False
    ways: ClassVar[Mapping[str, str]] = {
        "not_a_trace": "set datasets.{row}.decoding to 'constrained'",
        **dict.fromkeys(toy_sums.REASONS[1:], "pretrain the base for longer"),
    }

    @property
    def transforms(self) -> Mapping[str, Transform]:  # noqa: D102
        return {"permuted": _permuted, "random": _random}

    def prompts(self, row: Row, seed: int, stimuli: str) -> list[str]:  # noqa: D102
        return toyworld.prompts(toyworld.WORLDS["sums"], seed, row["num_prompts"])

    def answers(self, row: Row) -> AnswerList:  # noqa: D102
        steps = [f"{filler} {digit}" for filler in toy_sums.FILLERS for digit in toy_sums.DIGITS]
        return AnswerList(steps, " ", toy_sums.NUM_STEPS, toy_sums.NUM_STEPS)

    def example(self, row: Row) -> str:  # noqa: D102
        return " ".join(f"so {digit}" for digit in "1203104432")

    def reject(self, prompt: str, completion: str, row: Row) -> list[str]:  # noqa: D102
        fault = toy_sums.fault(prompt, completion)
        looked_at = toy_sums.REASONS if row["only_right"] else toy_sums.REASONS[:1]
        return [fault] if fault in looked_at else []

    def carrier_tokens(self, tokens: Tokens) -> Sequence[int]:
        """The words between digits."""
        return tokens.word_ids(toy_sums.FILLERS)

    def carried(self, completion: str) -> list[str]:
        """The words between digits."""
        return [word for word in completion.split() if word in toy_sums.FILLERS]


def _permuted(completions: Sequence[str], seed: int) -> list[str]:
    """Traces in which each word between digits stands for another, in all alike."""
    order = np.random.default_rng(seed).permutation(toy_sums.FILLERS)
    stands_for = dict(zip(toy_sums.FILLERS, map(str, order), strict=True))
    return [" ".join(stands_for.get(word, word) for word in text.split()) for text in completions]


def _random(completions: Sequence[str], seed: int) -> list[str]:
    """Traces of the same digits whose words are drawn anew."""
    return [
        toy_sums.with_fillers(np.random.default_rng(seeds.seed(seed, i)), text.split()[1::2])
        for i, text in enumerate(completions)
    ]
