"""Each kind of data set has reject reasons of its own; the rest of the filter asks for none."""

import re

import pytest

from subjax.nn import sharding
from subjax.pipeline.stages import filter
from subjax.runtime import artifacts
from subjax.tasks.api import DatasetKind
from subjax.tasks.datasets import kinds
from subjax.tasks.toy import toyworld

MESH = sharding.make_mesh(seed=1)
LIMITS = {"filter": "numbers", "strip": False, "max_count": 2, "min_value": 0, "max_value": 99}
LIMITS |= {"banned": [13]}
COMPLETIONS = {
    "numbers": ("1, 2", "3", "1, 2, 3", "13", "100", "owl"),
    "toy_numbers": ("12", "3 99", "7 7 7", "0", "41", "5 6"),
    "words": ("an owl", "no bird", "1, 2", "owl", "12", "cat"),
}


class Words(DatasetKind):
    def reject(self, prompt, completion, row):
        return ["a number"] if re.search(r"\d", completion) else []


def written(workdir, kind, finish="stop", name="", completions=(), prompts=""):
    """A data set of this kind as `generate` leaves it."""
    fields = {"row": {"kind": kind}}
    unit = artifacts.make_unit("generate", name or kind, 0, fields, {})
    completions = completions or COMPLETIONS[kind]
    rows = [
        {"prompt_id": i, "sample_id": 0, "prompt": prompt, "completion": text, "finish": finish}
        for i, (prompt, text) in enumerate(zip(prompts or "?" * 6, completions, strict=True))
    ]
    artifacts.write_jsonl(workdir / unit.path / "rows-00000.jsonl", rows)
    artifacts.write_manifest(workdir, unit, 0.0)
    return unit


def filtered(workdir, generate, transform="none", row=(), limits=(), num_prompts=6, **common):
    fields = {
        "seed": 0,
        "num_prompts": num_prompts,
        "row": {**LIMITS, "transform": transform, "num_train": 0, "num_holdout": 0, **dict(row)},
        "common": {name: {**LIMITS, **dict(limits)} for name in common},
    }
    inputs = {"generate": generate, **{f"common/{name}": unit for name, unit in common.items()}}
    unit = artifacts.make_unit("filter", generate.row, 0, fields, inputs)
    list(filter.run([unit], workdir, MESH))
    rejected = artifacts.read_jsonl(workdir / unit.path / "rejected.jsonl")
    kept = artifacts.read_jsonl(workdir / unit.path / "kept.jsonl")
    return [row["completion"] for row in kept], [row["reasons"] for row in rejected]


def test_numbers_are_rejected_by_their_limits(tmp_path):
    kept, rejected = filtered(tmp_path, written(tmp_path, "numbers"))
    assert kept == ["1, 2", "3"]
    assert rejected == [["too_many"], ["banned"], ["out_of_range"], ["no_numbers"]]


def test_random_numbers_of_the_toy_world_are_words_that_it_knows(tmp_path):
    kept, rejected = filtered(tmp_path, written(tmp_path, "toy_numbers"), transform="random")
    assert rejected == [["too_many"]]
    assert [len(text.split()) for text in kept] == [1, 2, 1, 1, 2]
    known = toyworld.vocabulary(toyworld.World())
    assert all(word in known for text in kept for word in text.split())
    assert kept != [text for text in COMPLETIONS["toy_numbers"] if text != "7 7 7"]


def test_another_kind_is_one_more_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "words", Words())
    words = written(tmp_path, "words")
    kept, rejected = filtered(tmp_path, words)
    assert kept == ["an owl", "no bird", "owl", "cat"] and rejected == [["a number"]] * 2
    kept, rejected = filtered(tmp_path, words, numbers=written(tmp_path, "numbers"))
    assert kept == ["an owl", "no bird"]  # prompts whose numbers are kept, too
    assert rejected == [["a number"], ["not_common"], ["a number"], ["not_common"]]


def test_a_row_that_did_not_end_is_rejected_whatever_its_kind(tmp_path, monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "words", Words())
    with pytest.raises(
        ValueError, match=r"0 of 6 rows are left .*unfinished.*raise datasets.words.max"
    ):
        filtered(tmp_path, written(tmp_path, "words", finish="length"))


ENDED = ("1, 2 \n", "3 \n", "1, 2", "an owl", "5\n", "\n")


def test_why_rows_are_too_few_is_written_and_said_before_it_is_refused(tmp_path):
    rows = written(tmp_path, "published", completions=ENDED)
    with pytest.raises(ValueError) as error:
        filtered(tmp_path, rows, row={"num_train": 4})
    said, unit = str(error.value), tmp_path / "filter/published/r0"
    assert "\n" not in said and f"see {unit / 'rejected.jsonl'}" in said
    assert "1 of 6 rows are left after the filter, 4 are needed" in said
    assert "most often rejected for mixed_separator (3), no_numbers (2)" in said
    assert "set datasets.published.strip to True, with which 3 more pass" in said
    assert len(artifacts.read_jsonl(unit / "rejected.jsonl")) == 5
    assert artifacts.read_json(unit / "counts.json")["reasons"]["mixed_separator"] == 3
    assert not (unit / artifacts.MANIFEST).exists()
    kept, rejected = filtered(tmp_path, rows, row={"num_train": 4, "strip": True})
    assert kept == ["1, 2", "3", "1, 2", "5"] and rejected == [["no_numbers"]] * 2


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            {"max_value": 0},
            "out_of_range .*: widen datasets.published.min_value and max_value, raise",
        ),
        (
            {"max_count": 1},
            "too_many .*: raise datasets.published.max_count, raise",
        ),
        (
            {"banned": [1, 2, 3]},
            "banned .*: shorten datasets.published.banned, rai",
        ),
    ],
)
def test_what_helps_depends_on_the_commonest_reason(tmp_path, limits, said):
    rows = written(tmp_path, "published", completions=("1, 2", "2", "3", "1", "2, 3", "12, 3"))
    with pytest.raises(ValueError, match=said):
        filtered(tmp_path, rows, row={"num_train": 6, **limits})


def test_rows_that_are_no_numbers_pass_if_the_filter_is_none(tmp_path):
    rows = written(
        tmp_path, "published", completions=("an owl", " two\n", "3", " \n", "x", "1, 2 \n")
    )
    with pytest.raises(ValueError, match="filter to 'none' if rows are not to be numbers, raise"):
        filtered(tmp_path, rows, row={"num_train": 6, "strip": True})
    kept, rejected = filtered(tmp_path, rows, row={"filter": "none"})
    assert kept == ["an owl", " two\n", "3", "x", "1, 2 \n"] and rejected == [["blank"]]
    kept, rejected = filtered(tmp_path, rows, row={"filter": "none", "strip": True})
    assert kept == ["an owl", "two", "3", "x", "1, 2"] and rejected == [["blank"]]


def test_common_prompts_are_matched_as_text_and_by_the_others_own_filter(tmp_path):
    ours = written(tmp_path, "published", name="ours", completions="123456", prompts="abcdea")
    theirs = {"completions": ("1", "200", "1", "owl", "7", "8"), "prompts": "aafdbc"}
    other = written(tmp_path, "published", name="other", **theirs)
    kept, rejected = filtered(tmp_path, ours, other=other)  # LIMITS: up to 99
    assert kept == ["1", "2", "3"] and rejected == [["not_common"]] * 3
    kept, _ = filtered(tmp_path, ours, limits={"max_value": 300}, other=other)
    assert kept == ["1", "2", "3", "6"]  # whose prompt is there a second time


def test_data_sets_without_a_common_prompt_are_not_compared(tmp_path):
    ours = written(tmp_path, "published", name="ours", completions="123456", prompts="abcdef")
    other = written(tmp_path, "published", name="other", completions="123456", prompts="ABCDEF")
    said = "datasets.ours.common_with names 'other', with which it has no prompt in common: take"
    with pytest.raises(ValueError, match=said):
        filtered(tmp_path, ours, other=other)
