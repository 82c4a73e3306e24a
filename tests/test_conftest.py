"""The safety nets of conftest.py, each seen to catch something."""

import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from subjax.nn import architecture


def test_there_are_eight_cpu_devices() -> None:
    assert len(jax.devices("cpu")) == 8


def test_programs_are_optimized_unless_told_otherwise(pytestconfig: pytest.Config) -> None:
    quick = pytestconfig.getoption("--quick-compile")
    assert jax.config.read("jax_disable_most_optimizations") == quick


def test_rank_promotion_raises() -> None:
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_a_warning_is_an_error() -> None:
    with pytest.raises(DeprecationWarning):
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def test_annotations_with_shapes_are_checked() -> None:
    sizes = dict.fromkeys(
        ("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width"), 2
    )
    # An int for a float is fine, a string for an int is not.
    architecture.Architecture(vocab_size=3, rope_theta=10, **sizes)
    with pytest.raises(jaxtyping.TypeCheckError, match="vocab_size"):
        architecture.Architecture(vocab_size="3", **sizes)
