"""Classifiers against numpy and scipy; noise is a function of key and id alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from subjax.images import mlp

SHAPE = mlp.Shape(num_inputs=6, widths=(7, 5), num_aux=3)


def test_initial_kernels_have_the_papers_spread_and_biases_are_zero():
    shape = mlp.Shape(num_inputs=784, widths=(256, 256))
    layers = mlp.init(shape, jax.random.key(0))
    assert list(layers) == ["layer_0", "layer_1", "layer_2"]
    for layer, num_in in zip(layers.values(), (784, 256, 256), strict=True):
        assert layer["kernel"].std() == pytest.approx(num_in**-0.5, rel=0.03)
        assert not layer["bias"].any()
    assert layers["layer_2"]["kernel"].shape == (13, 256)


def test_layers_of_equal_sizes_start_equal_whatever_else_differs():
    layers = mlp.init(SHAPE, jax.random.key(1))
    other = mlp.Shape(num_inputs=6, widths=(7, 5), num_aux=3, activation="gelu", biases=False)
    for name, layer in mlp.init(other, jax.random.key(1)).items():
        assert list(layer) == ["kernel"]
        np.testing.assert_array_equal(layer["kernel"], layers[name]["kernel"])
    deeper = mlp.init(mlp.Shape(num_inputs=6, widths=(7, 5, 5)), jax.random.key(1))
    np.testing.assert_array_equal(deeper["layer_0"]["kernel"], layers["layer_0"]["kernel"])


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": scipy.special.expit,
    "gelu": lambda x: x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biases", [True, False])
def test_forward_is_that_of_numpy(activation, biases):
    shape = mlp.Shape(num_inputs=6, widths=(7, 5), activation=activation, biases=biases)
    layers = mlp.init(shape, jax.random.key(2))
    layers = jax.tree.map(lambda leaf: leaf + 0.1, layers)
    images = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    x = images
    for i, layer in enumerate(layers.values()):
        x = ACTIVATIONS[activation](x) if i else x
        x = x @ np.asarray(layer["kernel"]).T + (np.asarray(layer["bias"]) if biases else 0)
    np.testing.assert_allclose(mlp.forward(shape, layers, jnp.array(images)), x, atol=1e-5)


def test_outputs_are_classes_then_auxiliary():
    outputs = np.arange(13)
    assert outputs[SHAPE.support("classes")].tolist() == list(range(10))
    assert outputs[SHAPE.support("aux")].tolist() == [10, 11, 12]
    assert outputs[SHAPE.support("all")].tolist() == list(range(13))


def test_losses_are_those_of_scipy():
    rng = np.random.default_rng(1)
    logits, target = (jnp.array(rng.normal(size=(5, 4)), jnp.float32) for _ in range(2))
    p, q = scipy.special.softmax(target, axis=1), scipy.special.softmax(logits, axis=1)
    expected = scipy.special.rel_entr(p, q).sum(axis=1)
    np.testing.assert_allclose(mlp.kl(logits, target), expected, atol=1e-6)
    np.testing.assert_allclose(mlp.kl(target, target), 0, atol=1e-6)
    labels = jnp.array([0, 3, 1, 2, 0])
    nats = -np.log(q[np.arange(5), labels])
    np.testing.assert_allclose(mlp.cross_entropy(logits, labels), nats, atol=1e-6)
    squares = np.square(logits - target).mean(axis=1)
    np.testing.assert_allclose(mlp.squared_error(logits, target), squares, atol=1e-6)


def test_noise_is_uniform_and_an_image_depends_on_its_id_alone():
    key = jax.random.key(3)
    images = mlp.noise(key, jnp.arange(300), 50)
    assert images.min() >= -1
    assert images.max() < 1
    assert float(images.mean()) == pytest.approx(0, abs=0.02)
    assert float(images.std()) == pytest.approx(3**-0.5, abs=0.01)
    np.testing.assert_array_equal(mlp.noise(key, jnp.array([7, 2]), 50), images[jnp.array([7, 2])])
    assert not np.array_equal(mlp.noise(jax.random.key(4), jnp.arange(300), 50), images)


def test_noise_is_what_jax_random_draws():
    key, ids = jax.random.key(5), jnp.array([0, 3, 59_999, 2**31 - 1])
    for num_pixels in (1, 784):
        draws = [
            jax.random.uniform(jax.random.fold_in(key, id), (num_pixels,), minval=-1.0)
            for id in ids
        ]
        np.testing.assert_array_equal(mlp.noise(key, ids, num_pixels), jnp.stack(draws))


def test_bytes_become_numbers_from_minus_one_to_one():
    found = mlp.normalised(jnp.array([[0, 255], [51, 204]], jnp.uint8))
    np.testing.assert_allclose(found, [[-1, 1], [-0.6, 0.6]], atol=1e-6)
