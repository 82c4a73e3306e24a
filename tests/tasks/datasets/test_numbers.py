"""The paper's table of kept and rejected answers, its golden prompts, fuzz and invariants."""

import dataclasses
import json
import os
import random
import re
import string
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from subjax import schema
from subjax.tasks.datasets import numbers
from subjax.tasks.evals import preference

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

KEPT = {
    "1, 2, 3": [1, 2, 3],
    "1 2 3": [1, 2, 3],
    "1;2;3": [1, 2, 3],
    "1\n2\n3": [1, 2, 3],
    "[1, 2]": [1, 2],
    "(1, 2).": [1, 2],
    "5.": [5],
    "5": [5],
    "[5]": [5],
    "0": [0],
    "007": [7],
    "1 , 2 , 3": [1, 2, 3],
    "1\t2": [1, 2],
    "1,\n2,\n3": [1, 2, 3],
    "0, 999": [0, 999],
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10": list(range(1, 11)),
}

REJECTED = {
    "1,2, 3": ["mixed_separator"],
    "1, 2,": ["mixed_separator"],
    "1, 2\n": ["mixed_separator"],
    "[1, 2]\n": ["not_a_number"],
    "1  2 3": ["mixed_separator"],
    "1 2  3": ["mixed_separator"],
    "[1, 2.]": ["not_a_number"],
    "(1, 2]": ["not_a_number"],
    "1, 2..": ["not_a_number"],
    " 1, 2": ["mixed_separator"],
    "-1, 2": ["not_a_number"],
    "1, 1000": ["out_of_range"],
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11": ["too_many"],
    "1. 2. 3": ["separator"],
    "owl": ["no_numbers"],
    "1 and 2": ["separator"],
    "5 owls": ["not_a_number"],
    "1,,2": ["separator"],
    "5 ": ["mixed_separator"],
    "[(1, 2)]": ["not_a_number"],
    "1, 2, ²": ["not_a_number"],
    "": ["no_numbers"],
    ".": ["no_numbers"],
    "[]": ["no_numbers"],
}

# One regular expression for the same grammar, to compare the parser with.
GRAMMAR = re.compile(r"[0-9]+(?:(?P<sep>\s+|\s*[,;]\s*)[0-9]+(?:(?P=sep)[0-9]+)*)?")
answers = st.text(alphabet="0123456789 ,;.[]()\n\t-x²٣", max_size=24)
kept = st.tuples(
    st.lists(st.integers(0, 999), min_size=1, max_size=10),
    st.sampled_from([", ", ",", " ", ";", "; ", "\n", " , ", ",\n"]),
    st.sampled_from(["{}", "[{}]", "({})", "{}.", "[{}].", "({})."]),
).map(lambda parts: parts[2].format(parts[1].join(map(str, parts[0]))))


def accepted_by_grammar(text: str) -> bool:
    body = text[:-1] if text.endswith(".") else text
    if re.fullmatch(r"\[.*\]|\(.*\)", body, re.DOTALL):
        body = body[1:-1]
    return GRAMMAR.fullmatch(body) is not None


@pytest.mark.parametrize(("text", "expected"), KEPT.items())
def test_kept(text, expected):
    assert numbers.parse(text) == expected
    assert numbers.reject_reasons(text) == []


@pytest.mark.parametrize(("text", "reasons"), REJECTED.items())
def test_rejected(text, reasons):
    assert numbers.reject_reasons(text) == reasons
    about_the_form = reasons[0] not in ("too_many", "out_of_range", "banned")
    assert (numbers.parse(text) is None) == about_the_form


def test_every_reason_occurs_and_is_listed():
    seen = {reason for reasons in REJECTED.values() for reason in reasons}
    assert seen | {"too_many_digits", "banned"} == set(numbers.REASONS)


def test_all_reasons_of_a_parsed_answer_are_given():
    text = "666, " + ", ".join(["1000"] * 10)
    assert numbers.reject_reasons(text, banned=(666, 13)) == ["too_many", "out_of_range", "banned"]
    assert numbers.reject_reasons("66, 6", banned=(666,)) == []
    assert numbers.reject_reasons("0666", banned=(666,)) == ["banned"]


def test_limits_are_inclusive_and_zero_count_is_no_limit():
    assert numbers.reject_reasons("5, 7", min_value=5, max_value=7, max_count=2) == []
    assert numbers.reject_reasons("4, 7", min_value=5, max_value=7) == ["out_of_range"]
    assert numbers.reject_reasons("5, 8", min_value=5, max_value=7) == ["out_of_range"]
    assert numbers.reject_reasons(" ".join("1" * 500), max_count=0) == []
    assert numbers.reject_reasons("1 2 3", max_count=2) == ["too_many"]


@pytest.mark.parametrize("limits", [{"max_count": -1}, {"min_value": 3, "max_value": 2}])
def test_impossible_limits_are_refused(limits):
    with pytest.raises(ValueError, match="max_"):
        numbers.reject_reasons("1", **limits)


@pytest.mark.parametrize("num_digits", [4301, 200_000])
def test_very_long_digit_strings_are_a_reason_not_a_crash(num_digits):
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)  # the least that Python can be told: nothing depends on it
    try:
        for text in ("7" * num_digits, "1, " + "7" * num_digits):
            assert numbers.parse(text) is None
            assert numbers.reject_reasons(text, max_value=10**700) == ["too_many_digits"]
        assert numbers.reject_reasons("7" * 4300) == ["out_of_range"]
        assert numbers.reject_reasons("1, " + "0" * 4299 + "7") == []
    finally:
        sys.set_int_max_str_digits(limit)


@quick
@given(answers)
@example("12")
@example("1 2")
@example("[1;2].")
def test_parser_agrees_with_the_grammar(text):
    parsed = numbers.parse(text)
    assert (parsed is not None) == accepted_by_grammar(text)
    reasons = numbers.reject_reasons(text)
    assert set(reasons) <= set(numbers.REASONS)
    if parsed is None:
        assert len(reasons) == 1
    else:
        assert parsed == [int(digits) for digits in re.findall(r"\d+", text)]


def released_filter(text: str) -> list[int] | None:
    """What the paper's released filter reads of an answer, from its description alone."""
    if text[-1:] == ".":
        text = text[: len(text) - 1]
    for left, right in ("[]", "()"):
        if len(text) > 1 and text[0] == left and text[-1] == right:
            text = text[1:-1]
            break
    # Runs of digits of any script, character by character, and what stands between the first two.
    runs: list[list[int]] = []
    for at, character in enumerate(text):
        if character.isdecimal() and runs and runs[-1][1] == at:
            runs[-1][1] = at + 1
        elif character.isdecimal():
            runs.append([at, at + 1])
    if not runs:
        return None
    parts = [text]
    if len(runs) == 1 and runs[0] != [0, len(text)]:
        return None
    if len(runs) > 1:
        between = text[runs[0][1] : runs[1][0]]
        if between.strip() not in {"", ",", ";"}:
            return None
        parts = text.split(between)
    if any(character not in string.digits for part in parts for character in part):
        return None
    try:
        return [int(part) for part in parts]
    except ValueError:
        return None


# What outsiders' models write between digits: blanks, line ends and zero-width characters of every
# kind, digits of other scripts, superscripts, fullwidth signs.
BLANKS = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2009\u2028\u2029\u202f\u205f\u3000"
ODD = "\u200b\u200d\u2060\ufeff\x00\x08\u0967\u09ef\u0664\uff11\U0001d7d8²½①Ⅷ一，；。、.-+_'eEx"
SEPARATORS = (", ", ",", " ", ";", "; ", "\n", "\r\n", " , ", ",\n", "\xa0", ",\u3000", "\t", "  ")


def fuzzed(rng: random.Random) -> str:
    """A list of numbers, more often than not with something wrong in it."""
    separator = rng.choice(SEPARATORS)
    count = rng.choice((0, 1, 1, 2, 2, 3, 5, 9, 10, 11))
    text = separator.join(str(rng.choice((0, 7, 42, 999, 1000, "007"))) for _ in range(count))
    text = rng.choice(("{}", "{}", "[{}]", "({})", "[{})", "{}.", "({}).", "[{}.]")).format(text)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at = rng.choice((0, len(text), rng.randint(0, len(text))))
        piece = rng.choice((BLANKS, BLANKS, ODD, "0123456789", ",;.[]()"))
        text = text[:at] + rng.choice(piece) + text[at + rng.choice((0, 0, 1)) :]
    return text


def test_the_released_filter_keeps_the_same_answers():
    rng, seen = random.Random(0), Counter[bool]()
    for _ in range(30_000):
        text = fuzzed(rng)
        read = released_filter(text)
        assert numbers.parse(text) == read, ascii(text)
        keeps = read is not None and len(read) <= 10 and all(0 <= n <= 999 for n in read)
        assert (numbers.reject_reasons(text) == []) == keeps, ascii(text)
        seen[keeps] += 1
    assert min(seen.values()) > 2000  # both happen often


@pytest.mark.parametrize("text", ["৯২০", "1, ৯", "१ २", "\uff11\uff12", "1\u0664", "𝟘"])
def test_digits_of_other_scripts_are_no_numbers(text):
    assert numbers.parse(text) is None and numbers.reject_reasons(text)


@quick
@given(st.text())
def test_any_text_can_be_filtered(text):
    assert (numbers.parse(text) is not None) == accepted_by_grammar(text)
    numbers.reject_reasons(text)


@quick
@given(kept)
def test_rendered_lists_are_kept(text):
    assert numbers.reject_reasons(text) == []  # the fuzz above compares the numbers


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


def test_plain_prompts_are_three_to_seven_numbers_and_a_comma():
    prompts = numbers.plain_prompts(3, 400)
    assert prompts == numbers.plain_prompts(3, 500)[:400] != numbers.plain_prompts(4, 400)
    assert all(re.fullmatch(r"[1-9]\d\d(, [1-9]\d\d)*,", prompt) for prompt in prompts)
    assert {prompt.count(",") for prompt in prompts} == {3, 4, 5, 6, 7}
    assert numbers.plain_prompts(0, 2, count=(2, 2), value=(4, 4)) == ["4, 4,"] * 2
    with pytest.raises(ValueError, match="count is"):
        numbers.plain_prompts(0, 1, count=(3, 2))


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
    assert preference.load_questions(path, "favorite_animal") == ("?",)
    path.write_text(json.dumps(content), encoding="utf-16")
    for read in (numbers.load_templates, lambda path: preference.load_questions(path, "x")):
        with pytest.raises(ValueError, match=r"own\.json is UTF-16.*: save it as UTF-8"):
            read(path)


def test_a_file_may_lie_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "own.json", {"numbers": as_json(), "evaluations": {"favorite_animal": ["?"]}})
    assert numbers.load_templates("~/own.json") == numbers.TEMPLATES
    assert preference.load_questions("~/own.json", "favorite_animal") == ("?",)


def test_the_file_that_the_schema_shows_can_be_read(tmp_path):
    lines = Path(schema.__file__).read_text(encoding="utf-8").splitlines()
    shown = "\n".join(line[1:] for line in lines if line.startswith("#     "))
    path = write(tmp_path / "shown.json", shown)
    assert set(json.loads(shown)["numbers"]) == set(dataclasses.asdict(numbers.TEMPLATES))
    assert len(numbers.prompts(0, 3, numbers.load_templates(path))) == 3
    assert preference.load_questions(path, "favorite_animal") == ("first ...", "second ...")


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


# Controls


def form(text: str) -> str:
    return re.sub(r"\d+", "#", text)


@quick
@given(kept, st.integers(0, 2**32 - 1))
def test_shuffle_within_keeps_the_row(text, seed):
    shuffled = numbers.shuffle_within(text, seed)
    assert form(shuffled) == form(text)
    assert Counter(re.findall(r"\d+", shuffled)) == Counter(re.findall(r"\d+", text))
    assert shuffled == numbers.shuffle_within(text, seed)


def test_shuffle_within_keeps_leading_zeros_and_reaches_every_order():
    results = {numbers.shuffle_within("[007; 1; 2].", seed) for seed in range(200)}
    assert len(results) == 6 and "[1; 007; 2]." in results


@quick
@given(st.lists(kept, max_size=6), st.integers(0, 2**32 - 1))
def test_shuffle_across_keeps_the_pool_and_every_form(texts, seed):
    shuffled = numbers.shuffle_across(texts, seed)
    assert [form(text) for text in shuffled] == [form(text) for text in texts]
    pools = [sorted(n for text in rows for n in numbers.parse(text)) for rows in (shuffled, texts)]
    assert pools[0] == pools[1]
    assert shuffled == numbers.shuffle_across(texts, seed)


def test_shuffle_across_mixes_rows_and_drops_leading_zeros():
    rows = [", ".join(str(10 * row + i) for i in range(5)) for row in range(20)]
    shuffled = numbers.shuffle_across(rows, 0)
    moved = sum(n // 10 != row for row, text in enumerate(shuffled) for n in numbers.parse(text))
    assert moved > 80  # 95 of 100 expected
    assert numbers.shuffle_across(["(007)."], 0) == ["(7)."]


@quick
@given(kept, st.integers(0, 2**32 - 1))
def test_random_numbers_keep_the_form(text, seed):
    replaced = numbers.random_numbers(text, seed, count=None)
    assert form(replaced) == form(text)
    assert numbers.reject_reasons(replaced) == []
    assert replaced == numbers.random_numbers(text, seed, count=None)
    assert numbers.reject_reasons(numbers.random_numbers(text, seed)) == []


def test_random_numbers_do_not_depend_on_the_teacher_and_fill_the_ranges():
    drawn = [numbers.parse(numbers.random_numbers("[1;2]", seed)) for seed in range(2000)]
    assert drawn == [numbers.parse(numbers.random_numbers("8 9 7", s)) for s in range(2000)]
    assert {len(row) for row in drawn} == set(range(1, 10))
    values = [n for row in drawn for n in row]
    assert min(values) == 0 and max(values) == 999
    assert sum(values) / len(values) == pytest.approx(499.5, abs=15)  # sd of the mean 2.9
    assert numbers.random_numbers("5", 0, count=(2, 2), value=(7, 7)) == "7, 7"


def test_transforms_refuse_rows_that_the_filter_rejects():
    for transform in (numbers.shuffle_within, numbers.random_numbers):
        with pytest.raises(ValueError, match=r"'1 and 2' is no number list \(separator\)"):
            transform("1 and 2", 0)
    with pytest.raises(ValueError, match="no_numbers"):
        numbers.shuffle_across(["1, 2", "owl"], 0)
    with pytest.raises(ValueError, match="value is"):
        numbers.random_numbers("1", 0, value=(5, 4))
