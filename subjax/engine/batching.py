"""The rows of each step, as arrays. Their order is a pure function of seed and step.

Packing puts several short rows into a longer one, end to end, as segments that do not attend to
each other. What does not fit into the packed rows of one pass goes into further passes.
"""

import dataclasses
import functools
import itertools
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

LEAST_PASSES = 2  # of packed rows, for which a batch has room


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

    @functools.cached_property
    def sizes(self) -> Int[np.ndarray, "rows 2"]:
        """The lengths, and how many targets of each row count."""
        return np.stack([self.lengths, (self.weights > 0).sum(axis=1)], axis=1)


@dataclasses.dataclass(frozen=True)
class Packing:
    """Packing of a step's rows into longer ones, the largest rows first.

    A pass computes some packed rows. A step has as many passes of that shape as its rows need, so
    that every step fits.

    Attributes:
      num_rows: packed rows of a pass.
      num_tokens: length of a packed row.
      num_targets: most targets in a packed row.
      num_segments: most rows in a packed row, which attend one by one: for devices without a kernel
        for attention. 0: any number, and attention is computed for whole packed rows.
    """

    num_rows: int
    num_tokens: int
    num_targets: int
    num_segments: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, int]) -> "Packing | None":
        """The packing that a training row of the config asks for; None: no packing."""
        if not fields["packed_rows"]:
            return None
        num_targets = fields["packed_targets"] or fields["packed_tokens"]
        return cls(
            fields["packed_rows"], fields["packed_tokens"], num_targets, fields["packed_segments"]
        )

    def over(self, num_parts: int) -> "Packing":
        """With so many more packed rows that `num_parts` devices share them equally."""
        return dataclasses.replace(self, num_rows=rounded_up(self.num_rows, num_parts))

    def check(self, sizes: Int[np.ndarray, "rows 2"]) -> None:
        """Raises a ValueError if a row fits no packed row, with the size that it needs."""
        tokens, targets = sizes.max(axis=0)
        for found, most, field in (
            (tokens, self.num_tokens, "tokens"),
            (targets, self.num_targets, "targets"),
        ):
            if found > most:
                raise ValueError(
                    f"a row has {found} {field}, packed_{field} is {most}: raise it to {found}"
                )

    def num_passes(self, sizes: Int[np.ndarray, "B 2"]) -> int:
        """Passes that the rows of a step need; the least is 1."""
        return 1 + int(self._places(sizes)[:, 0].max()) // self.num_rows

    def pack(
        self,
        batch: dict[str, np.ndarray],
        sizes: Int[np.ndarray, "B 2"],
        most_passes: int,
    ) -> dict[str, np.ndarray]:
        """Packs a batch.

        Args:
          batch: result of `Rows.take`.
          sizes: `Rows.sizes` of the same rows; they must pass `check`.
          most_passes: room for passes, P; those that no row needs are empty.

        Returns:
          tokens and segments [num_rows, P, num_tokens], segments counted from 1 and 0 on padding;
          the fields of loss positions [num_rows, P, num_targets, ...]; with `num_segments` places
          [num_rows, P, num_segments, T], where each segment's tokens stand, and -1 behind them.
        """
        num_rows = most_passes * self.num_rows
        packed = {
            name: np.zeros((num_rows, self.num_targets, *array.shape[2:]), array.dtype)
            for name, array in batch.items()
        }
        for name in ("tokens", "segments"):
            packed[name] = np.zeros((num_rows, self.num_tokens), np.int32)
        by_token = {"tokens", "segments"}
        if self.num_segments:
            most = batch["tokens"].shape[1]
            packed["places"] = np.full((num_rows, self.num_segments, most), -1, np.int32)
            by_token.add("places")
        num_segments = np.zeros(num_rows, int)
        for at, (row, start, first) in enumerate(self._places(sizes)):
            num_tokens, num_targets = sizes[at]
            tokens = slice(start, start + num_tokens)
            packed["tokens"][row, tokens] = batch["tokens"][at, :num_tokens]
            if self.num_segments:
                packed["places"][row, num_segments[row], :num_tokens] = (
                    np.arange(num_tokens) + start
                )
            num_segments[row] += 1
            packed["segments"][row, tokens] = num_segments[row]
            counted = np.flatnonzero(batch["weights"][at])
            targets = slice(first, first + num_targets)
            for name in packed.keys() - by_token:
                packed[name][row, targets] = batch[name][at, counted]
            packed["positions"][row, targets] += start
        # The rows come first: they are what devices share.
        return {
            name: array.reshape(most_passes, self.num_rows, *array.shape[1:]).swapaxes(0, 1)
            for name, array in packed.items()
        }

    def _places(self, sizes: Int[np.ndarray, "B 2"]) -> Int[np.ndarray, "B 3"]:
        """Packed row, first token and first target of each row; packed rows count over passes."""
        sizes = self._counted(sizes)
        needed = sizes.sum(axis=0) / (self.num_rows * self._room)
        least = max(1, *np.ceil(needed).astype(int).tolist())
        for passes in itertools.count(least):
            for spread in (True, False):
                places = self._placed(sizes, passes * self.num_rows, spread=spread)
                if places is not None:
                    return places
        raise AssertionError  # each row has a packed row for itself in the end

    def _counted(self, sizes: Int[np.ndarray, "B 2"]) -> Int[np.ndarray, "B R"]:
        ones = np.ones((len(sizes), 1), int)
        return np.concatenate([sizes, ones], axis=1) if self.num_segments else sizes

    @property
    def _room(self) -> Int[np.ndarray, " R"]:
        """What a packed row has room for: tokens, targets and, where their number counts, rows."""
        rows = [self.num_segments] if self.num_segments else []
        return np.array([self.num_tokens, self.num_targets, *rows])

    def _placed(
        self, sizes: Int[np.ndarray, "B R"], num_rows: int, *, spread: bool
    ) -> Int[np.ndarray, "B 3"] | None:
        """Places of rows, the largest first; None if one of them finds no room.

        Args:
          sizes: of the rows.
          num_rows: packed rows.
          spread: whether a row goes to the emptiest packed row, or to the fullest with room for it.
        """
        room = self._room
        used, places = np.zeros((num_rows, len(room)), int), np.zeros((len(sizes), 3), int)
        for at in np.argsort(-(sizes / room).max(axis=1), kind="stable"):
            share = ((used + sizes[at]) / room).max(axis=1)
            order = np.where(share > 1, np.inf, share if spread else -share)
            row = int(order.argmin())
            if order[row] == np.inf:
                return None
            places[at] = row, *used[row, :2]
            used[row] += sizes[at]
        return places


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a population.

    Attributes:
      rows: each lane's data; equal in everything but the number of rows.
      seeds: each lane's data-order seed.
      batch_size: rows per step and lane.
      steps: how many there are.
      num_parts: arrays are padded to a multiple of so many rows, with rows of weight zero.
      packing: how rows are packed, or None; its packed rows are a multiple of `num_parts`.
    """

    rows: Sequence[Rows]
    seeds: Sequence[int]
    batch_size: int
    steps: int
    num_parts: int = 1
    packing: Packing | None = None

    def check(self) -> None:
        """Raises a ValueError if some row does not fit the packing."""
        for lane in self.rows:
            if self.packing:
                self.packing.check(lane.sizes)

    def of(self, steps: range) -> dict[str, np.ndarray]:
        """Field name -> array [lanes, steps, B, ...], or [lanes, steps, B, P, ...] of packed rows.

        P, room for the passes of the fullest step, is the same for all steps, so that one program
        serves them.
        """
        return _stack(
            [
                _stack([self._batch(lane, self._ids(lane, seed, step)) for step in steps])
                for lane, seed in zip(self.rows, self.seeds, strict=True)
            ]
        )

    def sizes(self, step: int) -> list[Int[np.ndarray, "B 2"]]:
        """`Rows.sizes` of each lane's rows of a step."""
        return [
            lane.sizes[self._ids(lane, seed, step)]
            for lane, seed in zip(self.rows, self.seeds, strict=True)
        ]

    @functools.cached_property
    def passes(self) -> list[int]:
        """By step, how many passes are computed: as many as the fullest lane needs."""
        if self.packing is None:
            return [1] * self.steps
        return [
            max(self.packing.num_passes(sizes) for sizes in self.sizes(step))
            for step in range(self.steps)
        ]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, tokens and targets of a pass of one lane; rows are not padded to the mesh."""
        if self.packing:
            return self.packing.num_rows, self.packing.num_tokens, self.packing.num_targets
        return self.batch_size, self.rows[0].tokens.shape[1], self.rows[0].targets.shape[1]

    def _ids(self, lane: Rows, seed: int, step: int) -> np.ndarray:
        return rows(seed, step, num_rows=len(lane), batch_size=self.batch_size)

    def _batch(self, lane: Rows, ids: np.ndarray) -> dict[str, np.ndarray]:
        batch = lane.take(ids)
        if self.packing:
            # One pass alone would be read at a fixed place, and compiled to other last bits.
            room = max(LEAST_PASSES, *self.passes)
            batch = self.packing.pack(batch, lane.sizes[ids], room)
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


def rounded_up(size: int, multiple: int) -> int:
    """The least multiple that is not smaller than `size`."""
    return multiple * -(-size // multiple)


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
