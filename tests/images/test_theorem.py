"""The measured quantities against explicit Jacobians, Hessians and an adapter's own gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax.images import mlp, theorem

SHAPE = mlp.Shape(num_inputs=6, widths=(7,), num_aux=3, activation="gelu")
EPSILONS = (1e-6, 1e-5, 1e-4, 1e-3)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def apply(params, x, logits="aux"):
    return mlp.forward(SHAPE, params, x, precision="float64")[:, SHAPE.support(logits)]


def teacher_loss(params):
    x = mlp.noise(jax.random.key(9), jnp.arange(5), 6)
    return jnp.mean(mlp.cross_entropy(apply(params, x, "classes"), jnp.array([0, 3, 3, 1, 9])))


def draw(seed=0, **changes):
    teacher = mlp.init(SHAPE, jax.random.key(seed))
    fields = {
        "teacher": teacher,
        "student": teacher,
        "direction": jax.tree.map(jnp.negative, jax.grad(teacher_loss)(teacher)),
        "inputs": mlp.noise(jax.random.key(seed + 50), jnp.arange(8), 6),
        "key": jax.random.key(seed + 70),
    }
    return theorem.Draw(**(fields | changes))


def measure(one, **options):
    options = {"loss": "kl", "step": "gradient"} | options
    found = theorem.measure(apply, teacher_loss, one, jnp.array(EPSILONS), **options)
    return jax.device_get(found)


@pytest.mark.parametrize("loss", theorem.LOSSES)
def test_the_prediction_is_the_quadratic_form_of_the_mixed_derivative(loss):
    one = draw()
    outputs, v = jax.jvp(lambda p: apply(p, one.inputs), (one.teacher,), (one.direction,))
    expected = []
    for z, direction in zip(outputs, v, strict=True):

        def of_target(y, z=z):
            return jax.grad(lambda z: theorem.LOSSES[loss](z[None], y[None])[0])(z)

        mixed = -jax.jacobian(of_target)(z)  # M_ij = -d2 L / dz_i dy_j at z = y
        expected.append(direction @ mixed @ direction)
    found = theorem.predicted(apply, one, loss=loss)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-10)


@pytest.mark.parametrize("loss", theorem.LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_from_one_initialisation_the_product_is_positive_and_as_predicted(loss, seed):
    found = measure(draw(seed), loss=loss)
    ratio = found["inner"] / (np.array(EPSILONS) * found["predicted"])
    np.testing.assert_allclose(ratio, 1, atol=np.array(EPSILONS).max() * 50)
    assert abs(ratio[0] - 1) < 1e-4 < abs(ratio[-1] - 1) * 1e4
    assert (found["change"] < 0).all()


def test_the_inner_product_is_that_of_the_two_updates():
    one, eps = draw(), EPSILONS[-1]
    moved = jax.tree.map(lambda p, d: p + eps * d, one.teacher, one.direction)

    def loss(student):
        return jnp.mean(mlp.kl(apply(student, one.inputs), apply(moved, one.inputs)))

    gradient = jax.grad(loss)(one.student)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(one.direction), strict=True)
    expected = -sum(float((g * d).sum()) for g, d in pairs)
    assert measure(one)["inner"][-1] == pytest.approx(expected, rel=1e-12)


def test_where_the_teacher_moves_only_what_students_do_not_see_the_product_is_zero():
    one = draw()
    unseen = jnp.arange(13) >= 10
    direction = jax.tree.map(jnp.zeros_like, one.direction)
    direction["layer_1"] = jax.tree.map(lambda d: d.at[unseen].set(0), one.direction["layer_1"])
    found = measure(draw(direction=direction))
    assert not found["inner"].any()
    assert found["predicted"] == 0


def test_from_another_initialisation_the_product_does_not_vanish_with_eps():
    inner = measure(draw(student=mlp.init(SHAPE, jax.random.key(99))))["inner"]
    assert abs(inner[0] / inner[1] - 1) < 1e-3


def test_adam_moves_every_weight_alike():
    one = draw()
    found = measure(one, step="adam")["inner"]
    leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(one.direction)])
    assert abs(found).max() <= np.abs(leaves).sum() * (1 + 1e-9)
    assert found[0] == pytest.approx(found[1], rel=1e-2)  # the size of eps is lost


def test_low_rank_steps_are_those_of_an_adapter_whose_second_factor_is_zero():
    kernel = jax.random.normal(jax.random.key(0), (4, 6, 5))  # of four layers
    key = jax.random.key(1)
    a = jax.random.normal(key, (4, 2, 5)) * 5**-0.5

    def loss(a, b):
        return jnp.sum(jnp.sin(kernel + b @ a))

    grad_a, grad_b = jax.grad(loss, argnums=(0, 1))(a, jnp.zeros((4, 6, 2)))
    assert not grad_a.any()
    found = theorem._low_rank(jnp.cos(kernel), key, 2)
    np.testing.assert_allclose(found, grad_b @ a, atol=1e-12)
    assert not theorem._low_rank(jnp.ones(5), key, 2).any()


def test_sampled_labels_are_right_on_average():
    one = draw(inputs=jnp.repeat(draw().inputs[:1], 40_000, axis=0))
    eps = jnp.array([1.0])
    run = functools.partial(theorem.measure, apply, teacher_loss, one, eps, loss="kl")
    exact, sampled = run(step="gradient"), run(step="sampled")
    assert float(sampled["inner"][0]) == pytest.approx(float(exact["inner"][0]), abs=0.01)
