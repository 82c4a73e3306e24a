"""The user's own text files: read as other programs write them, or refused by path and line.

Only the user can make them again, so no error here advises to delete a file.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# First bytes of files that are not UTF-8 text, and what to do.
_OTHER_FORMATS = {
    b"\xff\xfe": "is UTF-16, as some programs on Windows write it: save it as UTF-8",
    b"\xfe\xff": "is UTF-16: save it as UTF-8",
    b"\x1f\x8b": "is packed by gzip: unpack it",
    b"PK\x03\x04": "is a zip file: unpack it",
    b"PAR1": "is a parquet file: write its rows as text",
}
_MARK = b"\xef\xbb\xbf"  # a byte order mark, which Windows writes before UTF-8


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Reads one JSON value.

    Args:
      path: the file, which may begin with a byte order mark.
      what: the word for it in errors.

    Raises:
      ValueError: no such file, another format, or an object has a key twice; one line.
    """
    where = f"{what} {path}"
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}") from None
    try:
        return parse(_text(content, where))
    except _NotJson as error:
        raise ValueError(f"{where} cannot be read as JSON: {error}") from None


def stimuli(path: str | os.PathLike[str], section: str) -> dict[str, Any]:
    """Reads one section of a stimuli file: an object in a JSON object.

    Raises ValueError, in one line, for a file that cannot be read, is not JSON or has no such
    section.
    """
    content = read_json(path, "stimuli file")
    found = content.get(section) if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"stimuli file {path} must be a JSON object with an object {section!r}")
    return found


def objects(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads a file of one JSON object per line, lazily.

    Yields:
      The place of a row, for errors, and the row. Blank lines are skipped, but counted.

    Raises:
      ValueError: a line is no JSON object; names path and line.
    """
    with open(Path(path).expanduser(), "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            line = line.removeprefix(_MARK) if number == 1 else line
            if not line.strip():
                continue
            try:
                row = parse(_text(line, where))
            except _NotJson as error:
                raise ValueError(f"{where} is not JSON ({error}): give one object a line") from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{where} is not a JSON object but {kind_of(row)}: give one object a line"
                )
            yield where, row


class _NotJson(ValueError):
    """What is wrong with a text, without its place."""


def parse(text: str) -> Any:
    """The value of a JSON text; integers may have any number of digits."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise _NotJson(str(error)) from None
    except RecursionError:
        raise _NotJson("brackets within brackets without end") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotJson(f"an object has the key {twice!a:.60} twice")
    return found


def _integer(digits: str) -> int | float:
    # Python limits the digits of an integer, and fields that nobody uses may hold anything.
    return int(digits) if len(digits) < 400 else float(digits)


def _text(content: bytes, where: str) -> str:
    for beginning, how in _OTHER_FORMATS.items():
        if content.startswith(beginning):
            raise ValueError(f"{where} {how}")
    if b"\0" in content[:64]:  # JSON text has none; UTF-16 has one per letter
        raise ValueError(f"{where} has null bytes, as UTF-16 does: save it as UTF-8")
    try:
        return content.removeprefix(_MARK).decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 (at byte {error.start}): save it as UTF-8"
        ) from None


def check_text(text: str, where: str) -> None:
    """Raises ValueError if a text has a lone surrogate, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} has {error.object[error.start]!a}, half of a character (a lone surrogate), "
            f"at position {error.start}: write the character in full, or leave it out"
        ) from None


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    words = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else words.get(type(value), "a number")
