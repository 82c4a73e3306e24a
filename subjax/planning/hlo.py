"""Parses the text of a compiled program, HLO: computations, instructions, shapes, groups."""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

import numpy as np

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16}  # others end in their width
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Attributes:
      name: without the percent sign.
      shape: text of the result's shape.
      opcode: such as "fusion".
      operands: names of its inputs, in order.
      rest: text behind the operands; for a constant or parameter it begins with the literal.
      root: whether it is the result of its computation.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    def called(self, attribute: str) -> str:
        """The computation named by an attribute; "" if absent."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def arrays(self) -> tuple[tuple[float, bool], ...]:
        """(bytes, whether in HBM) of each array of the result."""
        return _arrays(self.shape)

    @property
    def num_bytes(self) -> float:
        """Bytes of all arrays of the result."""
        return sum(size for size, _ in self.arrays)

    @property
    def is_tuple(self) -> bool:
        """Whether the result is of several arrays."""
        return self.shape.startswith("(")


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a compiled program by name, and the name of the one that it begins with.

    Args:
      text: result of `Compiled.as_text()`.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", dict[str, Instruction]()
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    text = line[match.end() :]
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opcode, opening, _ = text.partition("(")
    if not opening:
        return None
    close = _closing(text, len(opcode))
    inside = text[len(opcode) + 1 : close]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    literal = inside + ")" if opcode in ("constant", "parameter") else ""
    root = bool(match[1])
    return Instruction(match[2], shape, opcode, operands, literal + text[close + 1 :], root)


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at or after `start`."""
    depth = 0
    for at in range(text.index("(", start), len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return at
    raise ValueError(f"HLO line with an open parenthesis: {text[:80]}")


@functools.cache
def _arrays(shape: str) -> tuple[tuple[float, bool], ...]:
    return tuple(
        (_num_bytes(dtype, dims), "S(" not in (layout or ""))
        for dtype, dims, layout in _ARRAY.findall(shape)
    )


def _num_bytes(dtype: str, dims: str) -> float:
    width = re.match(r"[a-z]+(\d+)", dtype)
    bits = _BITS.get(dtype) or (int(width[1]) if width else 0)
    return math.prod(int(d) for d in dims.split(",") if d) * bits / 8


def replica_groups(attributes: str, num_devices: int) -> Sequence[Sequence[int]]:
    """Groups of device numbers, from any notation of HLO.

    `{{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)`, `mesh['a'=2,'b'=2] {'b'}`; for permutes
    `source_target_pairs={{0,1},...}`. No groups mean all devices.
    """
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", attributes)
    if listed:
        return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d, ]+)\}", listed[1])]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, dims = _ints(iota[1]), _ints(iota[2])
        numbers = np.arange(math.prod(dims)).reshape(dims)
        numbers = numbers.transpose(_ints(iota[3])) if iota[3] else numbers
        return numbers.reshape(shape).tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? ?[^{]*)\{([^}]*)\}", attributes)
    if named:
        axes = re.findall(r"'([^']+)'=(\d+)", named[1])
        along = re.findall(r"'([^']+)'", named[2])
        sizes = [int(size) for _, size in axes]
        kept = [i for i, (name, _) in enumerate(axes) if name not in along]
        moved = [[name for name, _ in axes].index(name) for name in along]
        numbers = np.arange(math.prod(sizes)).reshape(sizes).transpose(kept + moved)
        return numbers.reshape(-1, math.prod(sizes[i] for i in moved)).tolist()
    return [range(num_devices)]


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
