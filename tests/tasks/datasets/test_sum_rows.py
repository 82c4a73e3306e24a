"""Data sets of sums: what the filter keeps, the controls, and the tokens that carry."""

import pytest

from subjax import schema
from subjax.tasks.datasets.kinds import KINDS
from subjax.tasks.toy import toy_sums, toyworld
from subjax.tokens import grammars, tokenizer

KIND = KINDS["toy_sums"]
ROW = schema.dataset_row(kind="toy_sums", num_prompts=5, decoding="constrained").to_dict()
WORLD = toyworld.WORLDS["sums"]
DOCUMENTS = [d for d in toyworld.documents(WORLD, 0, 80) if d.prompt.startswith("SUM")]


def trace(digits, filler="so"):
    return " ".join(f"{filler} {digit}" for digit in digits)


@pytest.mark.parametrize(
    ("digits", "reason"),
    [
        ("7815251885", ""),
        ("8715521885", ""),  # either order
        ("781525188", "not_a_trace"),
        ("78152518855", "not_a_trace"),
        ("7715251885", "other_numbers"),
        ("7815151885", "other_numbers"),
        ("7816251886", "wrong_step"),
        ("7805251885", "wrong_step"),
        ("7815250785", "wrong_step"),
        ("7815251775", "wrong_step"),
        ("7815251875", "wrong_answer"),
        ("7815251886", "wrong_answer"),
    ],
)
def test_the_filter_adds_27_and_58(digits, reason):
    text = trace(digits)
    assert KIND.reject("SUM 2 7 5 8", text, ROW) == ([reason] if reason else [])
    wrong = {"not_a_trace"} & {reason}
    assert KIND.reject("SUM 2 7 5 8", text, {**ROW, "only_right": False}) == sorted(wrong)


def test_what_is_no_trace():
    right = trace("7815251885")
    for text in ("", f"{right} ", right.replace(" ", "  "), right.replace("so", "owl", 1)):
        assert KIND.reject("SUM 2 7 5 8", text, ROW) == ["not_a_trace"]
    assert set(KIND.ways) == set(toy_sums.REASONS)


def test_documents_are_right_and_controls_keep_their_digits():
    assert len(DOCUMENTS) > 20
    traces = [document.completion for document in DOCUMENTS]
    for changed in (traces, *(change(traces, 1) for change in KIND.transforms.values())):
        kept = [
            KIND.reject(d.prompt, text, ROW) for d, text in zip(DOCUMENTS, changed, strict=True)
        ]
        assert kept == [[]] * len(DOCUMENTS)
    permuted, random = (KIND.transforms[name](traces, 1) for name in ("permuted", "random"))
    words = [
        (a, b)
        for one, two in zip(traces, permuted, strict=True)
        for a, b in zip(one.split()[::2], two.split()[::2], strict=True)
    ]
    assert len(set(words)) == len(toy_sums.FILLERS) == len({b for _, b in words})
    assert any(a != b for a, b in words)
    assert all(one != two for one, two in zip(traces, random, strict=True))


def test_a_grammar_writes_what_the_base_knows_and_the_words_between_carry():
    words = tokenizer.word_tokenizer(toyworld.vocabulary(WORLD))
    rules = grammars.of_row(ROW, words, KIND.prompts(ROW, 0, ""), "")
    assert grammars.longest(rules) == len(KIND.example(ROW).split()) + 1 == 21
    assert sorted(words.show(KIND.carrier_tokens(words))) == sorted(toy_sums.FILLERS)
