"""Converts stretched rotary frequencies of GGUF files to Hugging Face's `rope_scaling`.

llama.cpp's converter stores the divisor of each frequency, not the entries of config.json
(`rope_type` "llama3"). Those are recovered here and checked against every divisor.
"""

import math
from typing import Any

import numpy as np

from subjax.hf import tensors
from subjax.hf.tensors import Source
from subjax.runtime.storage import malformed

FACTORS = "rope_freqs.weight"
# Values of Llama 3.1 to 3.3; used if fewer than two frequencies lie between the limits.
_PUBLISHED = 8192, 4.0
_TOLERANCE = 1e-5


def scaling(source: Source, theta: float, head_dim: int) -> dict[str, Any] | None:
    """The `rope_scaling` of config.json that divides frequencies by these factors.

    Only the ratio of the limits to the original length matters, so the lower limit is set to 1.

    Args:
      source: the tensor of factors, one per pair of a head's dimensions.
      theta: base of the frequencies.
      head_dim: size of a head.

    Returns:
      None if all factors are 1.

    Raises:
      ValueError: the tensor is malformed, or no "llama3" has these factors.
    """
    if source.shape != (head_dim // 2,):
        shape = f"shape {source.shape}, a head of {head_dim} asks for {(head_dim // 2,)}"
        raise malformed(source.where, f"tensor {FACTORS} has {shape}")
    factors = tensors.whole(source).astype(np.float64)
    if not (np.isfinite(factors).all() and (factors >= 1).all()):
        raise malformed(source.where, f"tensor {FACTORS} holds no factors of 1 or more")
    if (factors == 1).all():
        return None
    turns = theta ** -(np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)  # turns per position
    factor = float(str(np.float32(factors.max())))
    kept = (1 / factors - 1 / factor) / (1 - 1 / factor)
    length, high = _limits(turns, kept)
    share = np.clip((turns * length - 1) / (high - 1), 0, 1)
    expected = 1 / (share + (1 - share) / factor)
    if np.abs(factors / expected - 1).max() > _TOLERANCE:
        raise ValueError(
            f"{source.where}: tensor {FACTORS} divides frequencies otherwise than Llama 3.1 does: "
            "use the model's safetensors"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


def _limits(turns: np.ndarray, kept: np.ndarray) -> tuple[int, float]:
    """Original length and upper limit; between the limits, the share kept is linear in turns."""
    between = (kept > 1e-3) & (kept < 1 - 1e-3)
    if between.sum() < 2:
        return _PUBLISHED
    (x, *_, last), (y, *_, top) = turns[between], kept[between]
    slope = float((top - y) / (last - x))
    spread = float(1 / (slope * x - y)) if slope * x > y else 0.0
    if not 1e-3 <= spread < 1e6 or not 0 < slope * spread < 2**31:
        return _PUBLISHED
    return round(slope * spread), round(1 + spread, 3)
