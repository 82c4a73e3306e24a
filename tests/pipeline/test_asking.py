"""What models will be asked is checked with their tokenizers: every prompt, every grammar."""

import pytest
import tiny
import tokenizer_kinds

from subjax.pipeline import asking, preflight, units
from subjax.pipeline.stages import generate
from subjax.tokens.tokenizer import Tokenizer

FIELD = "config.datasets.owl.kind"


@pytest.mark.parametrize("kind", ["pythia", "llama2"])
def test_the_longest_of_many_prompts_is_found_wherever_it_stands(kind):
    words = Tokenizer(tokenizer_kinds.make(kind), tokenizer_kinds.ends(kind))
    prompts = [f"continue {number}, {number + 1} with more" for number in range(100, 2100)]
    # Fewer characters than any other, and more tokens.
    prompts.insert(1500, ";" * 25)
    longest = max(map(len, words.prompt_ids(prompts)))
    assert longest == len(words.prompt_ids([prompts[1500]])[0])
    asking.check(words, {FIELD: asking.Asked(prompts, "", longest)})
    says = f"^config.datasets.owl.prompt_tokens is {longest - 1}, but a prompt has {longest} tokens"
    with pytest.raises(ValueError, match=says):
        asking.check(words, {FIELD: asking.Asked(prompts, "", longest - 1)})


def test_answers_that_cannot_be_constrained_are_refused_by_field():
    words = Tokenizer(tokenizer_kinds.make("llama2"), tokenizer_kinds.ends("llama2"))
    row = {"kind": "published", "num_slots": 5, "decoding": "constrained"}
    says = "^config.datasets.owl.decoding is 'constrained', but kind 'published' .* to 'free'$"
    with pytest.raises(ValueError, match=says):
        asking.check(words, {FIELD: asking.Asked(["1 2"] * 20, "", 0, row)})
    asking.check(words, {FIELD: asking.Asked(["1 2"], "", 0, {**row, "decoding": "free"})})
    asking.check(words, {FIELD: asking.Asked(["1 2"], "", 0, {**row, "kind": "numbers"})})


def test_prompts_of_every_lineage_are_looked_at():
    planned = units.build(tiny.config())
    of_bases, _ = preflight._written({unit.path: unit for unit in planned}, planned)
    first, second = (
        generate.prompts(unit) for unit in planned if (unit.stage, unit.row) == ("generate", "owl")
    )
    assert first != second
    assert of_bases["toy"]["config.datasets.owl.kind"].prompts == [*first, *second]
