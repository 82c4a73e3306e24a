"""What lies where inside programs: read from what is compiled for eight devices of this machine."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from subjax import hlo, layouts, leaves, lora, sampler, sharding, transformer
from subjax.architecture import Architecture

# Weights of 67 MB, beside which eight rows are nothing.
ARCH = Architecture(
    vocab_size=4096, num_layers=3, width=512, num_heads=8, num_kv_heads=8, head_dim=64,
    ffn_width=2048,
)  # fmt: skip
MESHES = [(1, 8, 1), (2, 2, 2), (1, 1, 8)]


def make_mesh(data, fsdp, tensor):
    return sharding.make_mesh(seed=1, data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("rank", [0, 4])
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
        traffic = hlo.traffic(compiled.as_text(), mesh, steps=steps, taken=0)
        return sum(collective.num_bytes for collective in traffic.collectives)

    weights = 4 * transformer.num_params(ARCH)
    assert 0 < (moved(101) - moved(1)) / 100 < 0.01 * weights
    # Nor does a device hold more than its part, twice: as it trains, and as the loop reads.
    _, fsdp, tensor = shape
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * weights / (fsdp * tensor)


def test_a_dimension_is_split_by_as_many_axes_as_divide_it():
    mesh = make_mesh(1, 4, 2)
    shapes = {"up": (24, 6), "gate": (12, 6), "down": (6, 10)}
    params = {
        name: {"kernel": jax.ShapeDtypeStruct((3, *shape), float)} for name, shape in shapes.items()
    }
    specs = leaves.flat(layouts.decoding_spec({"layers": {"mlp": params}}, mesh))
    assert specs["layers/mlp/up/kernel"] == P(None, ("tensor", "fsdp"))
    assert specs["layers/mlp/gate/kernel"] == P(None, ("fsdp",))
    assert specs["layers/mlp/down/kernel"] == P(None, None, ("tensor",))
    odd = {"layers": {"mlp": {"up": {"kernel": jax.ShapeDtypeStruct((3, 7, 6), float)}}}}
    assert leaves.flat(layouts.decoding_spec(odd, mesh)) == {"layers/mlp/up/kernel": P(None, None)}
    with pytest.raises(ValueError, match="no sharding rule for parameter layers/mlp/sideways"):
        layouts.decoding_spec(
            {"layers": {"mlp": {"sideways": jax.ShapeDtypeStruct((2,), float)}}}, mesh
        )


@pytest.mark.parametrize(
    "where", [layouts.embedded, layouts.gathered, layouts.spread, layouts.resting]
)
def test_rows_that_nothing_divides_lie_whole_and_keep_their_values(where):
    x = jax.random.normal(jax.random.key(0), (3, 1, 5))
    with jax.set_mesh(make_mesh(2, 2, 2)):
        found = jax.jit(where)(x)
    assert (found == x).all()
    assert found.sharding.is_fully_replicated
