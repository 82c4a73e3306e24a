"""Whether a row of `arms` goes with the weights that its student starts from.

What these are is in `nn/starts.py`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from subjax.nn.starts import AS_IT_IS
from subjax.recipes import tunings

_LEAST = {"rescaled": 1.0, "noised": 0.0}  # sizes are above


def check(field: str, row: Mapping[str, Any] | ConfigDict) -> None:
    """Raises a ValueError where the fields of an arm do not go with its start.

    Args:
      field: of the config, that the row is.
      row: of `arms`.
    """
    start, size = row["start"], row["start_size"]
    least = _LEAST.get(start)
    if (least is None and size) or (least is not None and not size > least):
        wanted = "takes none: set it to 0" if least is None else f"needs one above {least:g}"
        raise ValueError(f"config.{field}.start_size is {size}, and start {start!r} {wanted}")
    if start == AS_IT_IS:
        return
    if tunings.of_row(row).is_adapter:
        raise ValueError(
            f"config.{field}.start is {start!r}, and its tuning {row['tuning']!r} leaves the base "
            "as it is: take tuning 'full'"
        )
    if 0 in row["probe_steps"]:
        raise ValueError(
            f"config.{field}.probe_steps has 0, at which a student is its base, and start "
            f"{start!r} changes that: leave it out"
        )
