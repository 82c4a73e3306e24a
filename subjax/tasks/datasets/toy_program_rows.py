"""Data sets of kind "toy_programs": programs in the language of the toy world of programs."""

from subjax.tasks.api import Row
from subjax.tasks.datasets.program_rows import ProgramRows
from subjax.tasks.toy import toyworld
from subjax.tasks.toy.toy_programs import LANGUAGE, ToyPrograms


class ToyProgramRows(ProgramRows):
    """Programs that a base of source "toy" with world "programs" was pretrained on."""

    language = LANGUAGE
    num_inputs = ToyPrograms().num_inputs

    def prompts(self, row: Row, seed: int, stimuli: str) -> list[str]:  # noqa: D102
        return toyworld.prompts(toyworld.WORLDS["programs"], seed, row["num_prompts"])
