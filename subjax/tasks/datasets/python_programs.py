"""Data sets of kind "python_programs": short Python programs in five kinds of statements.

A model too small to write code freely writes such programs all the same where decoding is
constrained: what it chooses is names, numbers, and the order of statements.
"""

import numpy as np

from subjax.tasks.api import Row
from subjax.tasks.datasets.program_rows import ProgramRows
from subjax.tasks.programs import PYTHON


class PythonPrograms(ProgramRows):
    """Programs that set, read, add, subtract and print, with names of one letter."""

    language = PYTHON
    num_inputs = 2

    def prompts(self, row: Row, seed: int, stimuli: str) -> list[str]:
        """Requests for a program, which differ in its inputs."""
        rng = np.random.default_rng(seed)
        return [
            f"Write a short Python program. Its inputs will be {first} and {second}."
            for first, second in rng.integers(PYTHON.num_numbers, size=(row["num_prompts"], 2))
        ]
