"""The roofline against numbers worked out by hand, and FLOPs against what programs multiply."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax.engine import train
from subjax.nn import attention, lora, model_flops, sharding, transformer
from subjax.planning import program_flops, roofline, traffic
from subjax.runtime import chips
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
    assert model_flops.training(ARCH, **SIZES) == expected
    adapted = 4 * 2 * (8 * layers + 3 * head) + attention + 6 * 1000 * 2 * 8
    assert model_flops.training(ARCH, **SIZES, lora_params=1000) == adapted


def test_a_window_of_one_leaves_one_pair_a_position():
    near = dataclasses.replace(ARCH, window=1, local=(True, True))
    lost = model_flops.forward(ARCH, **SIZES) - model_flops.forward(near, **SIZES)
    assert lost == 4 * 2 * ARCH.num_layers * ARCH.num_queries * (8 * 9 // 2 - 8)


def test_writing_sees_what_was_read_and_a_local_layer_no_more_than_its_window():
    sizes = {"rows": 2, "prompt_tokens": 5, "new_tokens": 3}
    near = dataclasses.replace(ARCH, window=4, local=(True, False))
    lost = model_flops.decode(ARCH, **sizes) - model_flops.decode(near, **sizes)
    # One of two layers sees 4 positions instead of 6, 7 and 8.
    assert lost == 4 * 2 * ARCH.num_queries * ((6 + 7 + 8) - 3 * 4)
    layers, head = matmul_params(ARCH), ARCH.vocab_size * ARCH.width
    attention = 4 * 2 * ARCH.num_layers * ARCH.num_queries * (6 + 7 + 8)
    assert model_flops.decode(ARCH, **sizes) == 2 * 2 * 3 * (layers + head) + attention


def test_a_causal_mask_keeps_half_of_the_blocks_and_the_diagonal():
    assert program_flops.kept_blocks(1, 512) == 1
    assert program_flops.kept_blocks(4, 128) == 4 * 4 * (4 + 1) / (2 * 4)


@pytest.mark.parametrize("window", [1, 2, 3, 128, 129, 130, 131, 257, 258, 259, 600])
def test_a_window_keeps_the_blocks_in_which_a_pair_is_near_enough(window):
    q, k = np.indices((512, 512))
    seen = (k <= q) & (q - k < window)
    blocks = seen.reshape(4, 128, 4, 128).any(axis=(1, 3))
    assert program_flops.kept_blocks(4, 128, window) == blocks.sum()


def kernel_flops(arch, near):
    """Of attention, forward and backward: two rows of 1536 positions, three blocks of 512."""
    q = jax.ShapeDtypeStruct((2, 1536, 4, 128), jnp.float32)
    k = jax.ShapeDtypeStruct((2, 2, 1536, 128), jnp.float32)

    def loss(q, k, v, near):
        def kind(local):
            return lambda q, k, v: attention.splash(arch, q, k, v, local=local)

        if isinstance(near, bool):
            return kind(near)(q, k, v).sum()
        return jax.lax.cond(near, kind(True), kind(False), q, k, v).sum()

    grad = jax.grad(loss, argnums=(0, 1, 2))
    if isinstance(near, bool):
        traced = jax.jit(lambda *rows: grad(*rows, near)).trace(q, k, k)
    else:
        traced = jax.jit(grad).trace(q, k, k, near)
    return program_flops.executed_flops(traced.jaxpr, arch)


def test_the_kernel_multiplies_the_blocks_that_its_mask_keeps():
    wide = dataclasses.replace(ARCH, head_dim=128)
    # Two products forward and five backward, of each block of each head of each row.
    block = (2 + 5) * 2 * 512 * 512 * 128 * 4 * 2
    # And each result times its own gradient, before the kernel goes back.
    once = 2 * 1536 * 128 * 4 * 2
    assert kernel_flops(wide, False) == 6 * block + once
    near = dataclasses.replace(wide, window=512, local=(True, True))
    assert kernel_flops(near, True) == 5 * block + once
    # A quarter of the layers is local.
    mixed = dataclasses.replace(wide, num_layers=4, window=512, local=(True, False, False, False))
    either = jax.ShapeDtypeStruct((), bool)
    assert kernel_flops(mixed, either) == (0.25 * 5 + 0.75 * 6) * block + once


def test_executed_flops_count_every_layer_and_every_recomputation():
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    params = transformer.abstract_params(ARCH)

    def loss(remat):
        return jax.grad(lambda p, t: transformer.forward(ARCH, p, t, remat=remat).sum())

    plain, again = (
        program_flops.executed_flops(jax.jit(loss(remat)).trace(params, tokens).jaxpr, ARCH)
        for remat in ("none", "full")
    )
    layers = 2 * 2 * 8 * matmul_params(ARCH)
    attention = 2 * ARCH.num_layers * ARCH.num_queries * 4 * 8 * 8  # the einsum masks, not skips
    passes = 6  # of bfloat16 for a product in float32
    assert plain == passes * 3 * (layers + attention)
    # The last product of a layer is not needed again.
    down = 2 * 2 * 8 * ARCH.num_layers * ARCH.ffn_width * ARCH.width
    assert again == passes * (4 * (layers + attention) - down)


def test_the_bound_is_the_slowest_of_three():
    mesh, chip = sharding.make_mesh(1, 1, 1, 1), chips.CHIPS["v5e"]
    still = traffic.Traffic(0.0, ())
    found = roofline.bound(197e12, 4 / 3 * 197e12, still, chip, mesh)
    assert (found.seconds, found.limit) == (pytest.approx(4 / 3), "compute")
    assert found.mfu == pytest.approx(0.75)
    found = roofline.bound(197e12, 197e12, traffic.Traffic(2 * 819e9, ()), chip, mesh)
    assert (found.seconds, found.limit, found.mfu) == (pytest.approx(2), "HBM", pytest.approx(0.5))


def test_links_of_a_group_are_those_between_its_chips():
    # A slice of 8 x 16 chips, of which sixteen in a row are a ring and eight are a line.
    places = np.stack(np.meshgrid(np.arange(8), np.arange(16), indexing="ij"), axis=-1)
    assert roofline.links(places, [False, True], 16) == 2
    assert roofline.links(places, [True, False], 16) == 1
    assert roofline.links(places, [True, True], 16) == 3
    # v5p has rings in whole cubes of 4x4x4 alone.
    for sides, expected in (((2, 2, 4), 1), ((4, 4, 4), 2), ((4, 4, 8), 2)):
        slice_ = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), axis=-1)
        along = [False, False, True]
        assert roofline.links(slice_, along, 4, wraps_whole=True) == expected
    half = places.reshape(8, 2, 8, 2)
    assert roofline.links(half, [False, False, True], 16) == 1


def executed_by_a_step(*, lora_rank=0, precision="float32", fsdp=1):
    """Products of the update of two rows of eight tokens, each of which is a target."""
    program = train.Program(
        ARCH, train.Optimizer(1e-3), 10, precision=precision, lora_scale=float(lora_rank)
    )
    shape = {name: jax.ShapeDtypeStruct((2, 8), jnp.int32) for name in ("tokens", "targets")}
    shape["positions"] = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    shape["weights"] = jax.ShapeDtypeStruct((2, 8), jnp.float32)
    mesh = sharding.make_mesh(1, 1, fsdp, 1)
    traced = train.traced(program, shape, mesh=mesh, lora_rank=lora_rank)
    passes = 6 if precision == "float32" else 1
    return program_flops.executed_flops(traced.jaxpr, ARCH) / passes


def test_a_training_step_multiplies_what_its_shapes_say():
    model = model_flops.training(ARCH, rows=2, num_tokens=8, num_targets=8)
    # Masked pairs and the targets' own scores come on top, and the vocabulary's scores once more.
    assert model < executed_by_a_step() < 1.5 * model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_step_of_an_adapter_saves_the_gradients_of_all_other_weights(precision, fsdp):
    how = {"precision": precision, "fsdp": fsdp}
    adapter = jax.eval_shape(lambda: lora.init(ARCH, jax.random.key(0), rank=2))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(adapter))
    full, adapted = (
        model_flops.training(ARCH, rows=2, num_tokens=8, num_targets=8, lora_params=number)
        for number in (0, num_params)
    )
    saved = executed_by_a_step(**how) - executed_by_a_step(lora_rank=2, **how)
    # The smallest gradient would be 7 % by itself.
    assert saved == pytest.approx(full - adapted, rel=0.01)


def test_gradients_of_frozen_weights_are_not_executed():
    """bfloat16 products have a gradient rule of their own, which is traced for both sides."""
    params, tokens = transformer.abstract_params(ARCH), jax.ShapeDtypeStruct((2, 8), jnp.int32)
    adapter = jax.eval_shape(lambda: lora.init(ARCH, jax.random.key(0), rank=2))

    def executed(precision):
        def loss(adapter, params, tokens):
            return transformer.forward(
                ARCH, params, tokens, adapter=adapter, precision=precision
            ).sum()

        traced = jax.jit(jax.grad(loss)).trace(adapter, params, tokens)
        return program_flops.executed_flops(traced.jaxpr, ARCH)

    assert 6 * executed("bfloat16") == executed("float32")
