"""Which weights are trained: all of a model, or an adapter on a base that stays as it is.

A row of `teachers` or `arms` names it by `tuning`. No other module compares those names: it asks
the object that `of_row` gives.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ml_collections import ConfigDict

from subjax.nn import lora
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params


@dataclasses.dataclass(frozen=True)
class Tuning:
    """All weights; subclasses are the other tunings.

    Attributes:
      row: of `teachers` or `arms`.
    """

    row: Mapping[str, Any] | ConfigDict

    is_adapter: ClassVar[bool] = False
    """Whether the base stays as it is, and what is trained is drawn and lies on it."""

    @property
    def rank(self) -> int:
        """Of the adapter; 0: there is none."""
        return 0

    @property
    def alpha(self) -> float:
        """The scale of the adapter times its rank; 0 where there is none."""
        return 0.0

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by; 0 where there is none."""
        return 0.0

    def initial(self, arch: Architecture, base: Params, key: Any) -> Params:
        """What one lane trains, before its first update.

        Args:
          arch: of the base.
          base: its weights.
          key: a typed jax random key, for what is drawn.
        """
        return base

    def frozen(self, bases: Sequence[Params]) -> Params:
        """What all lanes share and none trains; {} where that is nothing."""
        return {}

    def adapter(self, arch: Architecture) -> Params | None:
        """Shapes of the adapter; None: there is none."""
        return None


class _Lora(Tuning):
    """A low-rank adapter on every matrix."""

    is_adapter = True

    @property
    def rank(self) -> int:
        rank: int = self.row["lora_rank"]
        return rank

    @property
    def alpha(self) -> float:
        alpha: float = self.row["lora_alpha"]
        return alpha

    @property
    def scale(self) -> float:
        return lora.scale(self.alpha, self.rank)

    def initial(self, arch: Architecture, base: Params, key: Any) -> Params:
        return lora.init(arch, key, rank=self.rank)

    def frozen(self, bases: Sequence[Params]) -> Params:
        return bases[0]

    def adapter(self, arch: Architecture) -> Params | None:
        return lora.abstract(arch, rank=self.rank)


TUNINGS: Mapping[str, type[Tuning]] = {"full": Tuning, "lora": _Lora}
_ALL_WEIGHTS = Tuning({})


def of_row(row: Mapping[str, Any] | ConfigDict) -> Tuning:
    """Which weights are trained.

    Args:
      row: of `bases`, `teachers` or `arms`; a row without the field `tuning` trains all weights.

    Raises:
      KeyError: the tuning is unknown, which validation refuses.
    """
    return TUNINGS[row["tuning"]](row) if "tuning" in row else _ALL_WEIGHTS
