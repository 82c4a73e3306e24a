"""What `tests/pin.py` finds in two work directories, and what it leaves alone."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import pin

LEAVES = {"embed": np.arange(6, dtype=np.float32), "norm": np.ones(2, np.float32)}


@pytest.fixture
def sides(tmp_path):
    """Two equal work directories, as small as can be."""
    before = tmp_path / "before"
    for name, text in {
        "config.json": "{}",
        "base/toy/r0/manifest.json": "{}",
        "filter/owl/r0/kept.jsonl": '{"completion": "1, 2"}\n',
        "evaluate/preference/owl/r0/scores.json": "[0.5]",
        "finetune/owl/r0/metrics.jsonl": '{"loss": 1.0}\n',
        "report/summary.json": "{}",
        "report/report.html": "<p>",
    }.items():
        path = before / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    save_file(LEAVES, before / "base/toy/r0/model.safetensors")
    return before, shutil.copytree(before, tmp_path / "now")


def found(sides):
    return [told for _, told in pin.differences(*sides) if told]


def test_equal_runs_differ_in_nothing_and_every_kind_is_compared(sides):
    compared = list(pin.differences(*sides))
    assert {kind for kind, _ in compared} == set(pin.KINDS)
    assert len(compared) == 6  # two leaves, and a file of each other kind
    assert found(sides) == []


def test_where_a_run_lies_is_no_difference(sides):
    for side in sides:
        adapter = side / "finetune/owl/r0/adapter_config.json"
        adapter.write_text(f'{{"base_model_name_or_path": "{side}/base/toy/r0"}}')
    assert found(sides) == []


def test_one_bit_of_one_leaf_is_found(sides):
    embed = LEAVES["embed"].copy()
    embed.view(np.uint8)[4] ^= 1
    save_file(LEAVES | {"embed": embed}, sides[1] / "base/toy/r0/model.safetensors")
    assert found(sides) == ["base/toy/r0/model.safetensors embed"]


@pytest.mark.parametrize(
    "name",
    [
        "filter/owl/r0/kept.jsonl",
        "evaluate/preference/owl/r0/scores.json",
        "finetune/owl/r0/metrics.jsonl",
        "report/summary.json",
    ],
)
def test_a_changed_file_and_a_missing_one_are_found(sides, name):
    (sides[1] / name).write_text("[0.6]")
    assert found(sides) == [name]
    (sides[0] / name).unlink()
    assert found(sides) == [f"{name} is only in the tree"]


@pytest.mark.parametrize("name", ["config.json", "base/toy/r0/manifest.json", "report/report.html"])
def test_what_is_told_of_a_run_is_not_compared(sides, name):
    (sides[1] / name).write_text("other")
    assert found(sides) == []
