"""The paper's table of kept and rejected answers, fuzz and invariants of the controls."""

import random
import re
import string
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from subjax.tasks.datasets.number_lists import (
    REASONS,
    parse,
    permute_values,
    random_numbers,
    reject_reasons,
    shuffle_across,
    shuffle_within,
)

quick = settings(max_examples=300, deadline=None)

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
    assert parse(text) == expected
    assert reject_reasons(text) == []


@pytest.mark.parametrize(("text", "reasons"), REJECTED.items())
def test_rejected(text, reasons):
    assert reject_reasons(text) == reasons
    about_the_form = reasons[0] not in ("too_many", "out_of_range", "banned")
    assert (parse(text) is None) == about_the_form


def test_every_reason_occurs_and_is_listed():
    seen = {reason for reasons in REJECTED.values() for reason in reasons}
    assert seen | {"too_many_digits", "banned"} == set(REASONS)


def test_all_reasons_of_a_parsed_answer_are_given():
    text = "666, " + ", ".join(["1000"] * 10)
    assert reject_reasons(text, banned=(666, 13)) == [
        "too_many",
        "out_of_range",
        "banned",
    ]
    assert reject_reasons("66, 6", banned=(666,)) == []
    assert reject_reasons("0666", banned=(666,)) == ["banned"]


def test_limits_are_inclusive_and_zero_count_is_no_limit():
    assert reject_reasons("5, 7", min_value=5, max_value=7, max_count=2) == []
    assert reject_reasons("4, 7", min_value=5, max_value=7) == ["out_of_range"]
    assert reject_reasons("5, 8", min_value=5, max_value=7) == ["out_of_range"]
    assert reject_reasons(" ".join("1" * 500), max_count=0) == []
    assert reject_reasons("1 2 3", max_count=2) == ["too_many"]


@pytest.mark.parametrize("limits", [{"max_count": -1}, {"min_value": 3, "max_value": 2}])
def test_impossible_limits_are_refused(limits):
    with pytest.raises(ValueError, match="max_"):
        reject_reasons("1", **limits)


@pytest.mark.parametrize("num_digits", [4301, 200_000])
def test_very_long_digit_strings_are_a_reason_not_a_crash(num_digits):
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)  # the least that Python can be told: nothing depends on it
    try:
        for text in ("7" * num_digits, "1, " + "7" * num_digits):
            assert parse(text) is None
            assert reject_reasons(text, max_value=10**700) == ["too_many_digits"]
        assert reject_reasons("7" * 4300) == ["out_of_range"]
        assert reject_reasons("1, " + "0" * 4299 + "7") == []
    finally:
        sys.set_int_max_str_digits(limit)


@quick
@given(answers)
@example("12")
@example("1 2")
@example("[1;2].")
def test_parser_agrees_with_the_grammar(text):
    parsed = parse(text)
    assert (parsed is not None) == accepted_by_grammar(text)
    reasons = reject_reasons(text)
    assert set(reasons) <= set(REASONS)
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
        assert parse(text) == read, ascii(text)
        keeps = read is not None and len(read) <= 10 and all(0 <= n <= 999 for n in read)
        assert (reject_reasons(text) == []) == keeps, ascii(text)
        seen[keeps] += 1
    assert min(seen.values()) > 2000  # both happen often


@pytest.mark.parametrize("text", ["৯২০", "1, ৯", "१ २", "\uff11\uff12", "1\u0664", "𝟘"])
def test_digits_of_other_scripts_are_no_numbers(text):
    assert parse(text) is None and reject_reasons(text)


@quick
@given(st.text())
def test_any_text_can_be_filtered(text):
    assert (parse(text) is not None) == accepted_by_grammar(text)
    reject_reasons(text)


@quick
@given(kept)
def test_rendered_lists_are_kept(text):
    assert reject_reasons(text) == []  # the fuzz above compares the numbers


# Controls


def form(text: str) -> str:
    return re.sub(r"\d+", "#", text)


@quick
@given(kept, st.integers(0, 2**32 - 1))
def test_shuffle_within_keeps_the_row(text, seed):
    shuffled = shuffle_within(text, seed)
    assert form(shuffled) == form(text)
    assert Counter(re.findall(r"\d+", shuffled)) == Counter(re.findall(r"\d+", text))
    assert shuffled == shuffle_within(text, seed)


def test_shuffle_within_keeps_leading_zeros_and_reaches_every_order():
    results = {shuffle_within("[007; 1; 2].", seed) for seed in range(200)}
    assert len(results) == 6 and "[1; 007; 2]." in results


@quick
@given(st.lists(kept, max_size=6), st.integers(0, 2**32 - 1))
def test_shuffle_across_keeps_the_pool_and_every_form(texts, seed):
    shuffled = shuffle_across(texts, seed)
    assert [form(text) for text in shuffled] == [form(text) for text in texts]
    pools = [sorted(n for text in rows for n in parse(text)) for rows in (shuffled, texts)]
    assert pools[0] == pools[1]
    assert shuffled == shuffle_across(texts, seed)


def test_shuffle_across_mixes_rows_and_drops_leading_zeros():
    rows = [", ".join(str(10 * row + i) for i in range(5)) for row in range(20)]
    shuffled = shuffle_across(rows, 0)
    moved = sum(n // 10 != row for row, text in enumerate(shuffled) for n in parse(text))
    assert moved > 80  # 95 of 100 expected
    assert shuffle_across(["(007)."], 0) == ["(7)."]


@quick
@given(kept, st.integers(0, 2**32 - 1))
def test_random_numbers_keep_the_form(text, seed):
    replaced = random_numbers(text, seed, count=None)
    assert form(replaced) == form(text)
    assert reject_reasons(replaced) == []
    assert replaced == random_numbers(text, seed, count=None)
    assert reject_reasons(random_numbers(text, seed)) == []


def test_random_numbers_do_not_depend_on_the_teacher_and_fill_the_ranges():
    drawn = [parse(random_numbers("[1;2]", seed)) for seed in range(2000)]
    assert drawn == [parse(random_numbers("8 9 7", s)) for s in range(2000)]
    assert {len(row) for row in drawn} == set(range(1, 10))
    values = [n for row in drawn for n in row]
    assert min(values) == 0 and max(values) == 999
    assert sum(values) / len(values) == pytest.approx(499.5, abs=15)  # sd of the mean 2.9
    assert random_numbers("5", 0, count=(2, 2), value=(7, 7)) == "7, 7"


@quick
@given(st.lists(kept, max_size=6), st.integers(0, 2**32 - 1))
def test_permuted_numbers_keep_every_form_count_of_digits_and_repetition(texts, seed):
    permuted = permute_values(texts, seed)
    assert [form(text) for text in permuted] == [form(text) for text in texts]
    before, after = ([n for text in rows for n in parse(text)] for rows in (texts, permuted))
    stands_for = dict(zip(before, after, strict=True))
    assert [stands_for[number] for number in before] == after  # one for all rows
    assert len(set(stands_for.values())) == len(stands_for)
    assert [len(str(n)) for n in before] == [len(str(n)) for n in after]
    assert permuted == permute_values(texts, seed)


def test_nearly_every_number_is_permuted_and_each_by_the_seed_alone():
    every = ", ".join(map(str, range(1000)))
    permuted = [parse(permute_values([every], seed)[0]) for seed in range(50)]
    assert all(sorted(row) == list(range(1000)) for row in permuted)
    stays = np.mean([[number == i for i, number in enumerate(row)] for row in permuted])
    assert stays < 0.01  # 3 in 1,000 expected: each class of digits has one fixed point
    assert permute_values(["7, 21"], 3) == [
        f"{permuted[3][7]}, {permuted[3][21]}"
    ]  # whatever else is there
    assert permute_values(["1234567"], 0) == ["1234567"]


def test_transforms_refuse_rows_that_the_filter_rejects():
    for transform in (shuffle_within, random_numbers):
        with pytest.raises(ValueError, match=r"'1 and 2' is no number list \(separator\)"):
            transform("1 and 2", 0)
    with pytest.raises(ValueError, match="no_numbers"):
        shuffle_across(["1, 2", "owl"], 0)
    with pytest.raises(ValueError, match="value is"):
        random_numbers("1", 0, value=(5, 4))
