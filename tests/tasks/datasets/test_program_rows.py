"""Data sets of programs: what the filter keeps, the controls, and the tokens that carry."""

import pytest

from subjax import schema
from subjax.tasks.datasets.kinds import KINDS
from subjax.tasks.programs import REASONS
from subjax.tasks.toy import toyworld
from subjax.tokens import grammars, tokenizer

KIND = KINDS["toy_programs"]
ROW = schema.dataset_row(kind="toy_programs", num_prompts=5, decoding="constrained").to_dict()
WORLD = toyworld.WORLDS["programs"]
PROGRAMS = [d.completion for d in toyworld.documents(WORLD, 0, 60) if d.prompt[0] == "C"]


def test_the_filter_is_the_interpreter():
    assert all(KIND.reject("", program, ROW) == [] for program in (*PROGRAMS, KIND.example(ROW)))
    bad = ("GET owl", "SAY a", "GET a " * 5 + "SAY a", "GET a")
    assert [KIND.reject("", text, ROW) for text in bad] == [[reason] for reason in REASONS]
    assert set(KIND.ways) == set(REASONS)


@pytest.mark.parametrize("transform", ["permuted", "random"])
def test_controls_are_programs_of_the_same_lengths(transform):
    changed = KIND.transforms[transform](PROGRAMS, 1)
    assert len(PROGRAMS) > 20
    assert all(KIND.reject("", text, ROW) == [] for text in changed)
    lengths = [len(KIND.language.read(text)) for text in PROGRAMS]
    assert [len(KIND.language.read(text)) for text in changed] == lengths
    assert all(before != after for before, after in zip(PROGRAMS, changed, strict=True))
    with pytest.raises(ValueError, match="'owl' is no program"):
        KIND.transforms[transform](["owl"], 1)


def test_a_program_of_one_instruction_is_drawn_anew_as_two():
    [changed] = KIND.transforms["random"](["SAY a"], 1)
    assert KIND.reject("", changed, ROW) == []


def test_a_grammar_writes_what_the_base_knows_and_names_and_numbers_carry():
    words = tokenizer.word_tokenizer(toyworld.vocabulary(WORLD))
    prompts = KIND.prompts(ROW, 0, "")
    rules = grammars.of_row(ROW, words, prompts, "")
    assert grammars.longest(rules) == 3 * ROW["num_instructions"][1] + 1
    [text] = [" ".join(words.show(KIND.carrier_tokens(words)))]
    assert sorted(text.split()) == sorted([*"abcdefghijklmnop", *map(str, range(100))])


def test_counts_that_no_program_has_are_refused():
    for count in ((0, 3), (1, 3), (4, 3), (4,)):
        row = schema.dataset_row(kind="toy_programs", num_instructions=count)
        with pytest.raises(ValueError, match=r"owl\.num_instructions is .* \(fewest, most\)"):
            KIND.check("owl", row)
