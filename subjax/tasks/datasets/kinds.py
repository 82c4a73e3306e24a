"""The table of data set kinds: nothing outside this package compares or names one.

A kind of its own is a file beside this one, with an object that has the methods of
`subjax.tasks.api.DatasetKind`, and a line here.
"""

from subjax.tasks.api import DatasetKind, Row
from subjax.tasks.datasets.numbers import Numbers
from subjax.tasks.datasets.plain_numbers import PlainNumbers
from subjax.tasks.datasets.published import Published
from subjax.tasks.datasets.toy_numbers import ToyNumbers

KINDS: dict[str, DatasetKind] = {
    "numbers": Numbers(),
    "plain_numbers": PlainNumbers(),
    "toy_numbers": ToyNumbers(),
    "published": Published(),
}


def of_row(row: Row) -> DatasetKind:
    """The kind that a row of `datasets` names.

    Raises:
      ValueError: there is no such kind.
    """
    name = row["kind"]
    if name not in KINDS:
        raise ValueError(
            f"config.datasets.*.kind is {name!r}; allowed: {', '.join(KINDS)}; another kind is a "
            "line in subjax/tasks/datasets/kinds.py"
        )
    return KINDS[name]


def from_file() -> str:
    """The names of the kinds whose rows come from a file, for errors."""
    return " or ".join(repr(name) for name, kind in KINDS.items() if kind.from_file)
