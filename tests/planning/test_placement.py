"""What of a model lies where: bytes by groups, and the refusal of what a mesh leaves unsharded."""

import json
import re
import runpy
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from subjax.hf import model_config
from subjax.nn import lora, sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.planning import placement, programs

ROOT = Path(__file__).parents[2]
# Every dimension that the table splits divides by eight.
ARCH = Architecture(
    vocab_size=64,
    num_layers=3,
    width=32,
    num_heads=8,
    num_kv_heads=8,
    head_dim=8,
    ffn_width=48,
    tie_embeddings=False,
)
NARROW = 0.05


def mesh(fsdp, tensor):
    return AbstractMesh((1, 1, fsdp, tensor), sharding.AXES)


def shapes(name):
    arch = model_config.read(json.loads((ROOT / f"configs/shapes/{name}.json").read_text()))
    return transformer.abstract_params(arch)


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1), (2, 4), (3, 1)])
def test_bytes_on_a_device_are_those_that_lie_there(shape):
    fsdp, tensor = shape
    where = sharding.make_mesh(1, 1, fsdp, tensor)
    params = {
        **transformer.init(ARCH, jax.random.key(0)),
        "adapter": lora.init(ARCH, jax.random.key(0), rank=4),
    }
    placed = sharding.place(params, where, lanes=False)
    first = where.devices.flat[0]
    there = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(placed)
        for shard in leaf.addressable_shards
        if shard.device == first
    )
    found = placement.groups(params, where)
    assert sum(group.on_device for group in found) == there
    assert sum(group.num_bytes for group in found) == sum(
        leaf.nbytes for leaf in jax.tree.leaves(params)
    )
    assert {group.name for group in found} == {
        *("embedding", "head", "attention", "mlp", "norms, biases", "adapter")
    }


def test_a_leaf_is_unsharded_unless_both_axes_split_it():
    params = transformer.abstract_params(ARCH)

    def shares(*shape):
        found = placement.groups(params, mesh(*shape))
        return {group.name: group.unsharded / group.num_bytes for group in found}

    assert set(shares(1, 1).values()) == {0.0}
    split = dict.fromkeys(("embedding", "head", "attention", "mlp"), 0.0) | {"norms, biases": 1.0}
    assert shares(2, 4) == shares(8, 1) == shares(1, 8) == split
    # 3 divides none but the width of the MLP, which `tensor` splits.
    assert shares(1, 3) == dict.fromkeys(split, 1.0) | {"mlp": 0.0}
    assert set(shares(3, 1).values()) == set(shares(3, 2).values()) == {1.0}


@pytest.mark.parametrize("name", ["gemma3_4b", "llama3_1_8b", "qwen2_5_7b", "qwen2_5_72b"])
@pytest.mark.parametrize("form", ["", "full", "throughput", "chips=256"])
def test_shipped_models_are_split_by_their_meshes(name, form, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = runpy.run_path("configs/large.py")["get_config"](f"{name},{form}".strip(","))
    params = transformer.abstract_params(programs.architecture("model", made.bases.model))
    where = mesh(made.mesh.fsdp, made.mesh.tensor)
    placement.check(name, params, where, made.compute.max_unsharded)
    found = placement.groups(params, where)
    split = where.shape["fsdp"] * where.shape["tensor"]
    whole = sum(group.num_bytes for group in found)
    assert split > 1
    assert sum(group.on_device for group in found) < whole / split + 0.001 * whole


def test_a_mesh_that_divides_nothing_is_refused_in_one_line():
    params = shapes("qwen2_5_7b")
    with pytest.raises(ValueError) as refused:
        placement.check("config.bases.model", params, mesh(48, 1), NARROW)
    assert str(refused.value) == (
        "100.00% of the 30.5 GB of config.bases.model would lie unsharded on config.mesh fsdp x "
        "tensor = 48 x 1, more than config.compute.max_unsharded 5.00%; the largest is "
        "layers/mlp/down/kernel (28, 3584, 18944): take a mesh with fsdp that divides 3584 and "
        "tensor that divides 18944, or raise config.compute.max_unsharded"
    )
    placement.check("model", params, mesh(48, 1), 1.0)
    placement.check("model", params, mesh(56, 1), NARROW)
    # One axis alone leaves copies as well: each of 48 devices would hold a quarter.
    with pytest.raises(ValueError, match="fsdp x tensor = 48 x 4"):
        placement.check("model", params, mesh(48, 4), NARROW)


def test_an_odd_vocabulary_is_refused_only_where_it_weighs():
    arch = model_config.read(json.loads((ROOT / "configs/shapes/llama3_1_8b.json").read_text()))
    odd = transformer.abstract_params(type(arch)(**vars(arch) | {"vocab_size": 128_257}))
    with pytest.raises(
        ValueError, match=r"13\.\d+% .* is (embed/embedding|head/kernel) \(128257, "
    ):
        placement.check("model", odd, mesh(1, 8), NARROW)
    placement.check("model", odd, mesh(1, 8), 0.14)
    placement.check("model", odd, mesh(8, 1), NARROW)


def test_small_models_lie_as_they_like():
    params = transformer.abstract_params(ARCH)
    assert sum(leaf.size * 4 for leaf in jax.tree.leaves(params)) < placement.SMALL
    placement.check("model", params, mesh(7, 1), 0.0)
    with pytest.raises(ValueError, match=r"norm/scale \(\d+, \d+\): raise config\.compute"):
        placement.check("model", shapes("gemma3_4b"), mesh(8, 1), 0.0)


def test_the_table_adds_up():
    found = placement.groups(shapes("llama3_1_8b"), mesh(16, 2))
    *lines, last = placement.table(found).splitlines()[1:]
    assert [line.split("  ")[0] for line in lines] == [group.name for group in found]
    numbers = [[float(n) for n in re.findall(r"\d+\.\d+", line)] for line in (*lines, last)]
    for column in (0, 1):
        assert sum(row[column] for row in numbers[:-1]) == pytest.approx(
            numbers[-1][column], abs=0.01
        )
    assert numbers[-1][0] == pytest.approx(32 * numbers[-1][1], rel=2e-3)
