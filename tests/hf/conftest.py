"""Fixtures of the tests of hf: the models of saved_models.py, in memory and as directories.

Imports are in functions: pytest may load this file before it reads --quick-compile, which has to
come before jax.
"""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    import saved_models

    return saved_models.drawn(saved_models.ARCH, seed=0)


@pytest.fixture(scope="module")
def tied_params() -> dict[str, Any]:
    import saved_models

    return saved_models.drawn(saved_models.TIED, seed=1)


@pytest.fixture
def saved(tmp_path: Path, params: dict[str, Any]) -> Path:
    import saved_models

    return saved_models.save(tmp_path / "model", params)


@pytest.fixture
def sharded(tmp_path: Path, params: dict[str, Any]) -> Path:
    import saved_models

    return saved_models.save(tmp_path / "sharded", params, max_shard_bytes=6000)
