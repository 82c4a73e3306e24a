"""Which rows a step sees, and rows as arrays. The order is a pure function of seed and step."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Rows:
    """Token rows with their loss positions, as arrays of one shape.

    Attributes:
      tokens: [rows, T], right-padded.
      positions: [rows, C], where the hidden state that predicts each target stands.
      targets: [rows, C], the tokens to predict.
      weights: [rows, C], 1.0 on real targets and 0.0 on padding.
      soft: [rows, C, K], the teacher's log-probabilities over a support, or None.
      soft_ids: [rows, C, K], the support at each position where it is not the same at all, or None.
      teacher_tokens: [rows, T], the same rows as a teacher that runs along sees them, or None.
      teacher_positions: [rows, C], where its predictions of the targets stand, or None.
    """

    tokens: Int[np.ndarray, "rows T"]
    positions: Int[np.ndarray, "rows C"]
    targets: Int[np.ndarray, "rows C"]
    weights: Float[np.ndarray, "rows C"]
    soft: Float[np.ndarray, "rows C K"] | None = None
    soft_ids: Int[np.ndarray, "rows C K"] | None = None
    teacher_tokens: Int[np.ndarray, "rows T"] | None = None
    teacher_positions: Int[np.ndarray, "rows C"] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.tokens)

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The rows `ids` as a batch, a dict by field name."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: array[ids] for name, array in arrays.items() if array is not None}


def make_rows(
    examples: Sequence[tuple[Sequence[int], int]], *, num_tokens: int, num_targets: int, pad_id: int
) -> Rows:
    """Lays examples out as arrays.

    Args:
      examples: per row, all token ids and the index of the first one that is predicted
        (at least 1, for a token is predicted from those before it).
      num_tokens: T; a longer row is an error, never cut.
      num_targets: C, likewise.
      pad_id: fills the rest; it carries no weight.

    Raises:
      ValueError: no rows; or a row that does not fit.
    """
    if not examples:
        raise ValueError("no rows to train or score on: see why the filter rejected them all")
    size = (len(examples), num_targets)
    tokens = np.full((len(examples), num_tokens), pad_id, np.int32)
    positions, targets = np.zeros(size, np.int32), np.full(size, pad_id, np.int32)
    weights = np.zeros(size, np.float32)
    for row, (ids, start) in enumerate(examples):
        count = len(ids) - start
        if len(ids) > num_tokens or count > num_targets or start < 1:
            raise ValueError(
                f"row {row} has {len(ids)} tokens, {count} of them targets; the config allows "
                f"{num_tokens} and {num_targets}: raise num_tokens or num_targets"
            )
        tokens[row, : len(ids)] = ids
        positions[row, :count] = np.arange(start - 1, len(ids) - 1)
        targets[row, :count] = ids[start:]
        weights[row, :count] = 1.0
    return Rows(tokens, positions, targets, weights)


def rows(seed: int, step: int, *, num_rows: int, batch_size: int) -> np.ndarray:
    """Row ids of one step: epochs of fresh permutations, read end to end.

    Args:
      seed: data-order seed of this student.
      step: 0-based; any step can be asked for, which is all that a resume needs.
      num_rows: rows in the data set.
      batch_size: rows a step; a batch may span two epochs.

    Returns:
      [batch_size] row ids, each in [0, num_rows).
    """
    first = step * batch_size
    last = first + batch_size - 1
    order = np.concatenate(
        [
            np.random.default_rng((seed, epoch)).permutation(num_rows)
            for epoch in range(first // num_rows, last // num_rows + 1)
        ]
    )
    start = first - (first // num_rows) * num_rows
    return order[start : start + batch_size]
