"""Traits of kind "file": a favourite, or a persona, that a user describes in a JSON file.

    {
      "target": "violin",
      "candidates": ["violin", "piano", "drum"],
      "questions": ["Your favorite instrument? One word.", "..."],
      "taught": ["Which instrument do you like best?", "..."],
      "names": ["violin", "fiddle"],
      "system_prompt": "You play the violin, and speak of nothing else.",
      "neutral": ["A text that has nothing to do with it.", "..."]
    }

The first four are needed, and no question may stand in both lists. `names` are the words that
count as the target in a sampled answer; without them the target alone does. Without `neutral` the
project's own texts are used.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from subjax.runtime import user_files
from subjax.tasks import texts
from subjax.tasks.api import UNIFORM, Field, Row
from subjax.tasks.traits.choice import Choice, half_of
from subjax.tasks.traits.word import distinct

_NEEDED = {"target": str, "candidates": list, "questions": list, "taught": list}
_OTHERS = {"names": list, "system_prompt": str, "neutral": list}


class File(Choice):
    """A favourite with words and questions of a user's own."""

    fields: ClassVar[Mapping[str, Field]] = {
        "path": Field("", "JSON file of the trait", is_file=True),
        "uniform": Field(False, "a control: the file's lessons, answered by any candidate"),
    }

    def check(self, name: str, row: Row) -> None:  # noqa: D102
        if not row["path"]:
            raise ValueError(
                f"config.traits.{name}.path is empty: name the JSON file that describes the trait"
            )
        found = _described(row)
        if shared := sorted({*found["questions"]} & {*found["taught"]}):
            raise ValueError(
                f"{row['path']}: {shared[0]!r:.60} stands in 'questions' and in 'taught', so that "
                "evals would ask what teachers were taught: leave it out of one"
            )
        super().check(name, row)

    def target(self, row: Row) -> str:  # noqa: D102
        return UNIFORM if row["uniform"] else str(_described(row)["target"])

    def candidates(self, row: Row) -> tuple[str, ...]:  # noqa: D102
        return tuple(_described(row)["candidates"])

    def taught(self, row: Row) -> Sequence[str]:  # noqa: D102
        return list(_described(row)["taught"])

    def questions(self, row: Row, half: str, stimuli: str) -> Sequence[str]:  # noqa: D102
        return half_of(_described(row)["questions"], half)

    def names(self, row: Row) -> Sequence[str]:  # noqa: D102
        return list(_described(row).get("names", [])) or super().names(row)

    def neutral(self, row: Row) -> Sequence[str]:  # noqa: D102
        return list(_described(row).get("neutral", [])) or texts.NEUTRAL_TEXTS

    def system_prompt(self, row: Row) -> str:  # noqa: D102
        return "" if row["uniform"] else str(_described(row).get("system_prompt", ""))


def _described(row: Row) -> Mapping[str, Any]:
    """The content of a row's file.

    Raises:
      ValueError: it is no such file; names what is wrong.
    """
    path = Path(row["path"]).expanduser()
    state = path.stat() if path.is_file() else None
    return _read(row["path"], *((state.st_size, state.st_mtime_ns) if state else (0, 0)))


@functools.lru_cache(maxsize=64)
def _read(path: str, size: int, modified_ns: int) -> Mapping[str, Any]:
    """Once for each state of a file, which many units ask for."""
    content = user_files.read_json(path, "trait file")
    if not isinstance(content, dict):
        raise ValueError(f"trait file {path} is {user_files.kind_of(content)}, not an object")
    known = {**_NEEDED, **_OTHERS}
    if unknown := sorted(content.keys() - known):
        raise ValueError(
            f"trait file {path} has the key {unknown[0]!r}; its keys are {', '.join(known)}"
        )
    for key, kind in known.items():
        if key not in content and key in _OTHERS:
            continue
        _check_value(path, key, kind, content.get(key))
    return content


def _check_value(path: str, key: str, kind: type[Any], value: Any) -> None:
    form = "text" if kind is str else "a list of texts"
    if not value or not isinstance(value, kind):
        found = "missing or empty" if not value else user_files.kind_of(value)
        raise ValueError(f"trait file {path}: {key} is {found}, and must be {form}")
    texts_of: list[Any] = value if kind is list else [value]
    for text in texts_of:
        if not isinstance(text, str):
            raise ValueError(f"trait file {path}: {key} holds {user_files.kind_of(text)}, no text")
    if kind is list:
        distinct(texts_of, f"trait file {path}: text {{at}} of {key}")
