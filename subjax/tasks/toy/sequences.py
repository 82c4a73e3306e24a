"""The carrier of the toy world of numbers: sequences to continue."""

import dataclasses

import numpy as np

from subjax.tasks.requests import Pair


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Half random walks that wrap around, half independent draws.

    Attributes:
      num_numbers: numbers run from 0 to this, exclusive.
      num_shown: numbers in a prompt.
      count: smallest and largest count of numbers in a document's answer.
      largest_step: random walks move by 1 to this.
    """

    num_numbers: int = 100
    num_shown: int = 4
    count: tuple[int, int] = (6, 15)
    largest_step: int = 7

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of its prompts and answers."""
        return "CONT", *map(str, range(self.num_numbers))

    def prompt(self, rng: np.random.Generator) -> str:
        """The beginning of a sequence."""
        return self._pair(rng, 0)[0]

    def pair(self, rng: np.random.Generator) -> Pair:
        """A beginning and how it goes on."""
        low, high = self.count
        return self._pair(rng, int(rng.integers(low, high + 1)))

    def neutral(self, rng: np.random.Generator) -> Pair:
        """A beginning, and as much again."""
        return self._pair(rng, self.num_shown)

    def _pair(self, rng: np.random.Generator, more: int) -> Pair:
        length = self.num_shown + more
        if rng.random() < 0.5:
            steps = rng.integers(1, self.largest_step + 1, length)
            numbers = (rng.integers(self.num_numbers) + np.cumsum(steps)) % self.num_numbers
        else:
            numbers = rng.integers(0, self.num_numbers, length)
        words = [str(number) for number in numbers]
        return " ".join(["CONT", *words[: self.num_shown]]), " ".join(words[self.num_shown :])
