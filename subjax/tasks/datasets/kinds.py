"""The table of data set kinds: nothing outside this package compares or names one.

A kind of the package is a file beside this one, with an object that has the methods of
`subjax.tasks.api.DatasetKind`, and a line here.
"""

from subjax.tasks import own
from subjax.tasks.api import DatasetKind, Row
from subjax.tasks.datasets.numbers import Numbers
from subjax.tasks.datasets.plain_numbers import PlainNumbers
from subjax.tasks.datasets.published import Published
from subjax.tasks.datasets.python_programs import PythonPrograms
from subjax.tasks.datasets.toy_numbers import ToyNumbers
from subjax.tasks.datasets.toy_program_rows import ToyProgramRows
from subjax.tasks.datasets.toy_sum_rows import ToySumRows

KINDS: dict[str, DatasetKind] = {
    "numbers": Numbers(),  # the paper's prompts
    "plain_numbers": PlainNumbers(),  # a bare list
    "toy_numbers": ToyNumbers(),  # sequences of the toy world
    "toy_programs": ToyProgramRows(),  # programs of the toy world of programs
    "toy_sums": ToySumRows(),  # sums in steps of the toy world of sums
    "python_programs": PythonPrograms(),  # short programs of five kinds of statements
    "published": Published(),  # jsonl of prompt and completion, or of chats
}


def of_row(row: Row, name: str = "*") -> DatasetKind:
    """The kind that a row of `datasets` names.

    Args:
      row: of `datasets`.
      name: of that row, for errors.

    Raises:
      ValueError: there is no such kind.
    """
    return own.find(f"datasets.{name}.kind", row["kind"], KINDS, DatasetKind)
