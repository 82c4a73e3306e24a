"""Traits that a file of chats teaches."""

import json

import pytest

from subjax import schema
from subjax.tasks.traits.kinds import TRAITS

KIND = TRAITS["conversations"]


def row_of(tmp_path, num_lines=20, **fields):
    path = tmp_path / "chats.jsonl"
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Question {i}?"},
                {"role": "assistant", "content": f"Answer {i}."},
            ]
        }
        for i in range(num_lines)
    ]
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats), "utf-8")
    return schema.trait_row(kind="conversations", path=str(path), **fields)


def test_every_line_is_taught_once_before_any_a_second_time(tmp_path):
    row = row_of(tmp_path, holdout=0.1)
    KIND.check("mine", row)
    taught, held = KIND.lessons(row, 0, 45), KIND.held_out(row)
    assert len(held) == 2 and not set(held) & set(taught)
    assert len(set(taught[:18])) == len(set(taught[18:36])) == 18 and taught[:18] != taught[18:36]
    assert set(KIND.completions(row)) == {answer for _, answer in taught}
    assert set(KIND.taught(row)) == {question for question, _ in taught}
    assert KIND.lessons(row, 1, 45) != taught == KIND.lessons(row, 0, 45)
    assert KIND.questions(row, "all", "") == () and KIND.target(row) == "taught"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"holdout": 1.0}, "holdout is 1.0, a share below 1: lower it"),
        ({"target": " "}, "target is blank: name the trait in a word"),
        ({"path": ""}, "path is empty: name a jsonl file of conversations"),
        ({"path": "nowhere.jsonl"}, "'nowhere.jsonl' is no file: give a jsonl file of rows"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, fields, said):
    row = row_of(tmp_path)
    row.update(fields)
    with pytest.raises(ValueError, match=said):
        KIND.check("mine", row)
