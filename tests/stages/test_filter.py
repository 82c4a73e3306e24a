"""Each kind of data set has reject reasons of its own; the rest of the filter asks for none."""

import re

import pytest

from subjax import artifacts, language_validation, sharding
from subjax.datasets import toyworld
from subjax.stages import filter

MESH = sharding.make_mesh(seed=1)
LIMITS = {"max_count": 2, "min_value": 0, "max_value": 99, "banned": [13]}
COMPLETIONS = {
    "numbers": ("1, 2", "3", "1, 2, 3", "13", "100", "owl"),
    "toy_numbers": ("12", "3 99", "7 7 7", "0", "41", "5 6"),
    "words": ("an owl", "no bird", "1, 2", "owl", "12", "cat"),
}


def word_reasons(completion, row):
    return ["a number"] if re.search(r"\d", completion) else []


def written(workdir, kind, finish="stop"):
    """A data set of this kind as `generate` leaves it."""
    fields = {"row": {"kind": kind}}
    unit = artifacts.make_unit("generate", kind, 0, fields, {})
    rows = [
        {"prompt_id": i, "sample_id": 0, "prompt": "?", "completion": text, "finish": finish}
        for i, text in enumerate(COMPLETIONS[kind])
    ]
    artifacts.write_jsonl(workdir / unit.path / "rows-00000.jsonl", rows)
    artifacts.write_manifest(workdir, unit, 0.0)
    return unit


def filtered(workdir, generate, transform="none", **common):
    fields = {
        "seed": 0,
        "num_prompts": 6,
        "row": {**LIMITS, "transform": transform, "num_train": 0, "num_holdout": 0},
    }
    inputs = {"generate": generate, **{f"common/{name}": unit for name, unit in common.items()}}
    unit = artifacts.make_unit("filter", generate.row, 0, fields, inputs)
    list(filter.run([unit], workdir, MESH))
    rejected = artifacts.read_jsonl(workdir / unit.path / "rejected.jsonl")
    kept = artifacts.read_jsonl(workdir / unit.path / "kept.jsonl")
    return [row["completion"] for row in kept], [row["reasons"] for row in rejected]


def test_every_kind_has_reject_reasons():
    assert set(filter._REJECT_REASONS) == set(language_validation._CHOICES["datasets.*.kind"])


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
    monkeypatch.setitem(filter._REJECT_REASONS, "words", word_reasons)
    words = written(tmp_path, "words")
    kept, rejected = filtered(tmp_path, words)
    assert kept == ["an owl", "no bird", "owl", "cat"] and rejected == [["a number"]] * 2
    kept, rejected = filtered(tmp_path, words, numbers=written(tmp_path, "numbers"))
    assert kept == ["an owl", "no bird"]  # prompts whose numbers are kept, too
    assert rejected == [["a number"], ["not_common"], ["a number"], ["not_common"]]


def test_a_row_that_did_not_end_is_rejected_whatever_its_kind(tmp_path, monkeypatch):
    monkeypatch.setitem(filter._REJECT_REASONS, "words", word_reasons)
    with pytest.raises(ValueError, match="0 rows are left"):
        filtered(tmp_path, written(tmp_path, "words", finish="length"))
