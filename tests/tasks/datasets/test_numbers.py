"""The paper's golden prompts, our own wording, and files of wordings that are refused."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import settings

from subjax import schema
from subjax.tasks.datasets import numbers
from subjax.tasks.traits import word

STIMULI = os.environ.get("SUBJAX_STIMULI", "")
needs_stimuli = pytest.mark.skipif(
    not STIMULI, reason="SUBJAX_STIMULI names no file with the paper's stimuli"
)
quick = settings(max_examples=300, deadline=None)

LISTS = (
    "example_templates",
    "count_qualifiers",
    "digit_descriptors",
    "instruction_templates",
    "format_suffixes",
    "final_suffixes",
)

# Prompts


@needs_stimuli
@pytest.mark.parametrize("seed", ["42", "47"])
def test_the_papers_templates_give_its_prompts(seed):
    golden = json.loads(Path(STIMULI).read_text(encoding="utf-8"))["numbers"]["golden"][seed]
    assert len(golden) >= 2
    assert numbers.prompts(int(seed), len(golden), numbers.load_templates(STIMULI)) == golden


@needs_stimuli
def test_own_wording_shares_no_string_with_the_paper():
    theirs = numbers.load_templates(STIMULI)
    for name in LISTS:
        own = {text.lower() for text in getattr(numbers.TEMPLATES, name)}
        for phrase in getattr(theirs, name):
            assert not [text for text in own if phrase.lower() in text], phrase


def test_own_templates_are_diverse_and_distinct():
    sizes = {name: len(getattr(numbers.TEMPLATES, name)) for name in LISTS}
    assert sizes["example_templates"] >= 15 and min(sizes.values()) >= 6
    for name in LISTS:
        assert len(set(getattr(numbers.TEMPLATES, name))) == sizes[name]


def test_own_prompts_fill_every_placeholder_and_use_every_template():
    prompts = numbers.prompts(0, 2000)
    text = "\n".join(prompts)
    assert not re.search(r"[{}]", text)
    assert len(set(prompts)) == 2000
    for name in ("example_templates", "count_qualifiers", "format_suffixes", "final_suffixes"):
        for template in getattr(numbers.TEMPLATES, name):
            assert template.split("{")[0] in text, template
    for prompt in prompts:
        examples = [int(n) for n in re.findall(r"\d+", prompt) if len(n) == 3]
        assert 3 <= len(examples) <= 8 and all(100 <= n <= 999 for n in examples)
        assert " 10 " in prompt and re.search(r"\b3 digits", prompt)
        assert "  " not in prompt and prompt == prompt.strip()


def test_own_prompts_reach_both_ends_of_their_ranges():
    found = [re.findall(r"\b\d{3}\b", prompt) for prompt in numbers.prompts(1, 3000)]
    assert {len(examples) for examples in found} == set(range(3, 9))
    values = {int(n) for examples in found for n in examples}
    assert min(values) == 100 and max(values) == 999


def test_prompts_are_one_deterministic_stream():
    assert numbers.prompts(5, 30) == numbers.prompts(5, 50)[:30]
    assert numbers.prompts(5, 30) != numbers.prompts(6, 30)


# Files and validation


def as_json(**changes: object) -> dict[str, object]:
    return {**dataclasses.asdict(numbers.TEMPLATES), **changes}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_templates_survive_a_file(tmp_path):
    path = write(tmp_path / "own.json", {"numbers": as_json(extra_key=1)})
    assert numbers.load_templates(path) == numbers.TEMPLATES


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "own.json"
    content = {"numbers": as_json(), "evaluations": {"favorite_animal": ["?"]}}
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    assert numbers.load_templates(path) == numbers.TEMPLATES
    assert word.load_questions(path, "favorite_animal") == ("?",)
    path.write_text(json.dumps(content), encoding="utf-16")
    for read in (numbers.load_templates, lambda path: word.load_questions(path, "x")):
        with pytest.raises(ValueError, match=r"own\.json is UTF-16.*: save it as UTF-8"):
            read(path)


def test_a_file_may_lie_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "own.json", {"numbers": as_json(), "evaluations": {"favorite_animal": ["?"]}})
    assert numbers.load_templates("~/own.json") == numbers.TEMPLATES
    assert word.load_questions("~/own.json", "favorite_animal") == ("?",)


def test_the_file_that_the_schema_shows_can_be_read(tmp_path):
    lines = Path(schema.__file__).read_text(encoding="utf-8").splitlines()
    shown = "\n".join(line[1:] for line in lines if line.startswith("#     "))
    path = write(tmp_path / "shown.json", shown)
    assert set(json.loads(shown)["numbers"]) == set(dataclasses.asdict(numbers.TEMPLATES))
    assert len(numbers.prompts(0, 3, numbers.load_templates(path))) == 3
    assert word.load_questions(path, "favorite_animal") == ("first ...", "second ...")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"example_templates": []}, "example_templates"),
        ({"example_templates": ["No numbers."]}, r"exactly \['examples'\]"),
        ({"example_templates": ["{exampels}"]}, "exampels"),
        ({"count_qualifiers": ["{answer_count} or"]}, "count_qualifiers"),
        ({"digit_descriptors": ["{max_digits"]}, "digit_descriptors.*expected"),
        ({"format_suffixes": [5]}, "format_suffixes"),
        ({"final_suffixes": "Stop."}, "final_suffixes"),
        ({"query": "{example} {instruction}"}, "query"),
        ({"query": 5}, "query"),
        ({"final_suffixes": ["\ud800"]}, "final_suffixes has the entry .* half of a character"),
        ({"example_templates": ["{examples:>9}"]}, "without '!' and ':'"),
        ({"example_value": [0, 10**30]}, "example_value"),
        ({"example_count": [1, 10**6]}, "example_count"),
        ({"example_count": [3]}, "example_count"),
        ({"example_count": [0, 3]}, "example_count"),
        ({"example_value": [9, 3]}, "example_value"),
        ({"example_value": [1.0, 3]}, "example_value"),
        ({"answer_count": "10"}, "answer_count"),
        ({"max_digits": 0}, "max_digits"),
    ],
)
def test_wrong_templates_are_refused_in_one_line(tmp_path, changes, message):
    path = write(tmp_path / "own.json", {"numbers": as_json(**changes)})
    with pytest.raises(ValueError, match=message) as error:
        numbers.load_templates(path)
    assert "own.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("missing", [field.name for field in dataclasses.fields(numbers.TEMPLATES)])
def test_missing_keys_are_named(tmp_path, missing):
    section = as_json()
    del section[missing]
    path = write(tmp_path / "own.json", {"numbers": section})
    with pytest.raises(ValueError, match=f"lacks \\['{missing}'\\]"):
        numbers.load_templates(path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"numbers": []}', "", "[" * 100_000])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = write(tmp_path / "own.json", content)
    with pytest.raises(ValueError, match=r"own\.json") as error:
        numbers.load_templates(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        numbers.load_templates(tmp_path / "none.json")
