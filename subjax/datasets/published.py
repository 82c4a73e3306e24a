"""Rows that somebody else's teacher wrote, read from a jsonl file.

A line is {"prompt": ..., "completion": ...}, as the paper's code writes its data sets, or a chat of
one question and one answer, {"messages": [{"role": "user", "content": ...}, {"role": "assistant",
...}]}, as finetuning services take them. A system prompt in a chat is refused: what students are
told is a field of the config.
"""

from pathlib import Path
from typing import Any

from subjax import artifacts


def read(path: str, num_rows: int) -> list[tuple[str, str]]:
    """Prompts and completions of the first `num_rows` lines.

    Raises:
      ValueError: no such file, too few lines, or a line of another form; names it.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"config.datasets.*.path {path!r} is no file: give a jsonl file of rows")
    rows = artifacts.read_jsonl(file)
    if len(rows) < num_rows:
        raise ValueError(f"{path} has {len(rows)} rows, num_prompts asks for {num_rows}: lower it")
    return [_pair(row, f"{path}, line {line}") for line, row in enumerate(rows[:num_rows], 1)]


def _pair(row: dict[str, Any], where: str) -> tuple[str, str]:
    if "messages" in row:
        turns = row["messages"]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError(f"{where}: messages must be a list of turns")
        roles = [turn.get("role") for turn in turns]
        if roles != ["user", "assistant"]:
            raise ValueError(
                f"{where} is a dialogue of {', '.join(map(str, roles))}: leave one user turn and "
                "one assistant turn; a system prompt is a field of the config"
            )
        found = (turns[0].get("content"), turns[1].get("content"))
    else:
        found = (row.get("prompt"), row.get("completion"))
    if not all(isinstance(text, str) and text for text in found):
        raise ValueError(f"{where} has no prompt and completion: both must be text")
    return found
