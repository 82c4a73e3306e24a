"""Of each tensor only what the devices hold is read; whether it is right: test_weights.py."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from subjax.hf import param_io, tensors
from subjax.hf.tensors import Tensor
from subjax.nn import sharding
from subjax.runtime import storage


@dataclasses.dataclass(frozen=True)
class Recorded(Tensor):
    """A tensor that notes the number of elements asked of it."""

    asked: list[int] = dataclasses.field(default_factory=list)

    def read(self, index: tuple[slice, ...], out: np.ndarray) -> None:
        self.asked.append(out.size)
        super().read(index, out)


@pytest.mark.parametrize("from_bytes", [0, 10**9])
def test_each_block_is_read_once(
    from_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although on this mesh two devices hold the same block."""
    monkeypatch.setattr(param_io, "_EXCHANGED_FROM_BYTES", from_bytes)
    arrays = {f"{layer}": np.arange(32.0).reshape(8, 4) + layer for layer in range(3)}
    safetensors.numpy.save_file(arrays, tmp_path / "file")
    mesh = sharding.make_mesh(1, 2, 2, 2)
    abstract = {"layers": {"attn": {"q": {"kernel": jax.ShapeDtypeStruct((3, 8, 4), "float32")}}}}
    with contextlib.closing(storage.LocalFile(tmp_path / "file")) as file:
        stored = tensors.open_tensors(file)
        layers = [Recorded(**vars(stored[name])) for name in sorted(stored)]
        tree = param_io.read(abstract, {"layers/attn/q/kernel": layers}, mesh)
    kernel = tree["layers"]["attn"]["q"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 4, 2)}
    np.testing.assert_array_equal(kernel, np.stack(list(arrays.values())))
    assert [sum(layer.asked) for layer in layers] == [32, 32, 32]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["2", "norm"])
def test_a_tensor_that_is_not_finite_is_named(
    name: str, value: float, dtype: str, tmp_path: Path
) -> None:
    arrays = {f"{layer}": np.full((8, 4), -2.5, np.float32) for layer in range(3)}
    arrays["norm"] = np.full(8, np.finfo(np.float16).max, np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "finite")
    arrays[name].flat[5] = value
    safetensors.numpy.save_file(arrays, tmp_path / "file")
    kernel, norm = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((3, 8, 4), (8,)))
    abstract = {"final_norm": {"scale": norm}, "layers": {"attn": {"q": {"kernel": kernel}}}}

    def load(file: storage.LocalFile) -> None:
        stored = tensors.open_tensors(file)
        layers = [stored[f"{layer}"] for layer in range(3)]
        sources = {"final_norm/scale": [stored["norm"]], "layers/attn/q/kernel": layers}
        param_io.read(abstract, sources, None)

    with contextlib.closing(storage.LocalFile(tmp_path / "finite")) as file:
        load(file)
    named = "layers/attn/q/kernel of layer 2" if name == "2" else "final_norm/scale"
    with (
        contextlib.closing(storage.LocalFile(tmp_path / "file")) as file,
        pytest.raises(ValueError, match=rf"file: {named} holds NaN or infinity: download"),
    ):
        load(file)


def test_the_largest_is_read_first(tmp_path: Path) -> None:
    """While a leaf goes to the devices it is in memory twice, beside all those that are there."""
    sizes, asked = {"few": 2, "most": 30, "more": 7}, []

    class Noted(Tensor):
        def read(self, index: tuple[slice, ...], out: np.ndarray) -> None:
            asked.append(out.size)
            super().read(index, out)

    arrays = {name: np.ones(size, np.float32) for name, size in sizes.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "file")
    abstract = {name: jax.ShapeDtypeStruct((size,), "float32") for name, size in sizes.items()}
    with contextlib.closing(storage.LocalFile(tmp_path / "file")) as file:
        stored = tensors.open_tensors(file)
        sources = {name: [Noted(**vars(tensor))] for name, tensor in stored.items()}
        found = param_io.read(abstract, sources, None)
    assert asked == [30, 7, 2]
    assert {name: array.size for name, array in found.items()} == sizes


@pytest.mark.parametrize(
    ("shape", "stacked", "spec", "by_rows"),
    [
        ((3, 8, 4), True, P(None, "tensor", "fsdp"), P(None, ("tensor", "fsdp"))),
        ((4, 8, 4), True, P(None, None, "fsdp"), P(("fsdp",))),
        ((3, 2, 4), True, P(None, "tensor", "fsdp"), P(None, "tensor", "fsdp")),
        ((8, 4), False, P(None, "fsdp"), P(("fsdp",))),
        ((3, 4), False, P(None, "fsdp"), P(None, "fsdp")),
        ((3, 8, 4), True, P(None, "fsdp", None), P(None, "fsdp", None)),
        ((8,), False, P(None), P(None)),
    ],
)
def test_parts_lie_together_in_the_file(
    shape: tuple[int, ...], stacked: bool, spec: P, by_rows: P
) -> None:
    mesh: Mesh = sharding.make_mesh(1, 1, 2, 2)
    target = NamedSharding(mesh, spec)
    assert param_io._by_rows(target, shape, stacked) == NamedSharding(mesh, by_rows)
