"""One model on any mesh of eight devices: the same logits, loss and gradient of every leaf.

A jax release has given wrong gradients beside a right loss on meshes of three axes, so leaves are
compared one by one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax import batching, lora, objective, sharding, train, transformer
from subjax.architecture import Architecture

# Every dimension that the table splits divides by eight.
ARCH = Architecture(
    vocab_size=64, num_layers=3, width=32, num_heads=8, num_kv_heads=8, head_dim=8, ffn_width=48
)
SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 2, 1), (1, 2, 4)]
PROGRAM = train.Program(ARCH, train.Optimizer(1e-3), steps=2)


def make_batch():
    rng = np.random.default_rng(0)
    examples = [(rng.integers(1, 64, n).tolist(), 3) for n in rng.integers(5, 12, 16)]
    rows = batching.make_rows(examples, num_tokens=12, num_targets=10, pad_id=0)
    return rows, rows.take(np.arange(16))


def make_trainable(adapted):
    if not adapted:
        return transformer.init(ARCH, jax.random.key(0)), {}
    tree = lora.init(ARCH, jax.random.key(1), rank=4)
    # With b = 0, as it begins, the gradient of a is zero whatever else goes wrong.
    return jax.tree.map(lambda leaf: leaf + 0.05, tree), transformer.init(ARCH, jax.random.key(0))


def measured(mesh, program, adapted):
    """Loss, gradient and logits of one batch, computed on the mesh."""
    trainable, frozen = make_trainable(adapted)
    _, batch = make_batch()
    with jax.set_mesh(mesh):
        trainable, frozen = (
            sharding.place(tree, mesh, lanes=False) for tree in (trainable, frozen)
        )
        batch = sharding.place_batch(batch, mesh, lanes=False)
        found = functools.partial(objective.value_and_grad, program)
        loss, gradient = jax.jit(found)(trainable, frozen, {}, batch)
        params = frozen if adapted else trainable

        def scores(params, tokens):
            return transformer.logits(ARCH, params, transformer.forward(ARCH, params, tokens))

        return jax.device_get((loss, gradient, jax.jit(scores)(params, batch["tokens"])))


@functools.cache
def alone(adapted):
    program = dataclasses.replace(PROGRAM, lora_scale=2.0 if adapted else 0.0)
    return measured(sharding.make_mesh(seed=1), program, adapted)


SLOW = pytest.mark.slow
CASES = [
    pytest.param(shape, adapted, parts, marks=() if (shape, parts) == ((2, 2, 2), 2) else SLOW)
    for shape in SHAPES
    for adapted in (False, True)
    for parts in (1, 2)
]


@pytest.mark.parametrize(("shape", "adapted", "accumulate"), CASES)
def test_gradients_do_not_depend_on_the_mesh(shape, adapted, accumulate):
    data, fsdp, tensor = shape
    mesh = sharding.make_mesh(seed=1, data=data, fsdp=fsdp, tensor=tensor)
    program = dataclasses.replace(
        PROGRAM, lora_scale=2.0 if adapted else 0.0, accumulate=accumulate
    )
    loss, gradient, scores = measured(mesh, program, adapted)
    one_loss, one_gradient, one_scores = alone(adapted)
    np.testing.assert_allclose(loss, one_loss, rtol=1e-5)
    np.testing.assert_allclose(scores, one_scores, atol=1e-4 * np.abs(one_scores).max())
    for (path, leaf), expected in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(one_gradient), strict=True
    ):
        largest = np.abs(expected).max()
        assert largest > 0, path
        np.testing.assert_allclose(leaf, expected, atol=1e-4 * largest, err_msg=str(path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1)])
def test_training_does_not_depend_on_the_mesh(shape, kind):
    rows, _ = make_batch()
    data, fsdp, tensor = shape
    program = dataclasses.replace(PROGRAM, optimizer=train.Optimizer(1e-2, kind=kind))

    def run(mesh):
        [progress] = train.fit(
            program,
            train.stack([transformer.init(ARCH, jax.random.key(0))]),
            {},
            [rows],
            seeds=[0],
            batch_size=8,
            probe_steps=(),
            steps_per_call=1,
            mesh=mesh,
            label="test",
        )
        return progress

    one = run(sharding.make_mesh(seed=1))
    other = run(sharding.make_mesh(seed=1, data=data, fsdp=fsdp, tensor=tensor))
    np.testing.assert_allclose(one.metrics["loss"], other.metrics["loss"], rtol=1e-4)
    np.testing.assert_allclose(one.metrics["grad_norm"], other.metrics["grad_norm"], rtol=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_moments_lie_as_their_parameters_do(kind):
    mesh = sharding.make_mesh(seed=2, fsdp=2, tensor=2, lanes=2)
    program = dataclasses.replace(PROGRAM, optimizer=train.Optimizer(1e-2, kind=kind))
    trees = train.stack([transformer.init(ARCH, jax.random.key(lane)) for lane in range(2)])
    with jax.set_mesh(mesh):
        state = train.initial_state(program, sharding.place(trees, mesh, lanes=True))
    shapes = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(state[0])}
    alike = [leaf for leaf in jax.tree.leaves(state[1]) if leaf.shape in shapes and leaf.ndim > 3]
    assert alike
    for leaf in alike:
        assert leaf.sharding.is_equivalent_to(shapes[leaf.shape], leaf.ndim)
        assert leaf.addressable_shards[0].data.size == leaf.size // 8
    whole = [leaf for leaf in jax.tree.leaves(state) if leaf.is_fully_replicated]
    total = sum(jnp.size(leaf) for leaf in jax.tree.leaves(state))
    assert sum(jnp.size(leaf) for leaf in whole) < 0.01 * total
