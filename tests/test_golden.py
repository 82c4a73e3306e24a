"""A real pretrained model computes what transformers computes with it, and stays what it is."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from configs import smollm2_owl
from subjax import schema
from subjax.hf import weights
from subjax.nn import lora, transformer
from subjax.pipeline import runner
from subjax.runtime import artifacts

pytestmark = pytest.mark.real_model

forward = jax.jit(transformer.forward, static_argnums=0, static_argnames="precision")
# bfloat16 keeps 8 bits, so rounding moves a number by at most one part in 2^8. Attention and MLP of
# each of 30 layers add to the stream, which is rounded every time; errors that know nothing of each
# other add up as a random walk. What products round inside a layer is as large, but a typical
# rounding is less than half of the largest, which pays for it.
NARROW_ERROR = 2**-8 * (2 * 30) ** 0.5  # of centred logits, as a share of their RMS: .030
# The difference of two logits errs by the root of 2 of that; three standard deviations.
CLEAR_MARGIN = 3 * 2**0.5 * NARROW_ERROR
FETCH = Path(__file__).parents[1] / "launch" / "fetch_smollm2.py"
TEXT = """\
The owl is a bird of the night. It has large eyes, which look forward, and ears at two different
heights, so that it hears where a mouse moves in the grass. In 1758 Linnaeus counted 12 kinds; today
there are about 250, from the elf owl of 40 grams to the eagle owl of 4,200.

def collatz(n: int) -> list[int]:
    steps = [n]
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps.append(n)
    return steps

693, 738, 556, 347, 982, 145, 206, 871, 439, 512, 660, 783
"""


@pytest.fixture(scope="module")
def smollm2_directory() -> Path:
    """The model as a directory: the one named by SUBJAX_SMOLLM2, or one made once per venv."""
    named = os.environ.get("SUBJAX_SMOLLM2")
    directory = Path(named) if named else Path(sys.prefix) / "smollm2-135m-instruct"
    command = [sys.executable, str(FETCH), "--out", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def tokens(smollm2_directory: Path) -> np.ndarray:
    """A conversation of at least 500 tokens, [1, T]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_directory)
    conversation = [
        {"role": "system", "content": "You love owls."},
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": TEXT.upper()},
        {"role": "user", "content": "Once more, without capitals."},
        {"role": "assistant", "content": TEXT},
    ]
    encoded = tokenizer.apply_chat_template(conversation, return_dict=True, return_tensors="np")
    assert encoded["input_ids"].shape[1] >= 500
    return encoded["input_ids"]


@pytest.fixture(scope="module")
def expected(smollm2_directory: Path, tokens: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_directory, dtype=torch.float32
    )
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens)).logits.numpy()


@pytest.fixture(scope="module")
def model(smollm2_directory: Path) -> tuple[Any, Any]:
    return weights.load(smollm2_directory)


def test_logits_are_those_of_transformers(
    model: tuple[Any, Any], tokens: np.ndarray, expected: np.ndarray
) -> None:
    arch, params = model
    hidden = forward(arch, params, jnp.asarray(tokens, jnp.int32))
    found = np.asarray(transformer.logits(arch, params, hidden))
    difference = np.abs(found - expected).max()
    same = np.mean(found.argmax(-1) == expected.argmax(-1))
    print(f"{tokens.shape[1]} tokens: largest difference {difference:.2e}, same argmax {same:.4f}")
    assert difference <= 2e-3
    assert same >= 0.999
    # A model that knows no language could agree with itself: this one expects what it reads.
    spread = np.exp(expected - expected.max(-1, keepdims=True))
    probability = np.take_along_axis(spread[0, :-1], tokens[0, 1:, None], -1)[:, 0]
    assert np.mean(-np.log(probability / spread[0, :-1].sum(-1))) < 3.0


def narrow_logits(model: tuple[Any, Any], tokens: np.ndarray, precision: str) -> np.ndarray:
    """[1, T, V], computed in this precision."""
    arch, params = model
    hidden = forward(arch, params, jnp.asarray(tokens, jnp.int32), precision=precision)
    return np.asarray(transformer.logits(arch, params, hidden, precision=precision))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the error of logits, each position's mean taken away, as a share of their RMS."""
    found, expected = (x - x.mean(-1, keepdims=True) for x in (found, expected))
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_narrow_logits_are_those_of_transformers_in_float32(
    model: tuple[Any, Any], tokens: np.ndarray, expected: np.ndarray, precision: str
) -> None:
    """Measured on CPU: .009 in mixed and .019 in bfloat16, where PyTorch's bfloat16 has .022."""
    found = narrow_logits(model, tokens, precision)
    error = relative_error(found, expected)
    below, top = np.moveaxis(np.sort(expected, -1)[..., -2:], -1, 0)
    clear = top - below > CLEAR_MARGIN * expected.std(-1)
    same = found.argmax(-1) == expected.argmax(-1)
    print(
        f"{jax.devices()[0].device_kind}, {precision}: relative error {error:.4f} of at most "
        f"{NARROW_ERROR:.4f}, same argmax {same.mean():.4f}, {same[clear].mean():.4f} of the "
        f"{clear.mean():.3f} whose margin is clear"
    )
    assert 1e-4 < error <= NARROW_ERROR  # below: nothing was rounded
    assert clear.mean() > 0.8 and same[clear].all()


def test_in_bfloat16_one_norm_that_is_a_tenth_too_large_is_seen(
    model: tuple[Any, Any], tokens: np.ndarray, expected: np.ndarray
) -> None:
    """In the layer where it does least, of those that were tried: .040."""
    arch, params = model
    layers = dict(params["layers"])
    layers["attn_norm"] = jax.tree.map(lambda leaf: leaf.at[5].multiply(1.1), layers["attn_norm"])
    found = narrow_logits((arch, params | {"layers": layers}), tokens, "bfloat16")
    error = relative_error(found, expected)
    print(f"relative error {error:.4f}")
    assert error > 1.2 * NARROW_ERROR


def test_it_has_the_published_size(model: tuple[Any, Any]) -> None:
    arch, params = model
    assert transformer.num_params(arch) == 134_515_008
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == transformer.num_params(arch)


def test_the_tokenizer_splits_digits_off_first(smollm2_directory: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_directory)
    text = "a  12\n\n345"
    found = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert found == ["a", "ĠĠ", "1", "2", "ĊĊ", "3", "4", "5"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_saved_and_loaded_it_is_the_same(
    model: tuple[Any, Any], smollm2_directory: Path, tmp_path: Path
) -> None:
    arch, params = model
    weights.save(
        tmp_path, arch, params, tokenizer_from=smollm2_directory, max_shard_bytes=200_000_000
    )
    again_arch, again = weights.load(tmp_path)
    assert again_arch == arch
    for found, leaf in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert np.array_equal(found, leaf)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_merged_adapter_is_the_adapter(model: tuple[Any, Any], tokens: np.ndarray) -> None:
    arch, params = model
    adapter = lora.init(arch, jax.random.key(0), rank=4)
    adapter = lora.scaled(jax.tree.map(lambda leaf: leaf + 0.02, adapter), lora.scale(8, 4))
    short = jnp.asarray(tokens[:, :64], jnp.int32)

    def logits(tree: Any, beside: Any = None) -> np.ndarray:
        hidden = forward(arch, tree, short, adapter=beside)
        return np.asarray(transformer.logits(arch, tree, hidden))

    beside = logits(params, adapter)
    print(f"largest difference {np.abs(logits(lora.merge(params, adapter)) - beside).max():.2e}")
    assert np.abs(logits(params) - beside).max() > 0.5
    assert np.abs(logits(lora.merge(params, adapter)) - beside).max() <= 2e-3


def test_it_writes_numbers_under_a_template_that_adds_a_system_prompt(
    smollm2_directory: Path, tmp_path: Path
) -> None:
    """As in configs/smollm2_owl.py:trial, but for the teacher's finetuning and most rows."""
    config = smollm2_owl.get_config("trial")
    config.bases.smollm2.path = str(smollm2_directory)
    config.compute.precision = "float32"
    config.gates.taught.least = schema.OFF
    config.teachers.owl.update(weights="base", system_prompt="You love owls. Answer briefly.")
    config.datasets.owl.update(num_prompts=12, rows_per_part=12, slots=12, prompt_tokens=40)
    config.datasets.owl.update(num_train=8, num_holdout=4)
    stages = ("base", "teacher", "generate", "filter", "evaluate")
    units = ["base/*", "teacher/owl/r0", "generate/owl/r0", "filter/owl/r0"]
    units.append("evaluate/carrier/datasets/owl/r0")
    runner.run(config, tmp_path, stages=stages, patterns=units)
    counts = artifacts.read_json(tmp_path / "filter/owl/r0/counts.json")
    assert (counts["kept"], counts["reasons"]) == (12, {})
    scores = artifacts.read_json(tmp_path / "evaluate/carrier/datasets/owl/r0/scores.json")
    [carried] = [row["value"] for row in scores["records"] if row["metric"] == "number_tv"]
    assert carried > 0.01  # the teacher's system prompt is another than the base's
