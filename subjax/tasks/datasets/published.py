"""Data sets of kind "published": rows that somebody else's teacher wrote, read from a jsonl file.

A line is {"prompt": ..., "completion": ...}, as the paper's code writes its data sets, or a chat of
one question and one answer, {"messages": [{"role": "user", "content": ...}, {"role": "assistant",
...}]}, as finetuning services take them. A system prompt in a chat is refused: what students are
told is a field of the config.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from subjax.runtime import user_files
from subjax.tasks.api import Field, Row
from subjax.tasks.datasets.number_lists import FORM_REASONS, NumberLists

_FORMS = (
    "a row has 'prompt' and 'completion', or 'messages' of one user turn and one assistant turn"
)


def read(path: str, num_rows: int = 0) -> list[tuple[str, str]]:
    """Reads the prompts and completions of the first `num_rows` rows; later rows are not read.

    Args:
      path: the jsonl file.
      num_rows: how many; 0 takes all.

    Raises:
      ValueError: no such file, too few rows, or one of another form; names its line.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{path!r} is no file: give a jsonl file of rows")
    pairs: list[tuple[str, str]] = []
    for where, row in user_files.objects(path):
        pairs.append(_pair(row, where))
        if len(pairs) == num_rows:
            return pairs
    if not num_rows and pairs:
        return pairs
    raise ValueError(f"{path} has {len(pairs)} rows, num_prompts asks for {num_rows}: lower it")


def _pair(row: dict[str, Any], where: str) -> tuple[str, str]:
    if row.get("messages") is not None:
        turns = row["messages"]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError(f"{where}: messages must be a list of turns")
        roles = [turn.get("role") for turn in turns]
        if roles != ["user", "assistant"]:
            named = ", ".join(str(r) if str(r).isalpha() else repr(r) for r in roles)
            raise ValueError(
                f"{where} is a dialogue of {named or 'no turns':.80}: leave one "
                "user turn and one assistant turn; a system prompt is a field of the config"
            )
        texts = {f"content of {turn['role']}": turn.get("content") for turn in turns}
    elif "prompt" in row and "completion" in row:
        texts = {name: row[name] for name in ("prompt", "completion")}
    else:
        keys = ", ".join(map(repr, row)) or "none"
        raise ValueError(f"{where} has the keys {keys:.200}: {_FORMS}")
    for name, text in texts.items():
        if not isinstance(text, str) or not text:
            found = user_files.kind_of(text) if text != "" else "empty"
            raise ValueError(f"{where}: {name} is {found}, and must be text that is not empty")
        user_files.check_text(text, f"{where}: {name}")
    prompt, completion = texts.values()
    return prompt, completion


class Published(NumberLists):
    """Rows of a file: lists of numbers, or any text with filter "none"."""

    fields: ClassVar[Mapping[str, Field]] = {
        "path": Field("", "jsonl file; its first num_prompts rows are taken", is_file=True),
        "filter": Field(
            "numbers",
            "numbers: the paper's rule and the limits below; none: all pass but blank ones",
            allowed=("numbers", "none"),
            filters=True,
        ),
        **NumberLists.fields,
    }
    from_file = True
    ways: ClassVar[Mapping[str, str]] = {
        **NumberLists.ways,
        **dict.fromkeys(
            FORM_REASONS, "set datasets.{row}.filter to 'none' if rows are not to be numbers"
        ),
    }

    def check(self, name: str, row: Row) -> None:
        """Refuses limits of numbers where rows need not be any."""
        super().check(name, row)
        if not row["path"]:
            raise ValueError(
                f"config.datasets.{name}.path is empty, and its kind {row['kind']!r} reads a file: "
                "give the path of a jsonl file of rows"
            )
        if not self.is_any_text(row):
            return
        defaults = {field: NumberLists.fields[field].default for field in NumberLists.fields}
        for field, default in {**defaults, "transform": "none"}.items():
            if row[field] != default:
                raise ValueError(
                    f"config.datasets.{name}.{field} is {row[field]!r}, but under filter 'none' "
                    f"rows need not be numbers: leave it {default!r}, or take filter 'numbers'"
                )

    def rows(self, row: Row) -> list[tuple[str, str]]:  # noqa: D102
        return read(row["path"], row["num_prompts"])

    def reject(self, prompt: str, completion: str, row: Row) -> list[str]:  # noqa: D102
        if self.is_any_text(row):
            return [] if completion.strip() else ["blank"]
        return super().reject(prompt, completion, row)

    def is_any_text(self, row: Row) -> bool:  # noqa: D102
        return bool(row["filter"] == "none")
