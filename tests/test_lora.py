"""An adapter starts as PEFT's does, computes what PEFT computes, and merges without a trace."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from subjax import adapters, leaves, lora, transformer, weights
from subjax.architecture import Architecture

ARCH = Architecture(
    vocab_size=32,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffn_width=20,
)
TOKENS = np.random.default_rng(0).integers(0, ARCH.vocab_size, (2, 15))
forward = jax.jit(transformer.forward, static_argnums=0)
SUBSETS = [lora.all_targets(ARCH), ("q", "v"), ("o", "down"), ("gate",)]


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return jax.jit(transformer.init, static_argnums=0)(ARCH, jax.random.key(0))


def trained(targets: tuple[str, ...], rank: int = 3) -> dict[str, Any]:
    """An adapter whose b is not zero, large enough to change the logits a lot."""
    adapter = lora.init(ARCH, jax.random.key(1), rank=rank, targets=targets)
    keys = iter(jax.random.split(jax.random.key(2), 100))
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * jax.random.normal(next(keys), leaf.shape), adapter
    )


def logits(params: dict[str, Any], adapter: dict[str, Any] | None = None) -> np.ndarray:
    tokens = jnp.asarray(TOKENS, jnp.int32)
    hidden = forward(ARCH, params, tokens, adapter=adapter)
    return np.asarray(transformer.logits(ARCH, params, hidden))


def torch_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, relative: float = 1e-4) -> None:
    assert np.abs(found - expected).max() <= relative * np.abs(expected).max()


def test_a_fresh_adapter_changes_nothing(params: dict[str, Any]) -> None:
    adapter = lora.scaled(lora.init(ARCH, jax.random.key(1), rank=3), 7.0)
    assert np.array_equal(logits(params, adapter), logits(params))
    merged = lora.merge(params, adapter)
    for path, leaf in leaves.flat(merged).items():
        assert np.array_equal(leaf, leaves.flat(params)[path]), path


@pytest.mark.parametrize("targets", SUBSETS)
def test_merged_and_unmerged_agree(targets: tuple[str, ...], params: dict[str, Any]) -> None:
    adapter = lora.scaled(trained(targets), lora.scale(5, 3))
    with_adapter = logits(params, adapter)
    assert np.abs(with_adapter - logits(params)).max() > 0.05
    assert_close(logits(lora.merge(params, adapter)), with_adapter)


@pytest.mark.parametrize("targets", SUBSETS)
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_computes_the_same(
    targets: tuple[str, ...], rslora: bool, params: dict[str, Any], tmp_path: Path
) -> None:
    adapter = trained(targets)
    weights.save(tmp_path / "base", ARCH, params)
    adapters.save_adapter(
        tmp_path / "adapter",
        ARCH,
        adapter,
        rank=3,
        alpha=5,
        base_path=str(tmp_path / "base"),
        rslora=rslora,
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = torch_logits(peft.PeftModel.from_pretrained(base, tmp_path / "adapter"))
    scaled = lora.scaled(adapter, lora.scale(5, 3, rslora=rslora))
    assert_close(logits(params, scaled), expected)


def test_an_adapter_of_peft_is_read(params: dict[str, Any], tmp_path: Path) -> None:
    weights.save(tmp_path / "base", ARCH, params)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    expected = torch_logits(model)
    model.save_pretrained(tmp_path / "adapter")

    adapter, scale = adapters.load_adapter(tmp_path / "adapter", ARCH)
    assert np.abs(expected - logits(params)).max() > 0.05
    assert_close(logits(params, lora.scaled(adapter, scale)), expected)


def test_the_initialisation_is_that_of_peft(params: dict[str, Any], tmp_path: Path) -> None:
    """PEFT draws from the same interval: its largest of many draws lies just below our bound."""
    weights.save(tmp_path, ARCH, params)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    config = peft.LoraConfig(r=500, target_modules=["q_proj", "down_proj"])
    theirs = {
        name: parameter.detach().numpy()
        for name, parameter in peft.get_peft_model(base, config).named_parameters()
        if "lora_" in name
    }
    ours = lora.init(ARCH, jax.random.key(3), rank=500, targets=("q", "down"))["layers"]
    for factors, module, num_in in (
        (ours["attn"]["q"], "q_proj", ARCH.width),
        (ours["mlp"]["down"], "down_proj", ARCH.ffn_width),
    ):
        bound = 1 / math.sqrt(num_in)
        for draw in (
            np.asarray(factors["a"]),
            np.stack([a for name, a in theirs.items() if module in name and "lora_A" in name]),
        ):
            assert draw.shape == (ARCH.num_layers, 500, num_in)
            assert 0.999 * bound < np.abs(draw).max() <= bound
            # Of a uniform distribution, and centred: 16,000 draws and more.
            assert abs(draw.std() / (bound / math.sqrt(3)) - 1) < 0.02
            assert abs(draw.mean()) < 0.02 * bound
        assert not np.asarray(factors["b"]).any()
        assert not any(b.any() for name, b in theirs.items() if "lora_B" in name)


def test_targets_do_not_change_each_others_draws() -> None:
    key = jax.random.key(4)
    alone = lora.init(ARCH, key, rank=2, targets=("v",))["layers"]["attn"]["v"]["a"]
    among = lora.init(ARCH, key, rank=2)["layers"]["attn"]
    assert np.array_equal(alone, among["v"]["a"])
    assert not np.array_equal(among["k"]["a"], among["v"]["a"])


def test_layers_are_drawn_apart() -> None:
    a = lora.init(ARCH, jax.random.key(5), rank=2)["layers"]["mlp"]["up"]["a"]
    assert not np.array_equal(a[0], a[1])


def test_lanes_are_merged_as_they_would_be_alone(params: dict[str, Any]) -> None:
    lanes = [lora.scaled(trained(("q", "up"), rank=rank), 2.0) for rank in (3, 3)]
    lanes[1] = jax.tree.map(lambda leaf: leaf * 0.5, lanes[1])
    stacked = jax.tree.map(lambda *leaf: jnp.stack(leaf), *lanes)
    merged = jax.vmap(lora.merge, in_axes=(None, 0))(params, stacked)
    for lane, adapter in enumerate(lanes):
        alone = leaves.flat(lora.merge(params, adapter))
        for path, leaf in leaves.flat(merged).items():
            np.testing.assert_allclose(leaf[lane], alone[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_merging_leaves_its_arguments_alone(params: dict[str, Any]) -> None:
    before = {path: np.asarray(leaf).copy() for path, leaf in leaves.flat(params).items()}
    lora.merge(params, lora.scaled(trained(lora.all_targets(ARCH)), 1.0))
    for path, leaf in leaves.flat(params).items():
        assert np.array_equal(leaf, before[path])


def test_an_adapter_of_another_base_is_not_merged(params: dict[str, Any]) -> None:
    other = Architecture(32, 2, 16, 4, 4, 6, 20)
    adapter = lora.init(other, jax.random.key(0), rank=2, targets=("k",))
    with pytest.raises(ValueError, match="attn/k"):
        lora.merge(params, adapter)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        lora.init(ARCH, jax.random.key(0), rank=rank)


@pytest.mark.parametrize("targets", [(), ("q", "q"), ("q_proj",), ("lm_head",)])
def test_unknown_targets_are_refused(targets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="lora targets"):
        lora.init(ARCH, jax.random.key(0), rank=1, targets=targets)
