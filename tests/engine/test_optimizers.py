"""Optimizers: on a stack of layers each does what it does to every layer by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from subjax.engine import optimizers
from subjax.engine.optimizers import Optimizer
from subjax.nn import lora, transformer
from tests.tiny import ARCH

# Constant, so that a step's size says what the optimizer did.
PLAIN = {"schedule": "constant", "clip_norm": 0.0}


@pytest.fixture(scope="module")
def params():
    return transformer.init(ARCH, jax.random.key(0))


def gradients(tree, step=0):
    keys = jax.random.split(jax.random.key(100 + step), len(jax.tree.leaves(tree)))
    keys = jax.tree.unflatten(jax.tree.structure(tree), list(keys))
    return jax.tree.map(lambda leaf, key: jax.random.normal(key, leaf.shape), tree, keys)


def run(transform, tree, found):
    """Three updates of a tree by the gradients that `found` gives for each."""

    @jax.jit
    def step(tree, state, gradient):
        updates, state = transform.update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state

    state = jax.jit(transform.init)(tree)
    for index in range(3):
        tree, state = step(tree, state, found(index))
    return tree


def trained(transform, tree):
    return run(transform, tree, lambda step: gradients(tree, step))


def of_layer(tree, layer):
    """One layer's own parameters, its matrices (in, out) as optax takes them to be."""
    return jax.tree.map(lambda leaf: leaf[layer].T, tree["layers"])


def one_layer_at_a_time(transform, tree, layer):
    return run(
        transform, of_layer(tree, layer), lambda step: of_layer(gradients(tree, step), layer)
    )


@pytest.mark.parametrize("adapted", [False, True])
def test_muon_on_the_stack_is_muon_on_each_layer(params, adapted):
    tree = lora.init(ARCH, jax.random.key(1), rank=4) if adapted else params
    whole = trained(Optimizer(0.02, kind="muon", **PLAIN).build(9), tree)
    each = contrib.muon(0.02, beta=0.9)  # optax's default is right for single layers
    for layer in range(ARCH.num_layers):
        alone = one_layer_at_a_time(each, tree, layer)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), of_layer(whole, layer), alone
        )


def test_muon_leaves_embeddings_and_norms_to_adamw(params):
    muon = trained(Optimizer(0.02, kind="muon", **PLAIN).build(9), params)
    adamw = trained(optax.adamw(0.02, nesterov=True, weight_decay=0.0), params)
    for name in ("embed", "final_norm"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), muon[name], adamw[name]
        )
    np.testing.assert_allclose(
        muon["layers"]["mlp_norm"]["scale"], adamw["layers"]["mlp_norm"]["scale"], atol=1e-6
    )
    same = jnp.allclose(
        muon["layers"]["mlp"]["up"]["kernel"], adamw["layers"]["mlp"]["up"]["kernel"], atol=1e-3
    )
    assert not same


def test_adafactor_on_the_stack_is_adafactor_on_each_layer(params):
    # Layers of unlike size tell a rule for the stack from a rule for each layer.
    sizes = jnp.array([1.0, 30.0])
    grown = jax.tree.map(
        lambda leaf: leaf * sizes.reshape(-1, *(1,) * (leaf.ndim - 1)), params["layers"]
    )
    tree = {**params, "layers": grown}
    whole = trained(Optimizer(0.02, kind="adafactor", **PLAIN).build(9), tree)
    each = optax.adafactor(0.02)
    for layer in range(ARCH.num_layers):
        alone = one_layer_at_a_time(each, tree, layer)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            of_layer(whole, layer),
            alone,
        )


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("adamw", optax.adamw(0.02, weight_decay=0.1)),
        ("sgd", optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.02))),
        (
            "sign",
            optax.chain(optax.scale_by_sign(), optax.add_decayed_weights(0.1), optax.sgd(0.02)),
        ),
    ],
)
def test_other_kinds_are_optax_own(params, kind, theirs):
    ours = Optimizer(0.02, kind=kind, weight_decay=0.1, **PLAIN)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        trained(ours.build(9), params),
        trained(theirs, params),
    )


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_first_moments_take_half_the_room(params, kind):
    state = Optimizer(0.02, kind=kind, moment_dtype="bfloat16", **PLAIN).build(9).init(params)
    narrow = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.bfloat16]
    assert sum(leaf.size for leaf in narrow) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_schedule_warms_up_and_ends_at_zero():
    rate = Optimizer(1.0, warmup_steps=4, schedule="linear").rate(12)
    np.testing.assert_allclose([rate(s) for s in (0, 2, 4, 8, 12)], [0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize(
    ("field", "name", "known"),
    [
        ("kind", "adam", optimizers.KINDS),
        ("schedule", "sine", optimizers.SCHEDULES),
        ("moment_dtype", "float16", optimizers.MOMENT_DTYPES),
    ],
)
def test_an_unknown_name_is_told_the_known(field, name, known):
    with pytest.raises(ValueError, match=f"'{name}' is unknown: choose one of {', '.join(known)}"):
        Optimizer(0.1, **{field: name})
