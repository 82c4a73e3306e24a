"""Tensors of safetensors files to (sharded) arrays and back, one leaf of a tree at a time.

Trees are nested dicts with paths such as "layers/attn/q/kernel"; what lies under "layers/" is
stacked on a leading axis and comes from one tensor per layer.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from subjax import artifacts, sharding

_DTYPES = ("F32", "F16", "BF16")
_BAR_FROM_BYTES = 2_000_000_000


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Path -> leaf, in the order of the tree."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def is_stacked(path: str) -> bool:
    """Whether the leaf has a leading axis of layers, each of them a tensor of its own."""
    return path.startswith("layers/")


def check_tensor(where: str, tensor: Any, shape: tuple[int, ...]) -> None:
    """Checks a tensor's shape and dtype without reading it.

    Args:
      where: file and name, for the error.
      tensor: safetensors' slice object, or None where the file has none of that name.
      shape: the one that it has to have.

    Raises:
      ValueError: it is missing, or has another shape or a dtype that is not floating point.
    """
    if tensor is None:
        raise ValueError(f"{where} is missing: save it again, or check that it fits the base")
    found, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
    if found != tuple(shape):
        raise ValueError(
            f"{where} has shape {found}, the config asks for {tuple(shape)}: correct the config, "
            "or save the tensor again"
        )
    if dtype not in _DTYPES:
        raise ValueError(f"{where} has dtype {dtype}, supported: {', '.join(_DTYPES)}: convert it")


def read(
    abstract: dict[str, Any], slices: dict[str, list[Any]], mesh: Mesh | None, dtype: np.dtype
) -> dict[str, Any]:
    """Reads each leaf of a tree, only the parts that this process's devices hold.

    Args:
      abstract: the tree, with a shape at each leaf.
      slices: path -> safetensors' slice objects, one per layer or one.
      mesh: where the leaves go, split as `sharding.params_spec` says; None: the default device.
      dtype: of the arrays, whatever the tensors'.
    """
    leaves = flat(abstract)
    specs = flat(sharding.params_spec(abstract, mesh, lanes=False)) if mesh else {}
    num_bytes = {path: leaf.size * dtype.itemsize for path, leaf in leaves.items()}
    total = sum(num_bytes.values())
    hidden = total < _BAR_FROM_BYTES or jax.process_index() != 0
    arrays: dict[str, jax.Array] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="loading", disable=hidden) as bar:
        for path, leaf in leaves.items():
            block = _reader(slices[path], leaf.shape, dtype, stacked=is_stacked(path))
            if mesh is None:
                array = jax.device_put(block((slice(None),) * leaf.ndim))
            else:
                array = jax.make_array_from_callback(
                    leaf.shape, NamedSharding(mesh, specs[path]), cast(Any, block), dtype=dtype
                )
            # The next leaf is read when this one has left the host.
            arrays[path] = array.block_until_ready()
            bar.update(num_bytes[path])
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], abstract)


def to_host(leaf: Any, layer: int | None, dtype: np.dtype) -> np.ndarray:
    """One tensor, whole, in this process's memory; where it is sharded, all processes call it."""
    part = leaf if layer is None else leaf[layer]
    if isinstance(part, jax.Array) and not part.is_fully_addressable:
        part = multihost_utils.process_allgather(part, tiled=True)
    return np.ascontiguousarray(np.asarray(part).astype(dtype))


@contextlib.contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` only when the file is complete and on disk."""
    unfinished = path.with_name(path.name + ".partial")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        with artifacts.system_errors(path):
            yield unfinished
        # safetensors makes its files readable by nobody else, whatever the umask.
        unfinished.chmod(mode)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _reader(
    slices: list[Any], shape: tuple[int, ...], dtype: np.dtype, *, stacked: bool
) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """A function from the index of a block to the block; equal blocks are read once."""
    seen: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def block(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(s.indices(size) for s, size in zip(index, shape, strict=True))
        if bounds not in seen:
            ranges = [slice(start, stop) for start, stop, _ in bounds]
            if stacked:
                layers = slices[ranges[0]]
                out = np.empty((len(layers), *(r.stop - r.start for r in ranges[1:])), dtype)
                for row, layer in enumerate(layers):
                    out[row] = layer[tuple(ranges[1:])]
            else:
                out = np.asarray(slices[0][tuple(ranges)]).astype(dtype)
            seen[bounds] = out
        return seen[bounds]

    return block


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(part.key) for part in path)
