"""The roofline against numbers worked out by hand, and FLOPs against what programs multiply."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax import hlo, roofline, sharding, train, transformer
from tests.tiny import ARCH

SIZES = {"rows": 2, "num_tokens": 8, "num_targets": 3}


def matmul_params(arch):
    kernels = (*arch.attention_kernels.values(), *arch.mlp_kernels.values())
    return arch.num_layers * sum(a * b for a, b in kernels)


def test_training_flops_are_six_a_parameter_and_token_and_causal_attention():
    layers, head = matmul_params(ARCH), ARCH.vocab_size * ARCH.width
    # A position sees itself and those before: 8 * 9 / 2 pairs of two products of H each, 2 FLOPs.
    pairs = 2 * ARCH.num_layers * ARCH.num_heads * 8 * 9 // 2
    attention = 3 * pairs * 4 * ARCH.head_dim
    expected = 6 * 2 * (8 * layers + 3 * head) + attention
    assert roofline.training_flops(ARCH, **SIZES) == expected
    adapted = 4 * 2 * (8 * layers + 3 * head) + attention + 6 * 1000 * 2 * 8
    assert roofline.training_flops(ARCH, **SIZES, lora_params=1000) == adapted


def test_a_window_of_one_leaves_one_pair_a_position():
    near = dataclasses.replace(ARCH, window=1, local=(True, True))
    lost = roofline.forward_flops(ARCH, **SIZES) - roofline.forward_flops(near, **SIZES)
    assert lost == 4 * 2 * ARCH.num_layers * ARCH.num_queries * (8 * 9 // 2 - 8)


def test_executed_flops_count_every_layer_and_every_recomputation():
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    params = transformer.abstract_params(ARCH)

    def loss(remat):
        return jax.grad(lambda p, t: transformer.forward(ARCH, p, t, remat=remat).sum())

    plain, again = (
        roofline.executed_flops(jax.jit(loss(remat)).trace(params, tokens).jaxpr)
        for remat in ("none", "full")
    )
    layers = 2 * 2 * 8 * matmul_params(ARCH)
    attention = 2 * ARCH.num_layers * ARCH.num_queries * 4 * 8 * 8  # the einsum masks, not skips
    assert plain == 3 * (layers + attention)
    # The last product of a layer is not needed again.
    down = 2 * 2 * 8 * ARCH.num_layers * ARCH.ffn_width * ARCH.width
    assert again == 4 * (layers + attention) - down


def test_the_bound_is_the_slowest_of_three():
    mesh, chip = sharding.make_mesh(1, 1, 1, 1), roofline.CHIPS["v5e"]
    still = hlo.Traffic(0.0, ())
    found = roofline.bound(197e12, 4 / 3 * 197e12, still, chip, mesh)
    assert (found.seconds, found.limit) == (pytest.approx(4 / 3), "compute")
    assert found.mfu == pytest.approx(0.75)
    found = roofline.bound(197e12, 197e12, hlo.Traffic(2 * 819e9, ()), chip, mesh)
    assert (found.seconds, found.limit, found.mfu) == (pytest.approx(2), "HBM", pytest.approx(0.5))


def test_links_of_a_group_are_those_between_its_chips():
    # A slice of 8 x 16 chips, of which sixteen in a row are a ring and eight are a line.
    places = np.stack(np.meshgrid(np.arange(8), np.arange(16), indexing="ij"), axis=-1)
    assert roofline.links(places, [False, True], 16) == 2
    assert roofline.links(places, [True, False], 16) == 1
    assert roofline.links(places, [True, True], 16) == 3
    half = places.reshape(8, 2, 8, 2)
    assert roofline.links(half, [False, False, True], 16) == 1


def test_a_training_step_multiplies_what_its_shapes_say():
    program = train.Program(ARCH, train.Optimizer(1e-3), 10)
    shape = {name: jax.ShapeDtypeStruct((2, 8), jnp.int32) for name in ("tokens", "targets")}
    shape["positions"] = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    shape["weights"] = jax.ShapeDtypeStruct((2, 8), jnp.float32)
    traced = train.traced(program, shape, mesh=sharding.make_mesh(1, 1, 1, 1))
    executed = roofline.executed_flops(traced.jaxpr)
    model = roofline.training_flops(ARCH, rows=2, num_tokens=8, num_targets=8)
    # Masked pairs and the targets' own scores come on top, and the vocabulary's scores once more.
    assert model < executed < 1.5 * model
