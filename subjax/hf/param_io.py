"""Tensors of safetensors files to (sharded) arrays and back, one leaf of a tree at a time.

Trees are nested dicts with paths such as "layers/attn/q/kernel"; leaves under "layers/" are
stacked on a leading axis, with one tensor per layer.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from subjax.hf.tensors import Source
from subjax.nn import sharding
from subjax.runtime import artifacts, storage

_DTYPES = ("F32", "F16", "BF16")
_BAR_FROM_BYTES = 2_000_000_000
# From this size on, a leaf in a local file is read by rows, which devices then exchange. Smaller
# ones are faster if each process reads all columns and drops some: an exchange must be compiled.
_EXCHANGED_FROM_BYTES = 250_000_000


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Path -> leaf, in the order of the tree."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def is_stacked(path: str) -> bool:
    """Whether the leaf has a leading axis of layers, with one tensor per layer."""
    return path.startswith("layers/")


def check_tensor(where: str, tensor: Source | None, shape: tuple[int, ...]) -> None:
    """Checks a tensor's shape and dtype without reading it.

    Args:
      where: file and name, for the error.
      tensor: None if the file has no tensor of that name.
      shape: the required shape.

    Raises:
      ValueError: it is missing, or has another shape or a dtype that is not floating point.
    """
    if tensor is None:
        raise ValueError(f"{where} is missing: save it again, or check that it fits the base")
    found, dtype = tensor.shape, tensor.dtype
    if found != tuple(shape):
        raise ValueError(
            f"{where} has shape {found}, the config asks for {tuple(shape)}: correct the config, "
            "or save the tensor again"
        )
    if dtype not in _DTYPES:
        raise ValueError(f"{where} has dtype {dtype}, supported: {', '.join(_DTYPES)}: convert it")


def read(
    abstract: dict[str, Any],
    sources: Mapping[str, Sequence[Source]],
    mesh: Mesh | None,
) -> dict[str, Any]:
    """Reads each leaf of a tree; each process reads its share of large leaves and those at a URL.

    A process whose devices hold 1/n of a leaf reads 1/n of its bytes, as whole rows, which the
    devices then exchange for the columns of their shards.

    Args:
      abstract: the tree, with a shape and a dtype at each leaf; tensors are converted to it.
      sources: path -> tensors, one per layer or one.
      mesh: the mesh for the leaves, split by `sharding.params_spec`; None: the default device.

    Raises:
      ValueError: a file cannot be read, or the part that this process reads has NaN or infinity.
    """
    leaves = flat(abstract)
    specs = flat(sharding.params_spec(abstract, mesh, lanes=False)) if mesh else {}
    num_bytes = {path: leaf.size * leaf.dtype.itemsize for path, leaf in leaves.items()}
    total = sum(num_bytes.values())
    hidden = total < _BAR_FROM_BYTES or jax.process_index() != 0
    arrays: dict[str, jax.Array] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="loading", disable=hidden) as bar:
        # A leaf is in memory twice while it goes to the devices: the largest go first.
        for path, leaf in sorted(leaves.items(), key=lambda item: -num_bytes[item[0]]):
            block = _reader(path, sources[path], leaf.shape, leaf.dtype)
            if mesh is None:
                array = jax.device_put(block((slice(None),) * leaf.ndim))
            else:
                remote = storage.is_url(sources[path][0].where)
                shares = remote or num_bytes[path] >= _EXCHANGED_FROM_BYTES
                target = NamedSharding(mesh, specs[path])
                first = _by_rows(target, leaf.shape, is_stacked(path)) if shares else target
                array = jax.make_array_from_callback(
                    leaf.shape, first, cast(Any, block), dtype=leaf.dtype
                )
                array = array if first == target else jax.device_put(array, target)
            # Read the next leaf only after this one is on the devices, to limit host memory.
            arrays[path] = array.block_until_ready()
            bar.update(num_bytes[path])
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], abstract)


def to_host(leaf: Any, layer: int | None, dtype: np.dtype) -> np.ndarray:
    """One whole tensor on the host; if it is sharded, an all-gather that all processes call."""
    part = leaf if layer is None else leaf[layer]
    if isinstance(part, jax.Array) and not part.is_fully_addressable:
        part = multihost_utils.process_allgather(part, tiled=True)
    return np.ascontiguousarray(np.asarray(part).astype(dtype))


@contextlib.contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A temporary name to write to; renamed to `path` when the file is complete and on disk."""
    unfinished = path.with_name(path.name + ".partial")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        with artifacts.system_errors(path):
            yield unfinished
        # safetensors makes its files unreadable for others, ignoring the umask.
        unfinished.chmod(mode)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _by_rows(target: NamedSharding, shape: tuple[int, ...], stacked: bool) -> NamedSharding:
    """As many parts as in `target`, but of layers or rows, which are contiguous in a file."""
    axes = tuple(axis for axis in target.spec if axis)
    num_parts = math.prod(target.mesh.shape[axis] for axis in axes)
    # A process outside the mesh has nothing to exchange.
    if axes and target.addressable_devices:
        for dimension in (0, 1) if stacked else (0,):
            if shape[dimension] % num_parts == 0:
                rows = NamedSharding(target.mesh, P(*[None] * dimension, axes))
                return target if rows.is_equivalent_to(target, len(shape)) else rows
    return target


def _reader(
    path: str, sources: Sequence[Source], shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """A function from the index of a block to the block; each block is read once."""
    seen: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def block(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(s.indices(size) for s, size in zip(index, shape, strict=True))
        if bounds not in seen:
            ranges = tuple(slice(start, stop) for start, stop, _ in bounds)
            out = np.empty([r.stop - r.start for r in ranges], dtype)
            if is_stacked(path):
                numbers = range(shape[0])[ranges[0]]
                for row, number in zip(out, numbers, strict=True):
                    sources[number].read(ranges[1:], row)
                    _check_finite(row, f"{sources[number].where}: {path} of layer {number}")
            else:
                sources[0].read(ranges, out)
                _check_finite(out, f"{sources[0].where}: {path}")
            seen[bounds] = out
        return seen[bounds]

    return block


def _check_finite(array: np.ndarray, where: str) -> None:
    """Raises if a contiguous array has a NaN or an infinity.

    Their bits are the largest of either sign. Comparing bits as integers takes no memory, and for
    bfloat16, for which NumPy has no fast loops, a fifth of the time of isfinite.
    """
    bits = 8 * array.dtype.itemsize
    largest = np.array([np.inf, -np.inf], array.dtype).view(f"uint{bits}").astype(int)
    signed, unsigned = array.view(f"int{bits}"), array.view(f"uint{bits}")
    if array.size and (signed.max() >= largest[0] or unsigned.max() >= largest[1]):
        raise ValueError(f"{where} holds NaN or infinity: download or save it again")


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
