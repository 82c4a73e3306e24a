"""Two small models that tests save, how these tests change the files, and compare what is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from subjax.hf import param_io, weights
from subjax.nn import transformer
from subjax.nn.architecture import Architecture

ARCH = Architecture(
    vocab_size=32,
    num_layers=3,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffn_width=20,
    rope_theta=5e3,
)
TIED = Architecture(
    vocab_size=16,
    num_layers=1,
    width=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    ffn_width=12,
    tie_embeddings=True,
)
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def drawn(arch: Architecture, seed: int) -> dict[str, Any]:
    """Random weights."""
    return jax.jit(transformer.init, static_argnums=0)(arch, jax.random.key(seed))


def save(directory: Path, params: dict[str, Any], **how: Any) -> Path:
    """Saves weights of ARCH; returns the directory."""
    weights.save(directory, ARCH, params, **how)
    return directory


def assert_same_bits(found: Any, expected: Any) -> None:
    """Both trees have the same leaves, to the bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for path, leaf in param_io.flat(found).items():
        other = param_io.flat(expected)[path]
        assert leaf.dtype == other.dtype, path
        assert np.asarray(leaf).tobytes() == np.asarray(other).tobytes(), path


def edit_tensors(directory: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    file = directory / "model.safetensors"
    tensors = {name: array.copy() for name, array in safetensors.numpy.load_file(file).items()}
    edit(tensors)
    safetensors.numpy.save_file(tensors, file)


def edit_json(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
