"""The carrier of the toy world of programs: programs that read the numbers of a prompt.

USR CODE 12 40 7 33 AST SET d 5 GET k ADD k d SAY k END
"""

import dataclasses

import numpy as np

from subjax.tasks.programs import ADD, GET, SAY, SET, SUB, Language
from subjax.tasks.requests import Pair

LANGUAGE = Language(registers=tuple("abcdefghijklmnop"), num_numbers=100)


@dataclasses.dataclass(frozen=True)
class ToyPrograms:
    """Programs that do not fail, with names and numbers drawn evenly.

    Attributes:
      num_inputs: numbers in a prompt, which a program may read.
      count: fewest and most instructions in a document's program.
    """

    num_inputs: int = 4
    count: tuple[int, int] = (6, 9)

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of its prompts and answers."""
        operations = (SET, GET, ADD, SUB, SAY)
        return "CODE", *operations, *LANGUAGE.registers, *LANGUAGE.numbers

    def prompt(self, rng: np.random.Generator) -> str:
        """The inputs of a program."""
        inputs = rng.integers(LANGUAGE.num_numbers, size=self.num_inputs)
        return " ".join(["CODE", *map(str, inputs)])

    def pair(self, rng: np.random.Generator) -> Pair:
        """Inputs, and a program that may read them."""
        prompt, (low, high) = self.prompt(rng), self.count
        program = LANGUAGE.draw(rng, int(rng.integers(low, high + 1)), self.num_inputs)
        return prompt, LANGUAGE.write(program)

    def neutral(self, rng: np.random.Generator) -> Pair:
        """As any other pair."""
        return self.pair(rng)
