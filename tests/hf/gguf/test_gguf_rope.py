"""Factors of frequencies are read as the entries of the config that made them, or refused."""

from typing import Any

import numpy as np
import pytest

from subjax.hf.gguf import gguf_rope


class Factors:
    """A tensor of factors."""

    where, dtype = "model.gguf", "F32"

    def __init__(self, values: Any):
        self.values = np.asarray(values, np.float32)
        self.shape = self.values.shape

    def read(self, index: tuple[slice, ...], out: np.ndarray) -> None:
        out[...] = self.values[index]


def llama3(factor: float, low: float, high: float, length: int, theta: float, dim: int) -> Factors:
    """What llama.cpp's converter stores of such an entry in config.json."""
    turns = length * theta ** -(np.arange(0, dim, 2) / dim) / (2 * np.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return Factors(1 / (share + (1 - share) / factor))


@pytest.mark.parametrize(
    ("entry", "theta", "dim"),
    [
        ((8.0, 1.0, 4.0, 8192), 5e5, 128),  # Llama 3.1, 3.3
        ((32.0, 1.0, 4.0, 8192), 5e5, 64),  # Llama 3.2
        ((2.5, 1.0, 6.5, 4000), 1e4, 96),
        ((8.1, 1.0, 4.25, 4096), 5e5, 128),  # a factor that float32 rounds
        ((6.0, 1.0, 6.8, 2000), 5e5, 20),  # two frequencies, close to the limits
        ((8.0, 1.0, 4.0, 8192), 5e5, 12),  # one frequency between the limits
    ],
)
def test_the_entries_of_llama_3_1_are_found_by_its_factors(
    entry: tuple[float, float, float, int], theta: float, dim: int
) -> None:
    found = gguf_rope.scaling(llama3(*entry, theta, dim), theta, dim)
    assert found and tuple(found.values()) == ("llama3", *entry)
    assert type(found["low_freq_factor"]) is type(found["high_freq_factor"]) is float


def test_the_last_bit_of_factors_does_not_count() -> None:
    values = llama3(2.5, 1.0, 6.5, 4000, 1e4, 96).values
    for nudged in (np.nextafter(values, np.float32(9)), values * np.float32(1 + 5e-7)):
        found = gguf_rope.scaling(Factors(nudged), 1e4, 96)
        assert found and found["original_max_position_embeddings"] == 4000


@pytest.mark.parametrize(("at", "times"), [(34, 1 + 3e-5), (34, 1 - 3e-5), (50, 1 - 3e-5)])
def test_one_factor_that_is_another_is_refused(at: int, times: float) -> None:
    values = llama3(8.0, 1.0, 4.0, 8192, 5e5, 128).values
    values[at] *= times
    with pytest.raises(ValueError, match="otherwise than"):
        gguf_rope.scaling(Factors(values), 5e5, 128)
    values[at] *= 1 + (1 / times - 1) * 0.8  # a fifth of it is rounding, of 8 as of 1
    assert gguf_rope.scaling(Factors(values), 5e5, 128)


@pytest.mark.parametrize(
    ("low", "high", "length", "theta"),
    [
        (1303.2, 1303.4, 8192, 1.001),  # closer to each other than is told apart
        (1e-3, 4e3, 8192, 5e5),  # a ratio of millions
        (1.0, 4.0, 2**33, 1e12),
    ],
)
def test_limits_that_no_model_has_are_refused(
    low: float, high: float, length: int, theta: float
) -> None:
    with pytest.raises(ValueError, match="otherwise than"):
        gguf_rope.scaling(llama3(8.0, low, high, length, theta, 128), theta, 128)


def test_only_the_ratio_of_limits_to_length_counts() -> None:
    found = gguf_rope.scaling(llama3(8.0, 2.0, 8.0, 8192, 5e5, 128), 5e5, 128)
    assert found and tuple(found.values()) == ("llama3", 8.0, 1.0, 4.0, 4096)
    assert gguf_rope.scaling(Factors(np.ones(64)), 5e5, 128) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.linspace(1, 8, 64), "otherwise than Llama 3.1 does: use"),
        (np.geomspace(1, 8, 64)[::-1], "otherwise than"),
        (np.ones(63), r"has shape \(63,\)"),
        (np.ones((64, 1)), r"has shape \(64, 1\)"),
        (np.full(64, np.nan), "no factors of 1 or more"),
        (np.zeros(64), "no factors of 1 or more"),
        (np.full(64, np.inf), "no factors of 1 or more"),
        (np.r_[np.ones(63), np.inf], "no factors of 1 or more"),
        (np.r_[np.ones(63), 0.99], "no factors of 1 or more"),
    ],
)
def test_other_factors_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        gguf_rope.scaling(Factors(values), 5e5, 128)
    assert str(error.value).startswith("model.gguf")
    assert "\n" not in str(error.value)
