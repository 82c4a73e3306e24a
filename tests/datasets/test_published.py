"""Rows of others: both forms are read, and what cannot be one row is named by its line."""

import json

import pytest

from subjax.datasets import published

PLAIN = {"prompt": "1, 2", "completion": "3"}
CHAT = {
    "messages": [
        {"role": "user", "content": "4, 5"},
        {"role": "assistant", "content": "6"},
    ]
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_both_forms_are_read_in_order(tmp_path):
    path = write(tmp_path / "rows.jsonl", PLAIN, CHAT, {**PLAIN, "more": 1})
    assert published.read(path, 2) == [("1, 2", "3"), ("4, 5", "6")]
    assert published.read(path, 3)[2] == ("1, 2", "3")


SYSTEM = {"messages": [{"role": "system", "content": "Love owls."}, *CHAT["messages"]]}
BAD = {
    "system": (SYSTEM, "line 2 is a dialogue of system, user, assistant"),
    "turns": ({"messages": "hello"}, "line 2: messages must be a list"),
    "no completion": ({"prompt": "1"}, "line 2 has no prompt and completion"),
    "empty": ({"prompt": "1", "completion": ""}, "line 2 has no prompt and completion"),
    "number": ({"prompt": 1, "completion": "2"}, "both must be text"),
    "list": ([1], "line 2 is not a JSON object"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_line_of_another_form_is_named(case, tmp_path):
    row, said = BAD[case]
    with pytest.raises(ValueError, match=said):
        published.read(write(tmp_path / "rows.jsonl", PLAIN, row), 2)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        published.read(str(tmp_path / "none.jsonl"), 1)
    with pytest.raises(ValueError, match="has 1 rows, num_prompts asks for 5"):
        published.read(write(tmp_path / "rows.jsonl", PLAIN), 5)
