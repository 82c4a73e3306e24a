"""Fixtures of the tests of hf: the models of saved_models.py, in memory and as directories."""

from pathlib import Path
from typing import Any

import jax
import pytest
from saved_models import ARCH, TIED

from subjax.hf import weights
from subjax.nn import transformer


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return jax.jit(transformer.init, static_argnums=0)(ARCH, jax.random.key(0))


@pytest.fixture(scope="module")
def tied_params() -> dict[str, Any]:
    return jax.jit(transformer.init, static_argnums=0)(TIED, jax.random.key(1))


@pytest.fixture
def saved(tmp_path: Path, params: dict[str, Any]) -> Path:
    weights.save(tmp_path / "model", ARCH, params)
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path, params: dict[str, Any]) -> Path:
    weights.save(tmp_path / "sharded", ARCH, params, max_shard_bytes=6000)
    return tmp_path / "sharded"
