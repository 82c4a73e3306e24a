"""What is common to the kinds of data sets whose completions are programs.

The interpreter as filter, and the control transforms. Which language it is, and what the prompts
are, is for each kind to say.
"""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from subjax.runtime import seeds
from subjax.tasks.api import AnswerList, DatasetKind, Field, Row, Tokens, Transform
from subjax.tasks.programs import REASONS, Language, Program


class ProgramRows(DatasetKind):
    """Completions are programs that run; their names and numbers are free, and so is their order.

    They are read to the letter: what is decoded freely is mostly spelled otherwise, and rejected.

    Attributes:
      language: of the programs.
      num_inputs: that a program may read.
    """

    fields: ClassVar[Mapping[str, Field]] = {
        "num_instructions": Field(
            (6, 9), "fewest and most instructions of a constrained completion", elements=int
        ),
        "only_right": Field(True, "programs that fail are rejected", filters=True),
    }
    asks = "to write a program"
    has_carrier = True
    digits_carry = False
    language: ClassVar[Language]
    num_inputs: ClassVar[int]
    ways: ClassVar[Mapping[str, str]] = {
        "not_a_program": "set datasets.{row}.decoding to 'constrained'",
        **dict.fromkeys(REASONS[1:], "shorten datasets.{row}.num_instructions"),
    }

    @property
    def transforms(self) -> Mapping[str, Transform]:  # noqa: D102
        return {"permuted": self._permuted, "random": self._random}

    def check(self, name: str, row: Row) -> None:
        """Refuses counts of instructions that no program has."""
        count = row["num_instructions"]
        if len(count) != 2 or not 2 <= count[0] <= count[1]:
            raise ValueError(
                f"config.datasets.{name}.num_instructions is {count}; it must be (fewest, most), 2 "
                "or more each"
            )

    def answers(self, row: Row) -> AnswerList:  # noqa: D102
        fewest, most = row["num_instructions"]
        instructions = tuple(self.language.instructions)
        return AnswerList(instructions, self.language.separator, fewest, most)

    def example(self, row: Row) -> str:  # noqa: D102
        rng, (_, most) = np.random.default_rng(0), row["num_instructions"]
        return self.language.write(self.language.draw(rng, most, self.num_inputs))

    def reject(self, prompt: str, completion: str, row: Row) -> list[str]:
        """Why it is no program, or does not run to its end; what it says is free."""
        program = self.language.read(completion)
        if program is None:
            return [REASONS[0]]
        said = self.language.run(program, [0] * self.num_inputs)
        return [said] if row["only_right"] and isinstance(said, str) else []

    def carrier_tokens(self, tokens: Tokens) -> Sequence[int]:
        """Names and numbers: what is between them, a grammar decides for the most part."""
        return tokens.word_ids([*self.language.registers, *self.language.numbers])

    def carried(self, completion: str) -> list[str]:
        """Names and numbers."""
        known = {*self.language.registers, *self.language.numbers}
        return [word for word in re.findall(r"\w+", completion) if word in known]

    def _permuted(self, completions: Sequence[str], seed: int) -> list[str]:
        programs = self.language.permute([self._accepted(text) for text in completions], seed)
        return [self.language.write(program) for program in programs]

    def _random(self, completions: Sequence[str], seed: int) -> list[str]:
        """As many instructions as there were, drawn anew; two where there was one that fails."""
        lengths = [max(len(self._accepted(text)), 2) for text in completions]
        return [
            self.language.write(self.language.draw(rng, length, self.num_inputs))
            for i, length in enumerate(lengths)
            for rng in [np.random.default_rng(seeds.seed(seed, i))]
        ]

    def _accepted(self, completion: str) -> Program:
        program = self.language.read(completion)
        if program is None:
            raise ValueError(f"completion {completion!r:.40} is no program; filter it")
        return program
