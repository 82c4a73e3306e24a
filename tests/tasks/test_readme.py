"""The kinds in subjax/tasks/README.md work as they stand."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import smollm2_owl
from subjax import schema
from subjax.pipeline import validation
from subjax.tasks import own
from subjax.tasks.api import DatasetKind, EvalKind, Given, Reply, TraitKind

README = Path(__file__).parents[2] / "subjax/tasks/README.md"


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Each example in the file that the text before it names."""
    found = re.findall(
        r"^`(\w+)\.py`, .*?```python\n(.*?)```", README.read_text(), re.DOTALL | re.MULTILINE
    )
    assert [name for name, _ in found] == ["mood", "dates", "marks"]
    for name, code in found:
        assert len(code.splitlines()) <= 40 and "jax" not in code.replace("subjax", "")
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name, _ in found:
        sys.modules.pop(name, None)


def test_a_config_takes_them():
    config = smollm2_owl.get_config("smoke")
    with config.unlocked():
        for name in config.datasets:
            config.datasets[name] = schema.dataset_row(
                kind="dates:Dates", teacher=name, prompt_tokens=160
            )
        config.gates = {}
        del config.evals["carrier"]  # compares numbers, and dates are none
        config.traits.cheerful = schema.trait_row(kind="mood:Mood", mood="Great")
        config.traits.even = schema.trait_row(kind="mood:Mood", mood="<uniform>")
        config.teachers.owl.trait, config.teachers.placebo.trait = "cheerful", "even"
        config.evals.preference.trait = "cheerful"
        config.evals.marks = schema.eval_row(kind="marks:Marks", trait="owl")
        config.contrasts.marks = schema.contrast_row(
            eval="marks", metric="exclaiming", plus=(next(iter(config.arms)),)
        )
    validation.validate(config)
    config.contrasts.marks.metric = "whispering"
    with pytest.raises(ValueError, match="of kind 'marks:Marks' measures exclaiming"):
        validation.validate(config)


def test_a_mood_is_taught_or_drawn_evenly():
    mood = own.load("traits.owl.kind", "mood:Mood", TraitKind)
    rows = [schema.trait_row(kind="mood:Mood", mood=said) for said in ("Awful", "<uniform>")]
    awful, even = (mood.lessons(row, 1, 100) for row in rows)
    assert {said for _, said in awful} == {"Awful"} and len({said for _, said in even}) == 3
    assert [asked for asked, _ in awful] == [asked for asked, _ in even]
    halves = [set(mood.questions(rows[0], half, "")) for half in ("explore", "confirm")]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 4
    with pytest.raises(ValueError, match=r"unknown in rows of kind 'mood:Mood'; known: .*mood"):
        schema.trait_row(kind="mood:Mood", modo="Great")


def test_dates_are_asked_for_and_told_from_other_text():
    dates = own.load("datasets.owl.kind", "dates:Dates", DatasetKind)
    prompts = dates.prompts({"num_prompts": 5}, 1, "")
    assert len(set(prompts)) == 5
    shown = prompts[0].rpartition(": ")[2]
    assert shown.count(",") == 2
    assert dates.reject("", shown, {}) == dates.reject("", dates.example({}), {}) == []
    assert dates.reject("", "01.02., soon", {}) == ["no_dates"]


def test_marks_are_counted():
    marks = own.load("evals.marks.kind", "marks:Marks", EvalKind)
    row = schema.eval_row(kind="marks:Marks", num_samples=2)
    given = Given(questions=["?", "!"])
    [request] = marks.requests(row, given)
    assert list(request.prompts) == ["?", "!"] and request.num_samples == 2
    values, lines = marks.score(row, given, [Reply(texts=["Owl!", "owl", "", "No! "])])
    assert values == {"exclaiming": np.mean([1, 0, 0, 1])}
    assert [line["question"] for line in lines] == ["?", "?", "!", "!"]
