"""What layers compute, and noise."""

import jax
import numpy as np
import pytest

from subjax.nn import functional


@pytest.mark.parametrize("count", [1, 1000])
def test_noise_is_what_jax_random_draws(count):
    keys = jax.random.split(jax.random.key(5), 7)
    expected = jax.vmap(lambda key: jax.random.gumbel(key, (count,)))(keys)
    np.testing.assert_array_equal(functional.gumbel(keys, count), expected)
    bits = jax.vmap(lambda key: jax.random.bits(key, (count,)))(keys)
    np.testing.assert_array_equal(functional.random_bits(keys, count), bits)
