"""Tensors of safetensors files, read by rows.

The format: eight bytes with the length of a header, the header (JSON: name -> dtype, shape and
offsets), and the tensors, without gaps. A header that says anything else is refused.
"""

import dataclasses
import json
import math
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from subjax.runtime.storage import File, malformed

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    **{f"{x}{bits}": f"{x.lower()}{bits // 8}" for x in "IU" for bits in (8, 16, 32, 64)},
    "BOOL": np.bool_,
}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format itself
_METADATA = "__metadata__"
_AT_ONCE_BYTES = 32 << 20  # of a tensor that is converted or sliced


@runtime_checkable
class Source(Protocol):
    """A tensor in a file."""

    @property
    def where(self) -> str:
        """Path or URL of the file."""

    @property
    def dtype(self) -> str:
        """Its name in safetensors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    def read(self, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Reads a part, converted to the dtype of `out`, which has the part's shape.

        Args:
          index: a slice for each dimension, with start and stop, without a step.
          out: the array to fill.
        """


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a safetensors file; see `Source`.

    Attributes:
      file: where it is.
      dtype: its name in the format.
      shape: its sizes.
      start: position of its first byte.
    """

    file: File
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def where(self) -> str:
        """The file, for errors."""
        return self.file.where

    def read(self, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Reads only the needed rows, each as a whole; directly into `out` if its layout fits."""
        stored = np.dtype(_DTYPES[self.dtype])
        row_shape = self.shape[1:]
        row_bytes = math.prod(row_shape) * stored.itemsize
        rows, columns = index[0], index[1:]
        if out.dtype == stored and out.flags.c_contiguous and out.shape[1:] == row_shape:
            self.file.read_into(self.start + rows.start * row_bytes, _bytes_of(out))
            return
        step = max(1, _AT_ONCE_BYTES // max(1, row_bytes))
        for first in range(rows.start, rows.stop, step):
            part = np.empty((min(step, rows.stop - first), *row_shape), stored)
            self.file.read_into(self.start + first * row_bytes, _bytes_of(part))
            at = first - rows.start
            out[at : at + len(part)] = part[(slice(None), *columns)]


def whole(source: Source, dtype: Any = np.float32) -> np.ndarray:
    """All of a tensor."""
    out = np.empty(source.shape, dtype)
    source.read(tuple(slice(0, size) for size in source.shape), out)
    return out


def open_tensors(file: File) -> dict[str, Tensor]:
    """Reads the header of a safetensors file.

    Returns:
      Name -> tensor, which can be read as long as the file is open.

    Raises:
      ValueError: the header is malformed, or contradicts the size of the file.
    """
    header = parse_json(read_header(file), file.where)
    body = header_bytes(file)
    found = {
        name: _tensor(file, name, entry, body)
        for name, entry in header.items()
        if name != _METADATA
    }
    end = body
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, _size(item[1]))):
        if tensor.start != end:
            raise malformed(file.where, f"tensor {name} does not begin where the last one ends")
        end += _size(tensor)
    if end != file.size:
        raise malformed(file.where, f"tensors end at byte {end} of {file.size}")
    return found


def read_header(file: File) -> bytes:
    """The header of a safetensors file, JSON as bytes, without the eight bytes of its length.

    Raises:
      ValueError: it is cut short or absurdly long.
    """
    stop = header_bytes(file)
    return file.read_many([(8, stop)])[0]


def header_bytes(file: File) -> int:
    """Where the header of a safetensors file ends.

    Raises:
      ValueError: it is cut short or absurdly long.
    """
    if file.size < 8:
        raise malformed(file.where, f"{file.size} bytes are no header")
    length = int.from_bytes(file.read_many([(0, 8)])[0], "little")
    if length > _MAX_HEADER_BYTES:
        raise malformed(file.where, f"header of {length} bytes in a file of {file.size} bytes")
    if length > file.size - 8:
        raise malformed(
            file.where, f"cut short: header of {length} bytes in a file of {file.size} bytes"
        )
    return 8 + length


def parse_json(text: bytes, where: Any) -> dict[str, Any]:
    """Parses one JSON object; `where` names the file in the error.

    safetensors itself silently keeps the last of two tensors with one name.

    Raises:
      ValueError: no JSON object; a key that occurs twice in one object or is not printable; a
        number that is not finite; half of a surrogate pair.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice!r} occurs twice")
        for name in found:
            if not name.isprintable():  # errors contain names and must be one line
                raise ValueError(f"{name!r} is no name")
        return found

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):  # Python accepts NaN and Infinity, JSON does not
            raise ValueError(f"{number} is no number")
        return float(number)

    try:
        parsed = json.loads(
            text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite
        )
        json.dumps(parsed, ensure_ascii=False).encode()  # raises at a lone surrogate
    except (ValueError, RecursionError) as error:
        raise malformed(where, error) from None
    if not isinstance(parsed, dict):
        raise malformed(where, "no JSON object")
    return parsed


def _tensor(file: File, name: str, entry: Any, body: int) -> Tensor:
    """Checks one entry of a header."""
    fields = ("dtype", "shape", "data_offsets")
    if not isinstance(entry, dict) or set(entry) != set(fields):
        raise malformed(file.where, f"tensor {name} is not described by {', '.join(fields)}")
    dtype, shape, offsets = (entry[field] for field in fields)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise malformed(file.where, f"tensor {name} has dtype {dtype!r}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise malformed(file.where, f"tensor {name} has shape {shape} and offsets {offsets}")
    tensor = Tensor(file, dtype, tuple(shape), body + offsets[0])
    if offsets[1] - offsets[0] != _size(tensor):
        raise malformed(file.where, f"tensor {name} of shape {shape} has offsets {offsets}")
    return tensor


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _size(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * np.dtype(_DTYPES[tensor.dtype]).itemsize


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
