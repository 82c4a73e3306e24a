"""The decoder: causal, the same with a cache and without, the same under any way of running it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax.nn import lora, transformer
from subjax.nn.architecture import Architecture

ARCH = Architecture(
    vocab_size=31, num_layers=3, width=16, num_heads=4, num_kv_heads=2, head_dim=6, ffn_width=20
)


@pytest.fixture(scope="module")
def params():
    return transformer.init(ARCH, jax.random.key(0))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (3, 9), 0, ARCH.vocab_size)


def test_params_have_the_documented_paths_and_count(params):
    flat = {
        "/".join(p.key for p in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    assert {"embed/embedding", "layers/attn/q/kernel", "layers/mlp/down/kernel"} <= flat
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == transformer.num_params(ARCH)


def test_no_token_reaches_back(params, tokens):
    def score(embedding):
        changed = {**params, "embed": {"embedding": embedding}}
        return transformer.forward(ARCH, changed, unique)[0, 4].sum()

    unique = jnp.arange(9)[None]  # one embedding row per position
    gradient = jax.grad(score)(params["embed"]["embedding"])
    reach = np.abs(gradient).sum(axis=1)
    assert (reach[:5] > 0).all()
    assert (reach[5:] == 0).all()


@pytest.mark.parametrize("num_layers", [3, 41], ids=["unrolled", "layer by layer"])
@pytest.mark.parametrize("period", [1, 3], ids=["alike", "every third looks everywhere"])
def test_decoding_with_a_cache_equals_the_whole_row(num_layers, period, tokens):
    local = tuple(bool(i % period) for i in range(num_layers)) if period > 1 else ()
    arch = dataclasses.replace(ARCH, num_layers=num_layers, local=local, window=3)
    params = transformer.init(arch, jax.random.key(0))
    added = 0.1 * jax.random.normal(jax.random.key(2), (num_layers, arch.width))
    whole = transformer.forward(arch, params, tokens, residual_add=added)
    start = 5
    hidden, (keys, values) = transformer.prefill(
        arch, params, tokens[:, :start], residual_add=added
    )
    np.testing.assert_allclose(hidden, whole[:, :start], atol=1e-4)
    room = ((0, 0), (0, 0), (0, 0), (0, 9 - start), (0, 0))
    cache = transformer.decode_cache(jnp.pad(keys, room), jnp.pad(values, room))
    assert len(cache) == (3 if num_layers == 3 else 1)
    layers = transformer.decode_layers(params)
    step = jax.jit(
        lambda *args: transformer.decode_step(arch, params, layers, *args, residual_add=added)
    )
    for position in range(start, 9):
        hidden, cache = step(tokens[:, position], jnp.full(3, position), cache)
        np.testing.assert_allclose(hidden, whole[:, position], atol=1e-4)


@pytest.mark.parametrize("period", [1, 3], ids=["alike", "every third looks everywhere"])
def test_rows_behind_a_prefix_that_all_share_are_read_as_whole_rows_are(period, params, tokens):
    local = tuple(bool(i % period) for i in range(ARCH.num_layers)) if period > 1 else ()
    arch, shared = dataclasses.replace(ARCH, local=local, window=3), 4
    rows = tokens.at[:, :shared].set(tokens[0, :shared])
    expected, (keys, values) = transformer.prefill(arch, params, rows)
    _, past = transformer.prefill(arch, params, rows[:1, :shared])
    hidden, found = transformer.prefill(arch, params, rows[:, shared:], past=past)
    np.testing.assert_allclose(hidden, expected[:, shared:], atol=1e-5)
    for whole, behind in zip((keys, values), found, strict=True):
        np.testing.assert_allclose(behind, whole[:, :, :, shared:], atol=1e-5)


@pytest.mark.parametrize("policy", ["full", "dots", "offload"])
def test_remat_changes_memory_and_not_values(params, tokens, policy):
    def loss(params, remat):
        return jnp.sum(transformer.forward(ARCH, params, tokens, remat=remat) ** 2)

    plain = jax.grad(loss)(params, "none")
    rematerialised = jax.jit(jax.grad(loss), static_argnums=1)(params, policy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, rematerialised)


def test_steering_adds_to_the_residual_stream(params, tokens):
    plain = transformer.forward(ARCH, params, tokens)
    none = transformer.forward(ARCH, params, tokens, residual_add=jnp.zeros((3, 16)))
    some = transformer.forward(ARCH, params, tokens, residual_add=jnp.ones((3, 16)))
    np.testing.assert_array_equal(plain, none)
    assert np.abs(some - plain).max() > 0.1


def test_the_adapter_changes_nothing_until_b_does(params, tokens):
    adapter = lora.init(ARCH, jax.random.key(2), rank=2)
    plain = transformer.forward(ARCH, params, tokens)
    fresh = transformer.forward(ARCH, params, tokens, adapter=lora.scaled(adapter, 2.0))
    np.testing.assert_array_equal(plain, fresh)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="num_kv_heads"):
        Architecture(31, 1, 16, 4, 3, 6, 20)
    with pytest.raises(ValueError, match="head_dim 5 is odd"):
        Architecture(31, 1, 16, 4, 2, 5, 20)
