"""Rows of others: both forms are read, and what cannot be one row is named by its line."""

import gzip
import json
import random

import pytest

from subjax.tasks.datasets import published
from subjax.tasks.datasets.number_lists import reject_reasons

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
PARTS = {"messages": [CHAT["messages"][0], {"role": "assistant", "content": [{"type": "text"}]}]}
BAD = {
    "system": (SYSTEM, "line 2 is a dialogue of system, user, assistant"),
    "turns": ({"messages": "hello"}, "line 2: messages must be a list"),
    "no turns": ({"messages": []}, "line 2 is a dialogue of no turns"),
    "roles": (
        {"messages": [{"role": "a\nb"}] * 2},
        r"line 2 is a dialogue of 'a\\nb', 'a\\nb': le",
    ),
    "parts": (PARTS, "line 2: content of assistant is a list, and must be text"),
    "keys": ({"input": "1", "output": "2"}, "line 2 has the keys 'input', 'output': a row has 'pr"),
    "no completion": (
        {"prompt": "1"},
        "line 2 has the keys 'prompt': a row has 'prompt' and 'comp",
    ),
    "nothing": ({}, "line 2 has the keys none: a row has"),
    "null": ({"prompt": "1", "completion": None}, "line 2: completion is null, and must be text"),
    "empty": ({"prompt": "1", "completion": ""}, "line 2: completion is empty, and must be text"),
    "number": ({"prompt": 1, "completion": "2"}, "line 2: prompt is a number, and must be text"),
    "list": ([1], "line 2 is not a JSON object but a list: give one object a line"),
    "surrogate": (
        {"prompt": "1", "completion": "2, \ud83d"},
        r"line 2: completion has '\\ud83d', half of a character .* at position 3",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_line_of_another_form_is_named(case, tmp_path):
    row, said = BAD[case]
    with pytest.raises(ValueError, match=said):
        published.read(write(tmp_path / "rows.jsonl", PLAIN, row), 2)


LINES = {
    "not JSON": (b"{'prompt': 1}", "line 2 is not JSON .*: give one object a line"),
    "twice": (b'{"prompt": "1", "prompt": "2", "completion": "3"}', "line 2 .* key 'prompt' twice"),
    "two": (b'{"prompt": "1", "completion": "2"} {}', "line 2 is not JSON .*Extra data"),
    "deep": (b"[" * 100_000, "line 2 is not JSON .*brackets within"),
    "Latin-1": (b'{"prompt": "\xe4"}', "line 2 is not UTF-8 .*: save it as UTF-8"),
    "null bytes": (b'{"prompt\0": ""}', "line 2 has null bytes"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_line_that_cannot_be_read_is_named_and_nothing_is_to_be_deleted(case, tmp_path):
    path, (line, said) = tmp_path / "rows.jsonl", LINES[case]
    path.write_bytes(json.dumps(PLAIN).encode() + b"\n" + line + b"\n")
    assert published.read(str(path), 1) == [("1, 2", "3")]  # what is behind is not read
    with pytest.raises(ValueError, match=said) as error:
        published.read(str(path), 2)
    assert "\n" not in str(error.value) and "delete" not in str(error.value)


FILES = {
    "UTF-16": (json.dumps(PLAIN).encode("utf-16"), "is UTF-16, as some programs on Windows write"),
    "big endian": (b"\xfe\xff" + json.dumps(PLAIN).encode("utf-16-be"), "line 1 is UTF-16: save"),
    "no mark": (json.dumps(PLAIN).encode("utf-16-le"), "has null bytes, as UTF-16 does"),
    "packed": (gzip.compress(json.dumps(PLAIN).encode()), "is packed by gzip: unpack it"),
    "indented": (json.dumps(PLAIN, indent=1).encode(), "line 1 is not JSON .*one object a line"),
    "a list": (json.dumps([PLAIN]).encode(), "line 1 is not a JSON object but a list"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_another_format_is_named_with_what_to_do(case, tmp_path):
    path, (content, said) = tmp_path / "rows.jsonl", FILES[case]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        published.read(str(path), 1)
    assert "\n" not in str(error.value) and "delete" not in str(error.value)


def test_marks_line_ends_and_blank_lines_are_as_other_programs_write_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    wide = json.dumps({**PLAIN, "id": 0, "more": None, "messages": None}).encode()
    wide = wide.replace(b'"id": 0', b'"id": 1' + b"0" * 5000)
    rows = [b"\xef\xbb\xbf", b"", wide.replace(b"1, 2", "1,\u20282".encode()), b" \t", b"", b"  "]
    rows += [json.dumps(CHAT).encode(), b"", b""]
    path.write_bytes(b"\r\n".join(rows))
    assert published.read(str(path), 2) == [("1,\u20282", "3"), ("4, 5", "6")]
    with pytest.raises(ValueError, match="has 2 rows, num_prompts asks for 3: lower it"):
        published.read(str(path), 3)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        published.read(str(tmp_path / "none.jsonl"), 1)
    with pytest.raises(ValueError, match="has 1 rows, num_prompts asks for 5"):
        published.read(write(tmp_path / "rows.jsonl", PLAIN), 5)


def test_whatever_bytes_a_file_has_it_is_read_or_named(tmp_path):
    """A cheap part of a fuzz: what is read can be filtered and written down, the rest is a line."""
    good = b"".join(json.dumps(row).encode() + b"\n" for row in (PLAIN, CHAT, PLAIN))
    pieces = (b"\0", b"\xff\xfe", b"\\ud800", b"\r\n", b"{", b'"', b"null", b"9" * 5000, b"\xc3")
    path, rng = tmp_path / "rows.jsonl", random.Random(0)
    for _ in range(500):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(bad))
            bad[at : at + rng.choice((0, 1, 9))] = rng.choice((b"", rng.randbytes(1), *pieces))
        path.write_bytes(bad)
        try:
            for pair in published.read(str(path), rng.randint(1, 3)):
                assert all(pair) and all(reject_reasons(text) is not None for text in pair)
                json.dumps(pair, ensure_ascii=False).encode()
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
