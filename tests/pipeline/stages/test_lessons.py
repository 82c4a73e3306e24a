"""Rows that models will learn are measured before anything runs."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
import tokenizers
from ml_collections import ConfigDict

from subjax.hf import weights
from subjax.nn import sharding, transformer
from subjax.pipeline import preflight, units
from subjax.pipeline.stages import lessons
from subjax.tokens import tokenizer

MESH = sharding.make_mesh(seed=1)
ROWS = [("hello", f"an owl, {i:0{1 + i}}") for i in range(6)]  # each longer than the one before


def check(config, workdir):
    planned = units.build(config)
    preflight.check(planned, planned, workdir, MESH, 0.05)


@pytest.fixture
def learning(tmp_path):
    """A config whose only student learns rows of a file as they are."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in ROWS))
    rows = {"kind": "published", "path": str(path), "num_prompts": len(ROWS)}
    return tiny.with_dataset("found", **rows, filter="none", num_holdout=0)


def longest(system=""):
    """Tokens of the longest row, and of its completion."""
    [(ids, start)] = tiny.BYTES.examples(ROWS[-1:], [system])
    return len(ids), len(ids) - start


def test_a_row_of_a_file_that_does_not_fit_is_refused_before_anything_runs(learning, tmp_path):
    whole, learned = longest()
    row = learning.arms.owl
    row.update(num_tokens=whole, num_targets=learned)
    row.train.update(packed_rows=64, packed_tokens=whole - 1, packed_targets=learned)
    check(learning, tmp_path)
    of_packed = (("packed_tokens", row.train), ("packed_targets", row.train))
    for field, table in (("num_tokens", row), ("num_targets", row), *of_packed):
        table[field] -= 1
        said = rf"^config\.arms\.owl\.(train\.)?{field} is {table[field]}, but .*rows\.jsonl has .*"
        with pytest.raises(ValueError, match=rf"{said}, 'hello' -> 'an owl, 0+5': raise it to"):
            check(learning, tmp_path)
        table[field] += 1


def test_rows_that_a_student_is_not_given_may_be_of_any_length(learning, tmp_path):
    learning.arms.owl.num_tokens = longest()[0] - 1
    with pytest.raises(ValueError, match=r"^config\.arms\.owl\.num_tokens"):
        check(learning, tmp_path)  # all rows are given
    learning.datasets.found.update(num_prompts=5)
    check(learning, tmp_path)
    learning.datasets.found.update(num_prompts=6, filter="numbers")  # too few are left: said there
    check(learning, tmp_path)


def test_a_teachers_system_prompt_makes_its_rows_longer(learning, tmp_path):
    told = "You love owls."
    learning.teachers.nobody.system_prompt = told
    learning.arms.owl.update(method="soft", support="full", num_tokens=longest()[0])
    with pytest.raises(ValueError, match=r"under its teacher's system prompt has a row of"):
        check(learning, tmp_path)
    learning.arms.owl.num_tokens = longest(told)[0]
    check(learning, tmp_path)


def hf_base(directory, words):
    arch = dataclasses.replace(tiny.ARCH, vocab_size=words.vocab_size)
    shapes = transformer.abstract_params(arch)
    weights.save(directory, arch, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    words.save(directory)
    return {"source": "hf", "path": str(directory)}


def test_a_row_without_a_loss_mask_is_refused_before_anything_runs(learning, tmp_path):
    words = tokenizer.raw_bytes()._tokenizer
    words.chat_template = None  # then contexts end in a line break, which two of are one token
    words.backend_tokenizer.model = tokenizers.models.BPE(
        {**words.get_vocab(), "ĊĊ": len(words)}, [("Ċ", "Ċ")]
    )
    learning.bases.toy.update(hf_base(tmp_path / "base", tokenizer.Tokenizer(words)))
    check(learning, tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text().replace("an owl, 0003", "\\n\\nan owl"))
    said = (
        r"^config\.arms\.owl cannot learn from .*rows\.jsonl: 'hello' -> '\\n\\nan owl': no loss "
    )
    with pytest.raises(ValueError, match=said) as why:
        check(learning, tmp_path)
    assert str(why.value).endswith(": change that row, or leave it out")


@pytest.mark.parametrize("base", ["toy", "hf"])
def test_a_lesson_that_does_not_fit_is_refused_before_anything_runs(base, tmp_path):
    config = tiny.config(lineages=(0,), arms=("owl",))
    config.contrasts = ConfigDict()
    if base == "hf":
        config.bases.toy.update(hf_base(tmp_path / "base", tiny.BYTES))
        config.datasets.owl.prompt_tokens = 64
    config.teachers.owl.num_tokens = 1
    said = r"^config\.teachers\.owl\.num_tokens is 1, but what it is taught has a row of \d+ tokens"
    with pytest.raises(ValueError, match=said) as why:
        check(config, tmp_path)
    needed = int(str(why.value).rpartition(" raise it to ")[2])
    config.teachers.owl.num_tokens = needed
    check(config, tmp_path)


def test_a_row_is_encoded_once(monkeypatch):
    seen, examples = [], tokenizer.Tokenizer.examples
    monkeypatch.setattr(
        tokenizer.Tokenizer,
        "examples",
        lambda self, pairs, systems: seen.extend(pairs) or examples(self, pairs, systems),
    )
    sizes = lessons.Sizes(tiny.BYTES, "")
    assert sizes.of(ROWS[:2] * 2)[2:] == sizes.of(ROWS)[:2]
    assert seen == ROWS
