"""One model on any mesh of eight devices: the same logits, loss, gradient of every leaf, and rows.

A jax release has given wrong gradients beside a right loss on meshes of three axes, so leaves are
compared one by one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax import batching, lora, objective, rng, sampler, sharding, train, transformer
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


NUM_ROWS = 512
# Slots and the mesh; (32, (1, 1, 1)) is what the others are compared with.
DRAWS = [
    (slots, shape)
    for shape in ((1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 3, 2))
    for slots in (32, 128)
]


@functools.cache
def drawn(precision, num_slots, shape):
    """Rows of up to 48 tokens that end themselves, so that slots are refilled."""
    data, fsdp, tensor = shape
    mesh = sharding.make_mesh(seed=1, data=data, fsdp=fsdp, tensor=tensor)
    ids = np.arange(NUM_ROWS) % 97
    prompts = [[2 + (i * j) % 61 for j in range(1, 2 + i % 5)] for i in ids.tolist()]
    return sampler.sample(
        ARCH,
        sharding.place(transformer.init(ARCH, jax.random.key(3)), mesh, lanes=False),
        sampler.Sampling(num_slots, 6, 48, 1.0, (1,), precision),
        prompts,
        rng.row_keys(0, 0, jnp.array(ids), jnp.arange(NUM_ROWS) // 97),
        mesh=mesh,
    )


def first_differences(found, expected):
    """Rows that differ at all, and tokens drawn until then: what follows has another context."""
    differ = found.tokens != expected.tokens
    rows = differ.any(axis=1)
    compared = np.where(rows, differ.argmax(axis=1) + 1, expected.lengths)
    return int(rows.sum()), int(compared.sum())


@pytest.mark.slow
@pytest.mark.parametrize(("num_slots", "shape"), DRAWS[1:])
def test_tokens_depend_on_neither_slots_nor_mesh(num_slots, shape):
    expected = drawn("float32", *DRAWS[0])
    assert len({tuple(row) for row in expected.tokens.tolist()}) > 0.95 * NUM_ROWS
    rows, compared = first_differences(drawn("float32", num_slots, shape), expected)
    assert compared >= 10_000 and rows == 0


@pytest.mark.slow
def test_tokens_of_bfloat16_rarely_do(record_property):
    """Another order of sums rounds otherwise, which now and then decides between two tokens.

    Seen on a CPU with AMX: 54 first differences in 15,838 tokens (.34 %) between 32 and 128 slots,
    at most 2 in 16,882 between meshes; 101 in 14,691 (.69 %) from what float32 draws.
    """
    expected = drawn("bfloat16", *DRAWS[0])
    most = 0
    for num_slots, shape in DRAWS[1:]:
        rows, compared = first_differences(drawn("bfloat16", num_slots, shape), expected)
        record_property(f"first differences, {num_slots} slots on {shape}", f"{rows} of {compared}")
        print(f"{num_slots} slots on {shape}: {rows} first differences in {compared} tokens")
        assert compared >= 10_000 and rows < 0.02 * compared
        most = max(most, rows)
    # Counted in the same way, another number format differs more often.
    other, compared = first_differences(drawn("float32", *DRAWS[0]), expected)
    print(f"float32: {other} in {compared}")
    assert other > most
