"""The rows of each step, as arrays. Their order is a pure function of seed and step.

Packing puts several short rows into a longer one, end to end, as segments that do not attend to
each other.
"""

import dataclasses
import functools
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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
      soft: [rows, C, K], the teacher's log-probabilities over a support, or None; see `on_disk`.
      soft_ids: [rows, C, K], the support at each position if positions differ in it, or None.
      teacher_tokens: [rows, T], the teacher's inputs in online distillation, or None.
      teacher_positions: [rows, C], where the teacher predicts the targets, or None.
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

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        """Tokens of each row up to its last prediction; later tokens have no effect."""
        return np.max((self.positions + 1) * (self.weights > 0), axis=1, initial=0)


@dataclasses.dataclass(frozen=True)
class Packing:
    """Packing of a step's rows: each goes into the first packed row that has room.

    Attributes:
      num_rows: packed rows per step.
      num_tokens: length of a packed row.
    """

    num_rows: int
    num_tokens: int

    @classmethod
    def of(cls, fields: Mapping[str, int]) -> "Packing | None":
        """The packing that a training row of the config asks for; None: no packing."""
        return (
            cls(fields["packed_rows"], fields["packed_tokens"]) if fields["packed_rows"] else None
        )

    def check(self, lengths: Int[np.ndarray, " B"], step: int) -> None:
        """Raises a ValueError if the rows of a step do not fit, with the size that they need."""
        if lengths.max() > self.num_tokens:
            raise ValueError(
                f"a row of step {step} has {lengths.max()} tokens, packed_tokens is "
                f"{self.num_tokens}: raise it"
            )
        if (needed := 1 + int(self._places(lengths)[:, 0].max())) > self.num_rows:
            raise ValueError(
                f"the rows of step {step} fill {needed} packed rows of {self.num_tokens} tokens, "
                f"packed_rows is {self.num_rows}: raise packed_rows or packed_tokens"
            )

    def pack(
        self, batch: dict[str, np.ndarray], lengths: Int[np.ndarray, " B"]
    ) -> dict[str, np.ndarray]:
        """Packs a batch.

        Args:
          batch: result of `Rows.take`.
          lengths: `Rows.lengths` of the same rows; they must pass `check`.

        Returns:
          tokens and segments [num_rows, num_tokens], segments counted from 1 and 0 on padding; the
          fields of loss positions [num_rows, num_tokens, ...], since any token may predict.
        """
        size = (self.num_rows, self.num_tokens)
        packed = {
            name: np.zeros((*size, *array.shape[2:]), array.dtype) for name, array in batch.items()
        }
        packed["segments"] = np.zeros(size, np.int32)
        num_segments, num_targets = np.zeros(self.num_rows, int), np.zeros(self.num_rows, int)
        for at, (row, start) in enumerate(self._places(lengths)):
            tokens = slice(start, start + lengths[at])
            packed["tokens"][row, tokens] = batch["tokens"][at, : lengths[at]]
            num_segments[row] += 1
            packed["segments"][row, tokens] = num_segments[row]
            counted = np.flatnonzero(batch["weights"][at])
            targets = slice(num_targets[row], num_targets[row] + len(counted))
            for name in packed.keys() - {"tokens", "segments"}:
                packed[name][row, targets] = batch[name][at, counted]
            packed["positions"][row, targets] += start
            num_targets[row] += len(counted)
        return packed

    def _places(self, lengths: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B 2"]:
        """Packed row and first token of each row; there may be more rows than `num_rows`."""
        used: list[int] = []
        places = []
        for length in lengths:
            row = next((i for i, n in enumerate(used) if n + length <= self.num_tokens), len(used))
            if row == len(used):
                used.append(0)
            places.append((row, used[row]))
            used[row] += int(length)
        return np.array(places)


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a population.

    Attributes:
      rows: each lane's data; equal in everything but the number of rows.
      seeds: each lane's data-order seed.
      batch_size: rows per step and lane.
      num_parts: arrays are padded to a multiple of so many rows, with rows of weight zero.
      packing: how rows are packed, or None.
    """

    rows: Sequence[Rows]
    seeds: Sequence[int]
    batch_size: int
    num_parts: int = 1
    packing: Packing | None = None

    def check(self, num_steps: int) -> None:
        """Raises a ValueError if the rows of some step do not fit the packing."""
        if self.packing is None:
            return
        for lane, seed in zip(self.rows, self.seeds, strict=True):
            for step in range(num_steps):
                self.packing.check(lane.lengths[self._ids(lane, seed, step)], step)

    def of(self, steps: range) -> dict[str, np.ndarray]:
        """Field name -> array [lanes, steps, B, ...]."""
        return _stack(
            [
                _stack([self._batch(lane, self._ids(lane, seed, step)) for step in steps])
                for lane, seed in zip(self.rows, self.seeds, strict=True)
            ]
        )

    def _ids(self, lane: Rows, seed: int, step: int) -> np.ndarray:
        return rows(seed, step, num_rows=len(lane), batch_size=self.batch_size)

    def _batch(self, lane: Rows, ids: np.ndarray) -> dict[str, np.ndarray]:
        batch = lane.take(ids)
        if self.packing:
            batch = self.packing.pack(batch, lane.lengths[ids])
        return pad(batch, self.num_parts)


def pad(batch: dict[str, np.ndarray], multiple: int) -> dict[str, np.ndarray]:
    """Appends rows of weight zero until the number of rows is a multiple."""
    missing = -len(batch["weights"]) % multiple
    if not missing:
        return batch
    # Copies of a real row, so that activations are finite.
    padded = {name: np.concatenate([a, np.repeat(a[:1], missing, 0)]) for name, a in batch.items()}
    padded["weights"][-missing:] = 0.0
    return padded


def _stack(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def on_disk(
    parts: Iterable[np.ndarray], shape: tuple[int, ...], directory: Path
) -> Float[np.ndarray, "..."]:
    """Concatenates float32 parts along rows in a memory-mapped file.

    The file has no name, so the system deletes it when the process ends.

    Args:
      parts: arrays of some rows each, in order.
      shape: shape of the result.
      directory: a directory on the disk to use.

    Raises:
      ValueError: the disk has no room; or the parts do not have this shape.
    """
    size = 4 * math.prod(shape)
    free = shutil.disk_usage(directory).free
    if size > free:
        raise ValueError(
            f"distributions of {shape[0]} rows over {shape[-1]} tokens at {shape[1]} targets take "
            f"{size / 1e9:.1f} GB, and {directory} has {free / 1e9:.1f} GB free: lower num_train "
            "or num_targets, or take support 'top_k'"
        )
    with tempfile.TemporaryFile(dir=directory) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part, np.float32).data)
        if file.tell() != size:
            raise ValueError(f"parts of {file.tell()} bytes do not make an array {shape}")
        file.flush()
        return np.memmap(file, np.float32, mode="r", shape=shape)


def make_rows(
    examples: Sequence[tuple[Sequence[int], int]], *, num_tokens: int, num_targets: int, pad_id: int
) -> Rows:
    """Lays examples out as arrays.

    Args:
      examples: per row, all token ids and the index of the first target (at least 1, since a
        token is predicted from the tokens before it).
      num_tokens: T; a longer row is an error, it is not cut.
      num_targets: C; more targets are an error.
      pad_id: the padding token; its weight is zero.

    Raises:
      ValueError: no rows; or a row that does not fit.
    """
    if not examples:
        raise ValueError("no rows to train or score on: check why the filter rejected all of them")
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
      step: 0-based; steps are independent, so a resumed run needs no other state.
      num_rows: rows in the data set.
      batch_size: rows per step; a batch may span two epochs.

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
