"""The GGUF format: a header of metadata and tensor infos, then tensors packed in blocks.

The header is read here, with every length checked; the optional package gguf unpacks values.
"""

import dataclasses
import math
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from subjax.runtime.storage import File, malformed, one_line

_VERSIONS = (2, 3)
_CHUNK_BYTES = 1 << 20
_AT_ONCE_BYTES = 32 << 20  # of values that are unpacked together
_MAX_DIMENSIONS = 4  # the format's own limit
_STRING, _ARRAY = 8, 9
# Type of a value in the metadata -> format character of struct.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}


@dataclasses.dataclass(frozen=True)
class Packed:
    """A tensor of a GGUF file; see `tensors.Source`.

    Attributes:
      file: where it is.
      kind: how its values are packed, one of gguf's GGMLQuantizationType.
      shape: its sizes, in Hugging Face's order.
      start: position of its first byte.
      row_bytes: bytes of a packed row.
      dequantize: unpacks rows.
      num_heads: heads of queries or keys with rows in llama.cpp's order; 0: other tensors.
      offset: constant that llama.cpp added to the values.
    """

    file: File
    kind: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    row_bytes: int
    dequantize: Callable[[np.ndarray, Any], np.ndarray]
    num_heads: int = 0  # if rows are in llama.cpp's order
    offset: float = 0.0

    @property
    def where(self) -> str:
        """The file, for errors."""
        return self.file.where

    @property
    def dtype(self) -> str:
        """The dtype after unpacking."""
        return "F32"

    def read(self, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Reads whole rows; whole heads if rows are permuted."""
        if len(self.shape) == 1:
            with np.errstate(all="ignore"):  # NaNs are not looked for
                out[...] = self._rows(0, 1)[0, index[0]] - np.float32(self.offset)
            return
        rows, columns = index
        head = self.shape[0] // self.num_heads if self.num_heads else 1
        step = max(1, _AT_ONCE_BYTES // (4 * self.shape[1] * head)) * head
        for first in range(rows.start // head * head, rows.stop, step):
            last = min(first + step, -(-rows.stop // head) * head)
            part = self._rows(first, last)
            if self.num_heads:
                part = unpermute(part, (last - first) // head)
            start, stop = max(first, rows.start), min(last, rows.stop)
            kept = part[start - first : stop - first, columns]
            out[start - rows.start : stop - rows.start] = kept

    def _rows(self, first: int, last: int) -> np.ndarray:
        """Rows in the file's order, float32."""
        packed = np.empty((last - first, self.row_bytes), np.uint8)
        self.file.read_into(self.start + first * self.row_bytes, packed.reshape(-1).data)
        with np.errstate(all="ignore"):  # NaNs are not looked for
            return self.dequantize(packed, self.kind)


def open_tensors(file: File) -> tuple[dict[str, Any], dict[str, Packed]]:
    """Reads the header of a GGUF file.

    Returns:
      Its metadata; and name -> tensor, which can be read as long as the file is open.

    Raises:
      ValueError: the package gguf is missing; the file is malformed; a packing is not supported.
    """
    gguf = package(file.where)
    metadata, infos, body, alignment = _header(_Cursor(file))
    packed = {info[0]: _packed(file, gguf, info, body) for info in infos}
    if len(packed) < len(infos):
        raise malformed(file.where, "two tensors have one name")
    end = body
    for name, tensor in sorted(packed.items(), key=lambda item: item[1].start):
        if (tensor.start - body) % alignment:
            raise malformed(file.where, f"tensor {name[:80]} does not begin at {alignment} bytes")
        if tensor.start < end:
            raise malformed(file.where, f"tensor {name[:80]} begins inside another")
        end = tensor.start + math.prod(tensor.shape[:-1]) * tensor.row_bytes
    return metadata, packed


def read_metadata(file: File) -> dict[str, Any]:
    """The entries of a GGUF file; needs no package.

    Raises:
      ValueError: it is malformed.
    """
    return _header(_Cursor(file))[0]


def read_header(file: File) -> bytes:
    """The bytes of a GGUF file before its tensors; needs no package.

    Raises:
      ValueError: it is malformed.
    """
    _, _, body, _ = _header(_Cursor(file))
    return file.read_many([(0, min(body, file.size))])[0]


def unpermute(kernel: np.ndarray, num_heads: int) -> np.ndarray:
    """Puts the rows of a query or key kernel back into Hugging Face's order.

    llama.cpp rotates adjacent dimensions, Hugging Face dimensions i and i + H/2, so llama.cpp
    interleaves rows.
    """
    num_rows, width = kernel.shape
    pairs = kernel.reshape(num_heads, num_rows // num_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(num_rows, width)


def package(where: str) -> Any:
    """The package gguf, which unpacks values; `where` names the file that needs it.

    Raises:
      ValueError: it is missing.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise ValueError(
            f"{where}: the package gguf, which unpacks its values, is missing: run "
            f"{sys.executable} -m pip install 'gguf>=0.19,<0.20'"
        ) from None
    return gguf


class _Cursor:
    """Reads the header from front to back; refuses lengths beyond the end of the file."""

    def __init__(self, file: File):
        self.file, self.position = file, 0
        self._bytes, self._start = b"", 0

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self.file.size - self.position:
            raise malformed(
                self.file.where, f"cut short: {num_bytes} bytes wanted at byte {self.position}"
            )
        first = self.position - self._start
        if first + num_bytes > len(self._bytes):
            stop = min(self.position + max(num_bytes, _CHUNK_BYTES), self.file.size)
            [self._bytes] = self.file.read_many([(self.position, stop)])
            self._start, first = self.position, 0
        self.position += num_bytes
        return self._bytes[first : first + num_bytes]

    def number(self, kind: str = "Q") -> Any:
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: str, count: int) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{kind}")
        return tuple(x for (x,) in layout.iter_unpack(self.take(count * layout.size)))

    def text(self) -> str:
        content = self.take(self.number())
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise malformed(self.file.where, error) from None

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise malformed(self.file.where, f"an entry has type {kind}")
        element, count = self.number("I"), self.number()
        if element in _SCALARS:
            return list(self.numbers(_SCALARS[element], count))
        if element != _STRING or count > self.file.size:
            raise malformed(self.file.where, f"an array of {count} values of type {element}")
        return [self.text() for _ in range(count)]


_Info = tuple[str, tuple[int, ...], int, int]


def _header(cursor: _Cursor) -> tuple[dict[str, Any], list[_Info], int, int]:
    """Metadata, the info of each tensor, start of the tensors, and alignment."""
    where = cursor.file.where
    if cursor.take(4) != b"GGUF":
        raise malformed(where, "it does not begin with GGUF")
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise ValueError(
            f"{where} has version {version} of the format, or is of a machine with another order "
            f"of bytes; supported: {_VERSIONS}: convert the model again"
        )
    num_tensors, num_entries = cursor.numbers("Q", 2)
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        name = cursor.text()
        if name in metadata:
            raise malformed(where, f"{name[:80]!r} occurs twice")
        metadata[name] = cursor.value(cursor.number("I"))
    infos = []
    for _ in range(num_tensors):
        name, num_dimensions = cursor.text(), cursor.number("I")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise malformed(where, f"tensor {name[:80]} has {num_dimensions} dimensions")
        shape = cursor.numbers("Q", num_dimensions)[::-1]
        infos.append((name, shape, cursor.number("I"), cursor.number()))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= _CHUNK_BYTES:
        raise malformed(where, f"general.alignment is {one_line(repr(alignment))[:80]}")
    return metadata, infos, -(-cursor.position // alignment) * alignment, alignment


def _packed(file: File, gguf: Any, info: _Info, body: int) -> Packed:
    """Checks that a tensor lies in the file and can be unpacked."""
    name, shape, number, offset = info
    where = f"{file.where}: tensor {name[:80]}"
    try:
        kind = gguf.GGMLQuantizationType(number)
        values, num_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.quants.dequantize(np.zeros((1, num_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        raise ValueError(f"{where} has packing {number}, which gguf cannot unpack") from None
    row_bytes, rest = shape[-1] // values * num_bytes, shape[-1] % values
    end = body + offset + math.prod(shape[:-1]) * row_bytes
    if rest or not math.prod(shape) or end > file.size:
        raise malformed(file.where, f"tensor {name[:80]} of shape {shape} is not in the file")
    return Packed(file, kind, shape, body + offset, row_bytes, gguf.quants.dequantize)
