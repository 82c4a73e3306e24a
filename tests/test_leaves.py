"""Of each tensor only what the devices hold is read; whether it is right: test_weights.py."""

import jax
import numpy as np

from subjax import leaves, sharding


class Recorded:
    """A slice object that counts the elements read from it."""

    def __init__(self, array: np.ndarray):
        self.array, self.num_read = array, 0

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        self.num_read += self.array[index].size
        return self.array[index]


def test_each_block_is_read_once() -> None:
    """Although on this mesh two devices hold the same block."""
    mesh = sharding.make_mesh(1, 2, 2, 2)
    abstract = {"layers": {"attn": {"q": {"kernel": jax.ShapeDtypeStruct((3, 8, 4), "float32")}}}}
    slices = [Recorded(np.arange(32.0).reshape(8, 4) + layer) for layer in range(3)]
    tree = leaves.read(abstract, {"layers/attn/q/kernel": slices}, mesh, np.dtype("float32"))
    kernel = tree["layers"]["attn"]["q"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 4, 2)}
    assert [recorded.num_read for recorded in slices] == [32, 32, 32]
