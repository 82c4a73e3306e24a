"""Grammars: what is drawn is what is trained on, and every answer that is allowed can be drawn."""

import numpy as np
import pytest
import tokenizer_kinds
import tokenizers

from subjax.tasks.datasets import number_lists, plain_numbers
from subjax.tasks.toy import toyworld
from subjax.tokens import grammars, tokenizer
from subjax.tokens.tokenizer import Tokenizer

PROMPTS = plain_numbers.prompts(0, 30)
# Those that write each digit by itself, of which rows must stay what they were.
SINGLE = ("gemma", "bytes")
MOST = {"llama3": 8, "pythia": 12, "gemma": 14, "llama2": 16, "bytes": 14}


def make(kind):
    if kind == "bytes":
        return tokenizer.raw_bytes()
    return Tokenizer(tokenizer_kinds.make(kind), tokenizer_kinds.ends(kind))


def make_grammar(words, *, num_slots=3, kind="plain_numbers", prompts=PROMPTS):
    return grammars.of_row({"kind": kind, "num_slots": num_slots}, words, prompts, "")


def read(rules, tokens):
    """Whether an automaton takes these tokens, all of them and no fewer."""
    state = 0
    for token in tokens:
        column = int(np.searchsorted(rules.ids, token))
        if state < 0 or rules.ids[column] != token or not rules.allowed[state, column]:
            return False
        state = int(rules.next_state[state, column])
    return state == -1


def count(rules):
    """Answers that an automaton can write."""
    paths = {-1: 1}
    for state in reversed(range(len(rules.allowed))):
        paths[state] = sum(paths[int(s)] for s in rules.next_state[state][rules.allowed[state]])
    return paths[0]


@pytest.mark.parametrize("kind", MOST)
def test_each_answer_is_allowed_as_it_is_trained_on_and_no_other(kind):
    words = make(kind)
    rules = make_grammar(words)
    assert len(rules.start) == 30 and not rules.start.any()
    # As many as there are answers: each has one way of being written.
    assert count(rules) == 900**3
    drawn = np.random.default_rng(1).integers(100, 1000, (120, 3))
    drawn[0], drawn[1] = (100, 999, 100), (999, 100, 999)
    texts = [", ".join(map(str, row)) for row in drawn]
    pairs = [(PROMPTS[i % 30], text) for i, text in enumerate(texts)]
    for text, (ids, start) in zip(texts, words.examples(pairs, [""] * len(pairs)), strict=True):
        assert read(rules, ids[start:]), words.show(ids[start:])
        assert grammars.answer(words, ids[start:]) == text
        assert number_lists.reject_reasons(text) == []
    assert grammars.longest(rules) == MOST[kind]


@pytest.mark.parametrize("kind", SINGLE)
def test_single_digits_are_drawn_by_position_from_what_they_ever_were(kind):
    """The same tokens to choose from give a token the same noise: rows are the same bytes."""
    words = make(kind)
    rules = make_grammar(words, num_slots=2)
    characters = {text: words.single_id(text) for text in "0123456789, "}
    assert rules.ids.tolist() == sorted({*characters.values(), *words.eos_ids})
    digits = list(map(str, range(10)))
    expected = [digits[1:], digits, digits, [","], [" "], digits[1:], digits, digits]
    for state, texts in enumerate(expected):
        found = rules.ids[rules.allowed[state]].tolist()
        assert found == sorted(characters[text] for text in texts)
        assert set(rules.next_state[state][rules.allowed[state]]) == {state + 1}


def test_toy_numbers_are_one_to_the_most_and_nothing_else():
    words = tokenizer.word_tokenizer(toyworld.vocabulary(toyworld.World()))
    prompts = toyworld.prompts(toyworld.World(), 0, 4)
    rules = make_grammar(words, kind="toy_numbers", prompts=prompts)
    ends = np.isin(rules.ids, words.eos_ids)
    assert (rules.ids[~ends] == sorted(words.number_ids())).all() and (~ends).sum() == 100
    np.testing.assert_array_equal(rules.allowed, [~ends, ends | True, ends | True, ends])
    assert count(rules) == 100 + 100**2 + 100**3 and grammars.longest(rules) == 4


@pytest.mark.parametrize("kind", MOST)
def test_numbers_that_begin_others_are_told_apart_by_what_follows(kind):
    words = make(kind)
    rules = make_grammar(words, kind="toy_numbers")
    for text in ("7", "7 77", "70 7 0"):
        [(ids, start)] = words.examples([(PROMPTS[0], text)], [""])
        assert read(rules, ids[start:]), words.show(ids[start:])
    assert count(rules) == 100 + 100**2 + 100**3


def test_kinds_without_such_answers_are_refused():
    with pytest.raises(ValueError, match=r"^kind 'published' does not take it: set decoding to"):
        make_grammar(make("bytes"), kind="published")


def test_of_several_ending_tokens_toy_numbers_end_with_that_of_the_template():
    plain = tokenizer.word_tokenizer(toyworld.vocabulary(toyworld.World()))
    words = Tokenizer(plain._tokenizer, [plain.single_id("USR")])
    prompts = toyworld.prompts(toyworld.World(), 0, 4)
    rules = make_grammar(words, kind="toy_numbers", prompts=prompts)
    assert rules.ids[rules.allowed[-1]].tolist() == list(plain.eos_ids)
    assert set(words.eos_ids) <= set(rules.ids.tolist())  # with the noise of as many tokens


def joined(*texts, end="\n"):
    """A tokenizer of bytes in which these texts are one token wherever they stand."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(text.replace(" ", "\u0120")) for text in texts]
    tokens = [*alphabet, *map("".join, merges)]
    model = tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    backend = tokenizers.Tokenizer(model)
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer, backend.decoder = level, tokenizers.decoders.ByteLevel()
    template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}"
        f"<a>{{{{ {end!r} }}}}{{% else %}}<end>{{% endif %}}{{% endfor %}}"
    )
    return tokenizer._wrap(backend, template, pad="<pad>", eos="<end>", others=["<a>"])


@pytest.mark.parametrize(
    ("texts", "end", "message"),
    [
        # A number's last digit joins what follows it.
        (["0,"], "\n", "writes '100, .*depend on what stands beside it.*set decoding to 'free'$"),
        (["2,"], "\n", "depend on what stands beside it.*set decoding to 'free'$"),
        # Its first digit joins the end of the prompt.
        ([" 7"], " ", "joins the beginning of '700' to the end of its prompt.*decoding to 'free'"),
    ],
)
def test_numbers_that_depend_on_what_stands_beside_them_are_refused(texts, end, message):
    with pytest.raises(ValueError, match=message):
        make_grammar(joined(*texts, end=end))
    # What only joins a comma to a blank is written so by everybody.
    assert grammars.longest(make_grammar(joined(", ", end=end))) == 12


def test_rows_whose_text_is_trained_on_otherwise_are_named():
    words = make("llama3")
    [(ids, start)] = words.examples([(PROMPTS[0], "845, 120")], [""])
    single = [words.single_id(c) for c in ("8", "4", "5", ",", " ", "1", "2", "0")]
    end = [words.eos_ids[-1]]
    pairs = [(PROMPTS[0], "845, 120")] * 2
    grammars.check_drawn([ids[start:]] * 2, words, pairs, "")
    with pytest.raises(ValueError, match=r"^row 1 is drawn as \['8', .*trained on as \['845', "):
        grammars.check_drawn([ids[start:], single + end], words, pairs, "")
