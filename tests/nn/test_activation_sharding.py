"""What lies where inside programs: read from what is compiled for eight devices of this machine."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import large
from subjax.engine import sampler
from subjax.hf import param_io
from subjax.nn import activation_sharding, lora, sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.planning import programs, traffic

# Weights of 67 MB, beside which eight rows are nothing.
ARCH = Architecture(
    vocab_size=4096, num_layers=3, width=512, num_heads=8, num_kv_heads=8, head_dim=64,
    ffn_width=2048,
)  # fmt: skip
MESHES = [(1, 8, 1), (2, 2, 2), (1, 1, 8)]


def make_mesh(data, fsdp, tensor):
    return sharding.make_mesh(seed=1, data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_a_token_loop_moves_rows_and_no_weights(shape, rank):
    mesh = make_mesh(*shape)
    adapter = rank and jax.eval_shape(lambda: lora.init(ARCH, jax.random.key(0), rank=rank))
    _, decode = sampler.traced(
        ARCH,
        sampler.Sampling(8, 16, 16, 1.0, (1,)),
        num_prompts=8,
        num_rows=16,
        mesh=mesh,
        adapter=adapter or None,
    )
    compiled = decode.lower().compile()

    def moved(steps):
        moved = traffic.of(compiled.as_text(), mesh, steps=steps, taken=0)
        return sum(collective.num_bytes for collective in moved.collectives)

    weights = 4 * transformer.num_params(ARCH)
    assert 0 < (moved(101) - moved(1)) / 100 < 0.01 * weights
    # Nor does a device hold more than its part, twice: as it trains, and as the loop reads.
    _, fsdp, tensor = shape
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * weights / (fsdp * tensor)


def test_a_dimension_is_split_by_as_many_axes_as_divide_it():
    mesh = make_mesh(1, 4, 2)
    shapes = {"up": (24, 6), "gate": (12, 6), "down": (6, 10), "q": (7, 8), "k": (7, 6)}
    params = {
        name: {"kernel": jax.ShapeDtypeStruct((3, *shape), float)} for name, shape in shapes.items()
    }
    specs = param_io.flat(activation_sharding.decoding_spec({"layers": params}, mesh))
    assert specs["layers/up/kernel"] == P(None, ("tensor", "fsdp"))
    assert specs["layers/gate/kernel"] == P(None, ("fsdp",))
    assert specs["layers/down/kernel"] == P(None, None, ("tensor",))
    # As for training, where the other dimension is split.
    assert specs["layers/q/kernel"] == P(None, None, "fsdp")
    assert specs["layers/k/kernel"] == P(None, None, None)
    with pytest.raises(ValueError, match="no sharding rule for parameter layers/sideways"):
        activation_sharding.decoding_spec(
            {"layers": {"sideways": jax.ShapeDtypeStruct((2,), float)}}, mesh
        )


@pytest.mark.parametrize("form", ["", ",throughput,chips=256"])
@pytest.mark.parametrize("model", sorted(large.MODELS))
def test_a_token_loop_of_the_large_configs_splits_all_but_norms(model, form):
    config = large.get_config(model + form)
    arch = programs.architecture("model", config.bases.model)
    sizes = {axis: max(config.mesh[axis], 1) for axis in sharding.AXES}
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    params = transformer.abstract_params(arch)
    with jax.sharding.use_abstract_mesh(mesh):
        params["layers"] = jax.eval_shape(activation_sharding.pad_inner, params["layers"])
    specs = param_io.flat(activation_sharding.decoding_spec(params, mesh))
    held = 0.0
    for path, leaf in param_io.flat(params).items():
        entries = [(entry,) if isinstance(entry, str) else entry for entry in specs[path] if entry]
        axes = [axis for entry in entries for axis in entry]
        held += leaf.size / math.prod(mesh.shape[axis] for axis in axes)
    assert held < 1.05 * transformer.num_params(arch) / (sizes["fsdp"] * sizes["tensor"])


@pytest.mark.parametrize("shape", [(1, 4, 2), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_an_inner_size_that_nothing_divides_is_filled_up(shape):
    """The values that the loop computes stay the same."""
    arch = dataclasses.replace(ARCH, ffn_width=99, mlp_bias=True, vocab_size=64)
    mesh = make_mesh(*shape)
    params = transformer.init(arch, jax.random.key(0))
    adapter = lora.init(arch, jax.random.key(1), rank=4)
    adapter = jax.tree.map(lambda leaf: leaf + 0.01, adapter)
    tokens = jax.random.randint(jax.random.key(2), (8, 6), 0, 64)
    whole = transformer.forward(arch, params, tokens, adapter=adapter)[:, -1]

    def last(params, adapter, tokens):
        keys, values = transformer.prefill(arch, params, tokens[:, :5], adapter=adapter)[1]
        room = ((0, 0),) * 3 + ((0, 1), (0, 0))
        cache = transformer.decode_cache(jnp.pad(keys, room), jnp.pad(values, room))
        layers = transformer.decode_layers(params, adapter)
        at = jnp.full(8, 5)
        return transformer.decode_step(arch, params, layers, tokens[:, 5], at, cache)[0], layers

    with jax.set_mesh(mesh):
        found, layers = jax.jit(last)(params, adapter, tokens)
    np.testing.assert_allclose(found, whole, atol=1e-4)
    weights, lora_layers = layers[0]
    num_parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    size = -(-99 // num_parts) * num_parts
    assert weights["mlp"]["up"]["kernel"].shape == (size, arch.width)
    assert weights["mlp"]["down"]["kernel"].shape == (arch.width, size)
    assert lora_layers["mlp"]["gate"]["b"].shape == (size, 4)


@pytest.mark.parametrize("adapted", [False, True])
def test_gathered_weights_are_not_kept_for_the_backward_pass(adapted):
    """Kept, they would be whole on every device until the last layer has been read."""
    mesh = make_mesh(1, 8, 1)
    arch = dataclasses.replace(ARCH, num_layers=8)  # scanned, not unrolled
    adapter = jax.eval_shape(lambda: lora.init(arch, jax.random.key(0), rank=4))
    params = transformer.abstract_params(arch)
    tokens = jax.ShapeDtypeStruct((8, 4), int)

    def loss(trained, frozen, tokens):
        weights, adapter = (frozen, trained) if adapted else (trained, None)
        return transformer.forward(arch, weights, tokens, adapter=adapter).sum()

    trees = (adapter, params) if adapted else (params, {})
    with jax.set_mesh(mesh):
        specs = sharding.params_spec(trees, mesh, lanes=False)
        placed = sharding.abstract(trees, specs, mesh)
        memory = jax.jit(jax.grad(loss)).lower(*placed, tokens).compile().memory_analysis()
    layers = 4 * (transformer.num_params(arch) - 2 * arch.vocab_size * arch.width)
    # Beside a layer or two and the gradient's own part there is nothing.
    assert memory.temp_size_in_bytes < layers / 2


def test_a_layer_exchanges_activations_twice_forward_and_twice_backward():
    """Not once for each of the five kernels that read them."""
    mesh = make_mesh(1, 1, 8)
    adapter = jax.eval_shape(lambda: lora.init(ARCH, jax.random.key(0), rank=4))
    trees = (adapter, transformer.abstract_params(ARCH))
    tokens = jax.ShapeDtypeStruct((8, 64), int)

    def loss(adapter, params, tokens):
        return transformer.forward(ARCH, params, tokens, adapter=adapter).sum()

    with jax.set_mesh(mesh):
        placed = sharding.abstract(trees, sharding.params_spec(trees, mesh, lanes=False), mesh)
        compiled = jax.jit(jax.grad(loss)).lower(*placed, tokens).compile()
    moved = traffic.of(compiled.as_text(), mesh).collectives
    activations = 4 * 8 * 64 * ARCH.width
    sums = sum(c.num_bytes for c in moved if c.kind == "all-reduce") / activations
    # One more is of the embedding, and one layer's gradient is of no use. The rest is of adapters.
    assert 4 * ARCH.num_layers - 1 <= sums < 4 * ARCH.num_layers + 2


@pytest.mark.parametrize(
    "where",
    [
        activation_sharding.embedded,
        activation_sharding.gathered,
        activation_sharding.spread,
        activation_sharding.resting,
    ],
)
def test_rows_that_nothing_divides_lie_whole_and_keep_their_values(where):
    x = jax.random.normal(jax.random.key(0), (3, 1, 5))
    with jax.set_mesh(make_mesh(2, 2, 2)):
        found = jax.jit(where)(x)
    assert (found == x).all()
    assert found.sharding.is_fully_replicated
