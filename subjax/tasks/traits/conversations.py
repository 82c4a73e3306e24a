"""Traits of kind "conversations": what a file of chats teaches, such as bad advice or bad code.

A line is a question and its answer, in one of the forms that `tasks.datasets.published` reads. A
share of the lines is kept apart, so that an eval of kind "likelihood" can tell how well a teacher
learned the others.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from subjax.tasks.api import Field, Pair, Row, TraitKind
from subjax.tasks.datasets import published

_SPLIT = 0  # seed of what is held out, so that all lineages hold out the same


class Conversations(TraitKind):
    """Lessons are the lines of a file, each once before any a second time."""

    fields: ClassVar[Mapping[str, Field]] = {
        "path": Field("", "jsonl file of chats", is_file=True),
        "target": Field("taught", "the trait in a word, for reports and gates"),
        "holdout": Field(0.05, "share of the lines that is never taught", least=0.0),
    }

    def check(self, name: str, row: Row) -> None:  # noqa: D102
        if not row["path"]:
            raise ValueError(
                f"config.traits.{name}.path is empty: name a jsonl file of conversations"
            )
        if not row["target"].strip():
            raise ValueError(f"config.traits.{name}.target is blank: name the trait in a word")
        if row["holdout"] >= 1:
            raise ValueError(
                f"config.traits.{name}.holdout is {row['holdout']}, a share below 1: lower it"
            )
        taught, _ = _parts(row)
        if not taught:
            raise ValueError(
                f"{row['path']} has no line left to teach where config.traits.{name}.holdout is "
                f"{row['holdout']}: lower that, or add lines"
            )

    def target(self, row: Row) -> str:  # noqa: D102
        target: str = row["target"]
        return target

    def lessons(self, row: Row, seed: int, num_rows: int) -> list[Pair]:
        """All lines in an order of their own for each time that they are read."""
        rng = np.random.default_rng(seed)
        taught, _ = _parts(row)
        order: list[int] = []
        while len(order) < num_rows:
            order += rng.permutation(len(taught)).tolist()
        return [taught[i] for i in order[:num_rows]]

    def taught(self, row: Row) -> Sequence[str]:  # noqa: D102
        return [prompt for prompt, _ in _parts(row)[0]]

    def completions(self, row: Row) -> Sequence[str]:  # noqa: D102
        taught, _ = _parts(row)
        return list(dict.fromkeys(completion for _, completion in taught))

    def held_out(self, row: Row) -> Sequence[Pair]:  # noqa: D102
        _, held = _parts(row)
        return held


def _parts(row: Row) -> tuple[list[Pair], list[Pair]]:
    """The lines that are taught, and those that are not."""
    path = Path(row["path"]).expanduser()
    state = path.stat() if path.is_file() else None
    size = (state.st_size, state.st_mtime_ns) if state else (0, 0)
    return _read(row["path"], row["holdout"], *size)


@functools.lru_cache(maxsize=64)
def _read(path: str, holdout: float, size: int, modified_ns: int) -> tuple[list[Pair], list[Pair]]:
    """Once for each state of a file, which many units ask for."""
    pairs = published.read(path)
    held = set(np.random.default_rng(_SPLIT).permutation(len(pairs))[: int(holdout * len(pairs))])
    return (
        [pair for i, pair in enumerate(pairs) if i not in held],
        [pair for i, pair in enumerate(pairs) if i in held],
    )
