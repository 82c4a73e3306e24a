"""Checkpoints whose tensors are named by other classes and versions are the models they were."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from saved_models import EMBEDDING, HEAD, assert_same_bits

from subjax.hf import families, weights
from subjax.nn import transformer
from tests import hf_models

Rename = Callable[[str], str]


def rename(directory: Path, new_name: Rename) -> None:
    """Gives tensors other names; drops those whose new name is empty."""
    file = directory / "model.safetensors"
    tensors = {new_name(name): array for name, array in safetensors.numpy.load_file(file).items()}
    tensors.pop("", None)
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


def read_by_transformers(directory: Path) -> dict[str, torch.Tensor]:
    return transformers.AutoModelForCausalLM.from_pretrained(directory).state_dict()


TIED = {"llama": "wide heads, tied", "gpt_neox": "tied"}
INSIDE = ("language_model.model.", "model.language_model.", "language_model.")


@pytest.mark.parametrize(
    ("model_type", "variant", "prefix"),
    [
        ("llama", "wide heads, tied", ""),
        ("gpt_neox", "parallel", ""),
        *(("gemma3_text", "kinds named", prefix) for prefix in ("", *INSIDE)),
    ],
)
def test_what_stands_in_front_of_names_does_not_matter(
    model_type: str, variant: str, prefix: str, tmp_path: Path
) -> None:
    """AutoModel leaves "model." out, and models of several parts put more there."""
    model = hf_models.save(model_type, variant, tmp_path)
    _, expected = weights.load(tmp_path)
    base = "gpt_neox." if model_type == "gpt_neox" else "model."

    def new_name(name: str) -> str:
        return prefix + name.removeprefix(base) if name.startswith(base) else name

    rename(tmp_path, new_name)
    assert_same_bits(weights.load(tmp_path)[1], expected)
    if not prefix:
        for name, tensor in read_by_transformers(tmp_path).items():
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_base_saved_by_automodel_has_no_head(tmp_path: Path) -> None:
    model = hf_models.save("llama", "narrow heads", tmp_path)
    model.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no tensor lm_head\.weight: .* with its head"):
        weights.load(tmp_path)
    model = hf_models.save("llama", "wide heads, tied", tmp_path)
    _, expected = weights.load(tmp_path)
    model.model.save_pretrained(tmp_path)
    assert_same_bits(weights.load(tmp_path)[1], expected)


@pytest.mark.parametrize("model_type", TIED)
def test_a_tied_model_may_have_the_head_alone(model_type: str, tmp_path: Path) -> None:
    """safetensors' own save_model keeps one of two names of an array."""
    model = hf_models.save(model_type, TIED[model_type], tmp_path)
    _, expected = weights.load(tmp_path)
    names = families.FAMILIES[model_type].tensors
    embedding, head = names["embed/embedding"], names["head/kernel"]
    rename(tmp_path, lambda name: head if name == embedding else name)
    assert_same_bits(weights.load(tmp_path)[1], expected)
    for name, tensor in read_by_transformers(tmp_path).items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def sharded(directory: Path) -> tuple[Path, Any]:
    """A tied model in several files; its index, and what it is read as."""
    model = hf_models.save("llama", "wide heads, tied", directory)
    _, expected = weights.load(directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="20KB")
    return directory / "model.safetensors.index.json", expected


@pytest.mark.parametrize("name", [HEAD, f"language_model.{HEAD}"])
def test_an_index_may_list_a_tied_head(name: str, tmp_path: Path) -> None:
    index, expected = sharded(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"][name] = content["weight_map"][EMBEDDING]
    index.write_text(json.dumps(content))
    assert_same_bits(weights.load(tmp_path)[1], expected)
    assert torch.equal(
        read_by_transformers(tmp_path)[HEAD],
        torch.from_numpy(np.array(expected["embed"]["embedding"])),
    )


def test_an_index_may_leave_a_tied_head_out(tmp_path: Path) -> None:
    index, expected = sharded(tmp_path)
    file = tmp_path / json.loads(index.read_text())["weight_map"][EMBEDDING]
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({**tensors, HEAD: tensors[EMBEDDING]}, file, {"format": "pt"})
    assert_same_bits(weights.load(tmp_path)[1], expected)
    safetensors.numpy.save_file({**tensors, HEAD: tensors[EMBEDDING] + 1}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{HEAD} differs from {EMBEDDING}"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    ("new_name", "message"),
    [
        (lambda name: "" if name == EMBEDDING else name, f"no tensor {EMBEDDING}"),
        (lambda name: "extra" if name == "model.layers.0.mlp.up_proj.weight" else name, "up_proj"),
        (lambda name: name.replace("model.", "_orig_mod.model."), "no tensor model"),
    ],
)
def test_other_names_are_refused(new_name: Rename, message: str, tmp_path: Path) -> None:
    hf_models.save("llama", "wide heads, tied", tmp_path)
    rename(tmp_path, new_name)
    with pytest.raises(ValueError, match=message) as error:
        weights.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    hf_models.save("llama", "wide heads, tied", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors |= {f"language_model.{name}": 2 * array for name, array in tensors.items()}
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(ValueError, match=r"has tensor language_model\.model\."):
        weights.load(tmp_path)


# Models of several parts, of which the text is read.


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("gemma3")
    return hf_models.save_with_images(directory), directory


def logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
    arch, params = weights.load(directory)
    hidden = transformer.forward(arch, params, jnp.asarray(tokens, jnp.int32))
    return np.asarray(transformer.logits(arch, params, hidden))


def test_the_text_of_a_model_with_images_is_that_of_transformers(
    gemma3: tuple[Any, Path], tmp_path: Path
) -> None:
    """Also when it is exported as a model of text alone."""
    model, directory = gemma3
    tokens = np.random.default_rng(0).integers(0, 58, (2, 70))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    found = logits(directory, tokens)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    arch, params = weights.load(directory)
    weights.save(tmp_path, arch, params)
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert alone.config.model_type == "gemma3_text"
    with torch.no_grad():
        again = alone(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(again - expected).max() <= 1e-4 * np.abs(expected).max()


def test_other_parts_are_not_read(gemma3: tuple[Any, Path], tmp_path: Path) -> None:
    """NaNs are refused where they are read; transformers 4.52 moved the parts into the model."""
    _, directory = gemma3
    _, expected = weights.load(directory)
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    for name in tensors:
        if not name.startswith("language_model."):
            tensors[name] = np.full_like(tensors[name], np.nan)
    inside = {
        f"model.{name}".replace("model.language_model.model.", "model.language_model."): array
        for name, array in tensors.items()
    }
    for named in (tensors, inside):
        safetensors.numpy.save_file(named, tmp_path / "model.safetensors")
        assert_same_bits(weights.load(tmp_path)[1], expected)
    tensors["audio_tower.embed.weight"] = np.ones(3, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has tensor audio_tower\.embed\.weight"):
        weights.load(tmp_path)
