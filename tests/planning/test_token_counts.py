"""Plans count with the tokenizer where it is here, and say what they assume where it is not."""

import json

import numpy as np
import pytest
import tokenizer_kinds

from configs import large
from subjax.pipeline import units
from subjax.planning import token_counts
from subjax.recipes import bases
from subjax.tasks.datasets import kinds
from subjax.tokens import grammars
from subjax.tokens.tokenizer import Tokenizer

SHAPES = {
    "llama3_1_8b": ("one token a number to 999, 1110 tokens", 1110, 14),
    "qwen2_5_7b": ("one token a digit, 10 tokens", 10, 24),
    "gemma3_4b": ("one token a digit, 10 tokens", 10, 24),
}


def soft_config(name):
    """Students of the distribution over digits, of constrained numbers."""
    config = large.get_config(name)
    for row in config.datasets.values():
        row.update(decoding="constrained", num_slots=5)
    for row in config.arms.values():
        row.method = "soft"
    return config


def support(config):
    unit = next(unit for unit in units.build(config) if unit.stage == "finetune")
    return token_counts.support(config, unit)


@pytest.mark.parametrize("name", SHAPES)
def test_without_a_tokenizer_the_family_says_how_it_writes_numbers(name):
    words, num_tokens, longest = SHAPES[name]
    config = soft_config(name)
    assert len(support(config)) == num_tokens
    assert token_counts.longest(config, "cat") == longest
    [line] = token_counts.assumptions(config)
    assert line.startswith("config.bases.model: its tokenizer is not here; assumed: " + words)
    # Nothing is assumed where nothing depends on it.
    assert token_counts.assumptions(large.get_config(name)) == []


@pytest.mark.parametrize("kind", ["llama3", "pythia"])
def test_with_a_tokenizer_its_own_tokens_are_counted(kind, tmp_path):
    config = soft_config("llama3_1_8b")
    tokenizer_kinds.save(kind, tmp_path)
    listed = {"eos_token_id": tokenizer_kinds.ends(kind)}
    (tmp_path / "generation_config.json").write_text(json.dumps(listed))
    config.bases.model.path = str(tmp_path)
    words = Tokenizer.load(tmp_path)
    found = support(config)
    assert found == words.number_ids() and len(found) > 100
    row = config.datasets.cat.to_dict()
    rules = grammars.of_row(row, words, ["10"], config.teachers.cat.system_prompt)
    assert token_counts.longest(config, "cat") == grammars.longest(rules)
    assert token_counts.assumptions(config) == []


def mean_row(config):
    unit = next(unit for unit in units.build(config) if unit.stage == "finetune")
    return token_counts.mean_row(config, unit)


def test_a_mean_row_is_assumed_without_a_tokenizer_and_counted_with_it(tmp_path):
    """A prompt, its chat format, eight numbers; the end of a completion is predicted, not read."""
    found = mean_row(large.get_config("qwen2_5_7b"))
    assert 125 < found.tokens < 150 and found.targets == 8 * 3 + 7 * 2 + 1
    assert "not here; assumed: a token for each word, run of signs and digit" in found.words
    config = large.get_config("qwen2_5_7b")
    config.bases.model.system_turn = "user"  # a message less
    assert mean_row(config).tokens == found.tokens - 4
    assert mean_row(large.get_config("llama3_1_8b")).targets == 8 + 7 * 2 + 1
    config = large.get_config("smoke")
    found = mean_row(config)
    # A byte is a token, and three numbers of three digits are written.
    assert found.targets == len("123, 456, 789") + 1 and found.words == "counted with its tokenizer"
    kind, row = kinds.of_row(config.datasets.cat), config.datasets.cat.to_dict()
    prompts = [(prompt, "123, 456, 789") for prompt in kind.prompts(row, 0, "")]
    read = bases.of_row(config.bases.model).at_hand().examples(prompts, [""] * len(prompts))
    system = len(config.arms.cat.system_prompt)
    assert found.tokens > np.mean([len(ids) for ids, _ in read]) - 1 + system


def test_of_rows_that_cannot_be_counted_nothing_is_said(tmp_path):
    config = large.get_config("qwen2_5_7b")
    base = next(unit for unit in units.build(config) if unit.stage == "base")
    assert token_counts.mean_row(config, base) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "new", "vocab_size": 9}))
    config.bases.model.path = str(tmp_path)
    assert mean_row(config) is None


def test_a_family_of_which_nothing_is_known_is_refused(tmp_path):
    config = soft_config("qwen2_5_7b")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "new", "vocab_size": 9}))
    config.bases.model.path = str(tmp_path)
    with pytest.raises(ValueError, match="nothing is known of how models of type 'new' write"):
        token_counts.longest(config, "cat")
