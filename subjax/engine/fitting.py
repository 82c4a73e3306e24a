"""Chooses how the rows of a training share longer ones, where all rows are known beforehand.

Whoever writes a config chooses the shape there instead, since a run must not depend on its rows.
"""

import functools
import math

import numpy as np
from jax.sharding import Mesh

from subjax.engine import batching
from subjax.engine.batching import Packing
from subjax.nn import model_flops
from subjax.nn.architecture import Architecture

_SAMPLED_STEPS = 8
_WORTHWHILE = 0.95  # of the FLOPs of padded rows: passes and segments take some time, too
# How many times as long as a product's an operation of attention takes where there is no kernel:
# scores of later tokens are computed too, in small products, and all pass through memory. Two CPU
# cores were busy with it for a sixth of an update of 16 rows of 163 tokens, in which it is a
# thirtieth of the FLOPs.
_SCORES = 6
_MOST_SHARES = 16  # packed rows of a device
_SPARE = (1.0, 1.02, 1.05, 1.1, 1.2)  # room, as a multiple of what the fullest step needs


def packing(
    arch: Architecture,
    rows: batching.Rows,
    mesh: Mesh,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    lora_params: int = 0,
) -> Packing | None:
    """The shape with the fewest FLOPs an update, padding counted; it depends on these alone.

    Args:
      arch: of the model.
      rows: all rows of the training.
      mesh: where it runs; packed rows are a multiple of the devices that share a batch.
      seed: of the order of the rows.
      steps: of the training, some of which are packed to compare shapes.
      batch_size: rows of an update.
      lora_params: of an adapter; 0 when all weights are trained.

    Returns:
      None where no shape takes clearly fewer FLOPs than rows that are padded.
    """
    batches = batching.Batches([rows], [seed], batch_size, steps)
    sampled = np.unique(np.linspace(0, steps - 1, _SAMPLED_STEPS).astype(int))
    sizes = [batches.sizes(step)[0] for step in sampled.tolist()]
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    least = batching.rounded_up(batch_size, parts)

    counted = functools.partial(model_flops.training, arch, lora_params=lora_params)
    has_kernel = mesh.devices.flat[0].platform == "tpu"  # of attention, for blocks of 128 tokens

    longest = rows.tokens.shape[1]

    def products(num_rows: int, num_tokens: int, num_targets: int) -> float:
        alone = num_tokens * counted(rows=num_rows, num_tokens=1, num_targets=0)
        return alone + counted(rows=num_rows, num_tokens=0, num_targets=num_targets)

    def attention(num_rows: int, num_tokens: int) -> float:
        whole = counted(rows=num_rows, num_tokens=num_tokens, num_targets=0)
        return whole - products(num_rows, num_tokens, 0)

    def cost(packed: Packing) -> float:
        found = products(packed.num_rows, packed.num_tokens, packed.num_targets)
        if has_kernel:
            return found + attention(packed.num_rows, packed.num_tokens)
        return found + _SCORES * attention(packed.num_rows * packed.num_segments, longest)

    padded = Packing(least, *batches.shape[1:], num_segments=1)
    best, fewest = None, _WORTHWHILE * cost(padded)
    for tried in _shapes(sizes, rows, parts, least, has_kernel=has_kernel):
        passes = float(np.mean([tried.num_passes(one) for one in sizes]))
        needed = passes * cost(tried)
        if needed < fewest:
            best, fewest = tried, needed
    return best


def _shapes(
    sizes: list[np.ndarray], rows: batching.Rows, parts: int, most_rows: int, *, has_kernel: bool
) -> list[Packing]:
    """Shapes to compare, those of one pass and few rows first."""
    fullest = np.max([one.sum(axis=0) for one in sizes], axis=0)
    longest = rows.sizes.max(axis=0)
    multiple = 128 if has_kernel else 8
    found = []
    for num_rows in range(parts, most_rows + 1, parts)[:_MOST_SHARES]:
        for spare in _SPARE:
            tokens, targets = np.maximum(longest, np.ceil(spare * fullest / num_rows)).astype(int)
            sides = (
                batching.rounded_up(int(tokens), multiple),
                batching.rounded_up(int(targets), 8),
            )
            segments = min(len(sizes[0]), math.ceil(spare * len(sizes[0]) / num_rows))
            found.append(Packing(num_rows, *sides, num_segments=0 if has_kernel else segments))
    return list(dict.fromkeys(found))
