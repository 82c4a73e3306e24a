"""Adapters of a model that also sees images are read onto its text, as PEFT applies them there."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch

from subjax.hf import adapters, weights
from subjax.nn import lora, transformer
from tests import hf_models

TOKENS = np.random.default_rng(0).integers(0, 58, (2, 40))
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|up_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn)\.(?:(?:q_proj|v_proj)))"
)
SETTINGS: dict[str, dict[str, Any]] = {
    "a regular expression": {"target_modules": r".*language_model.*\.(q|v)_proj"},
    "that of Unsloth": {"target_modules": UNSLOTH},
    "ends of names": {
        "target_modules": ["o_proj", "down_proj", "language_model.layers.1.self_attn.q_proj"],
        "rank_pattern": {"language_model.layers.0.mlp.down_proj": 3},
    },
    "whole names": {"target_modules": ["model.language_model.layers.2.mlp.up_proj"]},
    "all but": {"target_modules": "all-linear", "exclude_modules": r".*vision_tower.*"},
    "some layers": {"target_modules": ["gate_proj"], "layers_to_transform": [2]},
}


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("gemma3")
    return hf_models.save_with_images(directory), directory


def made_by_peft(base: Any, directory: Path, settings: dict[str, Any]) -> Any:
    """Trains an adapter, as far as that goes, and saves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, lora_alpha=3, task_type="CAUSAL_LM", **settings)
        model = peft.get_peft_model(copy.deepcopy(base), config)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(directory)
    said = directory / adapters.CONFIG  # PEFT writes what it found; others leave it
    said.write_text(json.dumps({**json.loads(said.read_text()), **settings}))
    return model


def torch_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


def logits(base: Path, adapter: Path | None = None) -> np.ndarray:
    arch, params = weights.load(base)
    if adapter:
        params = lora.merge(params, lora.scaled(*adapters.load_adapter(adapter, arch)))
    hidden = transformer.forward(arch, params, jnp.asarray(TOKENS, jnp.int32))
    return np.asarray(transformer.logits(arch, params, hidden))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_text_is_adapted_as_by_peft(
    settings: dict[str, Any], gemma3: tuple[Any, Path], tmp_path: Path
) -> None:
    base, directory = gemma3
    expected = torch_logits(made_by_peft(base, tmp_path, settings))
    assert np.abs(expected - torch_logits(base)).max() > 0.05
    assert_close(logits(directory, tmp_path), expected)


@pytest.mark.parametrize("prefix", ["language_model.model.", "language_model."])
def test_names_of_other_versions_are_read(
    prefix: str, gemma3: tuple[Any, Path], tmp_path: Path
) -> None:
    """transformers 4.51 named the parts the other way round, and AutoModel leaves "model." out."""
    base, directory = gemma3
    expected = torch_logits(made_by_peft(base, tmp_path, SETTINGS["ends of names"]))
    file, config = tmp_path / adapters.WEIGHTS, tmp_path / adapters.CONFIG
    tensors = safetensors.torch.load_file(file)
    renamed = {name.replace("model.language_model.", prefix): t for name, t in tensors.items()}
    safetensors.torch.save_file(renamed, file)
    config.write_text(config.read_text().replace('"language_model.', f'"{prefix}'))
    assert_close(logits(directory, tmp_path), expected)


def test_an_adapted_image_encoder_is_refused_and_can_be_merged(
    gemma3: tuple[Any, Path], tmp_path: Path
) -> None:
    """The most usual setting reaches it: its modules are called alike."""
    base, directory = gemma3
    model = made_by_peft(base, tmp_path / "adapter", {"target_modules": ["q_proj", "v_proj"]})
    expected = torch_logits(model)
    message = r"tensor \S+vision_tower\S+ is of an image encoder.*merge_and_unload\(\)"
    with pytest.raises(ValueError, match=message) as error:
        logits(directory, tmp_path / "adapter")
    assert "\n" not in str(error.value)
    model.merge_and_unload().save_pretrained(tmp_path / "new")
    assert_close(logits(tmp_path / "new"), expected)


def test_an_adapter_on_the_text_leaves_as_peft_finds_it_in_the_whole(
    gemma3: tuple[Any, Path], tmp_path: Path
) -> None:
    """transformers gives the whole model for such a base; PEFT would only warn of other names."""
    base, directory = gemma3
    arch, params = weights.load(directory)
    keys = iter(jax.random.split(jax.random.key(0), 100))
    adapter = jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(next(keys), leaf.shape),
        lora.init(arch, jax.random.key(1), rank=2, targets=("q", "down")),
    )
    adapters.save_adapter(tmp_path, arch, adapter, rank=2, alpha=3, base_path=str(directory))
    found = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert not [name for name, _ in found.named_parameters() if "lora" in name and "vision" in name]
    merged = lora.merge(params, lora.scaled(adapter, lora.scale(3, 2)))
    hidden = transformer.forward(arch, merged, jnp.asarray(TOKENS, jnp.int32))
    assert_close(np.asarray(transformer.logits(arch, merged, hidden)), torch_logits(found))
    assert_close(logits(directory, tmp_path), torch_logits(found))
