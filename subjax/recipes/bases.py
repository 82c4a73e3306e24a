"""Where a base comes from: random, pretrained here on a small language, or a checkpoint.

A row of `bases` names it by `source`. No other module compares those names: it asks the object
that `of_row` gives.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ml_collections import ConfigDict

from subjax.hf import model_config
from subjax.nn.architecture import Architecture
from subjax.tasks.toy import toyworld
from subjax.tokens import tokenizer
from subjax.tokens.chat_templates import SYSTEM_TURN, TemplateOptions
from subjax.tokens.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Base:
    """Random weights with bytes as tokens, for dry runs; subclasses are the other sources.

    Attributes:
      row: of `bases`.
      name: of that row, for errors.
    """

    row: Mapping[str, Any] | ConfigDict
    name: str = ""

    learns: ClassVar[bool] = False
    """Whether it is pretrained here, on `documents`."""
    outside: ClassVar[bool] = False
    """Whether it is a checkpoint: all lineages share it, and it has its own tokenizer and chat
    template, which a run reads from its files."""
    answer_tokens: ClassVar[int] = 8
    """Of an answer of one word with its end, at the most; for plans."""

    def check(self) -> None:
        """Raises a ValueError where fields of its row do not go with its source."""
        for field, does in (("path", "reads"), ("revision", "reads"), ("adapter", "takes")):
            if self.row[field]:
                raise ValueError(
                    f"config.bases.{self.name}.{field} is {self.row[field]!r}, but its source "
                    f"{self.row['source']!r} {does} none: leave it empty, or set source to 'hf'"
                )
        if self.row["system_turn"] != SYSTEM_TURN:
            raise ValueError(
                f"config.bases.{self.name}.system_turn is {self.row['system_turn']!r}, but models "
                f"of source {self.row['source']!r} have a turn for system prompts: set it to "
                f"{SYSTEM_TURN!r}, or set source to 'hf'"
            )

    def tokenizer(self) -> Tokenizer:
        """Of a base that is made here.

        Raises:
          TypeError: it is from outside.
        """
        return tokenizer.raw_bytes()

    def at_hand(self) -> Tokenizer | None:
        """Its tokenizer for plans; None where that is not on this machine."""
        return self.tokenizer()

    def architecture(self) -> Architecture:
        """Its shape, for plans too: a checkpoint need not be on this machine.

        Raises:
          ValueError: the checkpoint is not here and no file describes it.
        """
        sizes = ("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width")
        vocab_size = self.tokenizer().vocab_size
        return Architecture(vocab_size=vocab_size, **{field: self.row[field] for field in sizes})

    def documents(self, seed: int) -> Sequence[toyworld.Document]:
        """What it is pretrained on; nothing where it is not."""
        return ()

    def prompts(self) -> Sequence[str]:
        """Prompts in its language, where that is not a natural one."""
        return ()


class _Toy(Base):
    """Pretrained on the toy world; a word is a token."""

    learns = True
    answer_tokens = 2

    @property
    def world(self) -> toyworld.World:
        """What its documents are of."""
        return toyworld.WORLDS[self.row.get("world", "numbers")]  # older runs have no such field

    def check(self) -> None:
        if self.row["world"] not in toyworld.WORLDS:
            raise ValueError(
                f"config.bases.{self.name}.world is {self.row['world']!r}; allowed: "
                f"{', '.join(toyworld.WORLDS)}"
            )
        super().check()

    def tokenizer(self) -> Tokenizer:
        return tokenizer.word_tokenizer(toyworld.vocabulary(self.world))

    def documents(self, seed: int) -> Sequence[toyworld.Document]:
        return toyworld.documents(self.world, seed, self.row["num_documents"])

    def prompts(self) -> Sequence[str]:
        asked = toyworld.asked_questions(self.world, "all")[:2]
        return [*asked, *toyworld.prompts(self.world, 0, 1)]


class _Checkpoint(Base):
    """From a directory, a GGUF file, a URL or the hub."""

    outside = True

    def check(self) -> None:
        if not self.row["path"]:
            raise ValueError(
                f"config.bases.{self.name}.path is empty: give a directory, a hub id, a URL or a "
                ".gguf file, or set source to 'toy'"
            )

    def tokenizer(self) -> Tokenizer:
        raise TypeError(f"config.bases.{self.name} is a checkpoint, which brings its tokenizer")

    def at_hand(self) -> Tokenizer | None:
        directory = Path(self.row["path"]).expanduser()
        if not (directory / "tokenizer_config.json").is_file():
            return None
        return _loaded(directory, TemplateOptions(system_turn=self.row["system_turn"]))

    def architecture(self) -> Architecture:
        path, described = description(self.name, self.row)
        try:
            return model_config.read(described)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@functools.lru_cache(maxsize=4)
def _loaded(directory: Path, options: TemplateOptions) -> Tokenizer:
    return Tokenizer.load(directory, options=options)


def description(name: str, row: Mapping[str, Any] | ConfigDict) -> tuple[Path, dict[str, Any]]:
    """The config.json of a base from outside, or what stands in for it.

    Args:
      name: of the row, for errors.
      row: of `bases`.

    Raises:
      ValueError: the checkpoint is not here and no file describes it.
    """
    for path in (Path(row["path"]).expanduser() / "config.json", Path(row["shape"])):
        if path.is_file():
            try:
                return path, json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    raise ValueError(
        f"config.bases.{name}.path {row['path']!r} is no directory of this machine, and its shape "
        f"{row['shape']!r} no file: name a file like its config.json with "
        f"--config.bases.{name}.shape=FILE"
    )


SOURCES: Mapping[str, type[Base]] = {"toy": _Toy, "hf": _Checkpoint, "random": Base}


def of_row(row: Mapping[str, Any] | ConfigDict, name: str = "") -> Base:
    """What a row of `bases` is.

    Args:
      row: of `bases`.
      name: of that row, for errors.

    Raises:
      KeyError: its source is unknown, which validation refuses.
    """
    return SOURCES[row["source"]](row, name)
