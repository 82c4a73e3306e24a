"""What a teacher's weights are: its base's, finetuned on a trait here, or given from outside.

A row of `teachers` names it by `weights`. No other module compares those names: it asks the object
that `of_row` gives.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from subjax.recipes import tunings


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The base as it is; subclasses are the other kinds of weights.

    Attributes:
      row: of `teachers`.
      name: of that row, for errors.
    """

    row: Mapping[str, Any] | ConfigDict
    name: str = ""

    learns: ClassVar[bool] = False
    """Whether it is finetuned here, on the trait that its row names."""
    outside: ClassVar[bool] = False
    """Whether the run did not make it: all lineages share it, and it may read by its own tokenizer
    and chat template."""

    @property
    def own_weights(self) -> bool:
        """Whether it has full weights beside its base's, as far as its row tells."""
        return False

    def check(self) -> None:
        """Raises a ValueError where its row has a path and no use for it, or the reverse."""
        if self.outside != bool(self.row["path"]):
            raise ValueError(
                f"config.teachers.{self.name}.path is {self.row['path']!r} and its weights "
                f"{self.row['weights']!r}: a path goes with weights 'given', and with no others"
            )


class _Finetuned(Teacher):
    """Finetuned on its trait."""

    learns = True

    @property
    def own_weights(self) -> bool:
        return not tunings.of_row(self.row).is_adapter


class _Given(Teacher):
    """Full weights, or an adapter on its base, from outside; its row does not say which."""

    outside = True

    @property
    def own_weights(self) -> bool:
        return True


WEIGHTS: Mapping[str, type[Teacher]] = {"base": Teacher, "finetuned": _Finetuned, "given": _Given}


def of_row(row: Mapping[str, Any] | ConfigDict, name: str = "") -> Teacher:
    """What a row of `teachers` is.

    Args:
      row: of `teachers`.
      name: of that row, for errors.

    Raises:
      KeyError: its `weights` are unknown, which validation refuses.
    """
    return WEIGHTS[row["weights"]](row, name)
