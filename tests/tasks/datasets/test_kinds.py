"""A kind of data set is one object and one line: everything else takes what that says."""

import shutil

import pytest
import tiny

from subjax.pipeline import preview, runner, validation
from subjax.planning import token_counts
from subjax.runtime import artifacts
from subjax.tasks.api import AnswerList, DatasetKind, Field
from subjax.tasks.datasets import kinds

STAGES = ("base", "teacher", "generate", "filter")
DAYS = tuple(f"{day} May" for day in range(1, 32))


def reversed_days(completions, seed):
    return [" then ".join(reversed(text.split(" then "))) for text in completions]


class Dates(DatasetKind):
    """Days of May, each later than the one before."""

    asks = "to name days"
    fields = {"num_slots": Field(2, "days")}  # noqa: RUF012
    transforms = {"reversed": reversed_days}  # noqa: RUF012
    ways = {"order": "lower datasets.{row}.num_slots"}  # noqa: RUF012

    def check(self, name, row):
        if row["num_slots"] > 4:
            raise ValueError(f"config.datasets.{name}.num_slots is above 4: lower it")

    def prompts(self, row, seed, stimuli):
        return [f"after {(seed + i) % 28 + 1} May?" for i in range(row["num_prompts"])]

    def example(self, row):
        return "30 May then 31 May"

    def answers(self, row):
        return AnswerList(DAYS, " then ", 1, row["num_slots"])

    def reject(self, prompt, completion, row):
        days = [DAYS.index(day) for day in completion.split(" then ")]
        return [] if days == sorted(days) else ["order"]


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "dates", Dates())
    return tiny.with_dataset(
        "days",
        **{"kind": "dates", "transform": "reversed", "decoding": "constrained", "num_slots": 2},
        **{"num_prompts": 12, "rows_per_part": 12, "slots": 12, "prompt_tokens": 24},
        num_holdout=1,
    )


def test_validation_asks_the_kind(config):
    validation.validate(config)
    row = config.datasets.days
    for field, value, said in (
        ("kind", "data", "'data'; allowed: numbers, .*published, dates"),
        ("transform", "random", "'random'; allowed: none, reversed$"),
        ("num_slots", 5, "above 4: lower it$"),
    ):
        before, row[field] = row[field], value
        with pytest.raises(ValueError, match=rf"^config\.datasets\.days\.{field} is .*{said}"):
            validation.validate(config)
        row[field] = before


def test_decoding_is_free_where_the_kind_has_no_answers(config, monkeypatch):
    monkeypatch.setattr(Dates, "answers", DatasetKind.answers)
    with pytest.raises(ValueError, match=r"'constrained', which kind 'dates' does not take: set"):
        validation.validate(config)
    config.datasets.days.decoding = "free"
    validation.validate(config)
    assert token_counts.longest(config, "days") == config.datasets.days.max_new_tokens


def test_its_rows_are_written_filtered_and_transformed(config, tmp_path):
    runner.run(config, tmp_path, stages=STAGES)
    rows = artifacts.read_parts(tmp_path / "generate/days/r0")
    assert len(rows) == 12 and all(row["prompt"].startswith("after ") for row in rows)
    said = [row["completion"].split(" then ") for row in rows]
    assert all(day in DAYS for days in said for day in days)
    longest = max(len(row["completion"]) for row in rows)
    assert token_counts.longest(config, "days") == len("31 May then 31 May") + 1 > longest
    assert {len(days) for days in said} <= {1, 2}
    kept = artifacts.read_jsonl(tmp_path / "filter/days/r0/kept.jsonl")
    rejected = artifacts.read_jsonl(tmp_path / "filter/days/r0/rejected.jsonl")
    assert len(kept) + len(rejected) == 11 and all(row["reasons"] == ["order"] for row in rejected)
    for row in kept:
        days = [DAYS.index(day) for day in row["completion"].split(" then ")]
        assert days == sorted(days, reverse=True)
    shutil.rmtree(tmp_path / "filter/days/r0")
    config.datasets.days.num_train = 11
    with pytest.raises(ValueError, match=r"order \(\d+\).*: lower datasets.days.num_slots, raise"):
        runner.run(config, tmp_path, stages=STAGES)


def test_the_preview_shows_its_example(config, tmp_path):
    shown = preview.render(config, tmp_path, "owl")
    assert "The completion '30 May then 31 May' is INVENTED" in shown
    assert "asks: same, to name days" in shown


def test_a_kind_that_is_in_no_table_is_refused():
    with pytest.raises(ValueError, match=r"kind is 'data'; allowed: .* package\.module:attribute"):
        kinds.of_row({"kind": "data"})
