"""Theorem 1 and Lemma 1 of the paper (section 6.1, appendix C), measured by number.

A teacher takes a step eps * Delta_T from its initialisation; a student takes a gradient step
Delta_S on the teacher's outputs. From the same initialisation,

    <Delta_S, Delta_T> = eps * E_x[v' M v] + O(eps^2),    v = Jacobian(x) Delta_T,

where M is the mixed derivative of the student's loss, which is positive semidefinite: for a small
enough step of the teacher, the student never moves away from it. All functions take one draw, for
any model given as `apply(params, inputs) -> outputs [B, K]`; run them in float64.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from subjax import check_sums
from subjax.images import mlp

Params = Any
Apply = Callable[[Params, Array], Float[Array, "B K"]]

LOSSES = {"kl": mlp.kl, "squared_error": mlp.squared_error}


@dataclasses.dataclass(frozen=True)
class Draw:
    """One draw: both initialisations, the teacher's step, and the student's inputs.

    Attributes:
      teacher: the teacher's initialisation.
      student: the student's initialisation; the theorem assumes the same.
      direction: Delta_T, the teacher's step at eps = 1, a tree like `teacher`.
      inputs: the student's inputs, [B, P].
      key: for random choices in the student's step.
    """

    teacher: Params
    student: Params
    direction: Params
    inputs: Array
    key: Key[Array, ""]


def measure(
    apply: Apply,
    teacher_loss: Callable[[Params], Array],
    draw: Draw,
    epsilons: Float[Array, " E"],
    *,
    loss: str,
    step: str,
    rate: float = 1.0,
    rank: int = 4,
) -> dict[str, Array]:
    """The quantities of the theorem, over a grid of eps.

    Args:
      apply: the outputs that the student learns.
      teacher_loss: the loss that the teacher's step lowers.
      draw: the draw.
      epsilons: sizes of the teacher's step.
      loss: "kl" (softmax cross-entropy up to a constant) or "squared_error" (mean over outputs).
      step: the student's step: "gradient" as in the theorem; "adam", Adam's first step; "lora",
        a gradient step of low-rank factors with B = 0; "sampled", on one label drawn from the
        teacher's softmax for each input.
      rate: the student's learning rate, which multiplies Delta_S.
      rank: rank for "lora".

    Returns:
      inner [E], <Delta_S, Delta_T>; predicted, E_x[v' M v]; change [E] of the teacher's loss by the
      student's step; displacement, the norm of Delta_T.

    Raises:
      ValueError: sums on this CPU would be wrong (`subjax.check_sums`).
    """
    check_sums()

    def update(eps: Array) -> Params:
        moved = jax.tree.map(lambda p, d: p + eps * d, draw.teacher, draw.direction)
        target = jax.lax.stop_gradient(apply(moved, draw.inputs))

        def total(student: Params) -> Array:
            outputs = apply(student, draw.inputs)
            if step == "sampled":
                labels = jax.random.categorical(draw.key, target)
                return jnp.mean(mlp.cross_entropy(outputs, labels))
            return jnp.mean(LOSSES[loss](outputs, target))

        gradient = jax.grad(total)(draw.student)
        return jax.tree.map(jnp.negative, _stepped(gradient, step, draw.key, rank))

    def at(eps: Array) -> tuple[Array, Array]:
        delta = update(eps)
        student = jax.tree.map(lambda p, d: p + rate * d, draw.student, delta)
        return _inner(delta, draw.direction), teacher_loss(student) - teacher_loss(draw.student)

    inner, change = jax.lax.map(at, epsilons)
    return {
        "inner": inner,
        "change": change,
        "predicted": predicted(apply, draw, loss=loss),
        "displacement": jnp.sqrt(_inner(draw.direction, draw.direction)),
    }


def predicted(apply: Apply, draw: Draw, *, loss: str) -> Float[Array, ""]:
    """E_x[v' M v], the coefficient of eps, from one Jacobian-vector product."""
    outputs, v = jax.jvp(lambda p: apply(p, draw.inputs), (draw.teacher,), (draw.direction,))
    if loss == "squared_error":
        return jnp.mean(2 * jnp.mean(v**2, axis=-1))  # M = 2 / K times the identity
    p = jax.nn.softmax(outputs, axis=-1)  # M = diag(p) - p p'
    return jnp.mean(jnp.sum(p * v**2, axis=-1) - jnp.sum(p * v, axis=-1) ** 2)


def _stepped(gradient: Params, step: str, key: Array, rank: int) -> Params:
    """The negative of the student's step."""
    if step == "adam":
        # Adam's first step divides each entry by its absolute value.
        return jax.tree.map(lambda g: g / (jnp.abs(g) + 1e-30), gradient)
    if step != "lora":
        return gradient
    leaves, structure = jax.tree.flatten(gradient)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, map(lambda g, k: _low_rank(g, k, rank), leaves, keys))


def _low_rank(gradient: Array, key: Array, rank: int) -> Array:
    """First change of a kernel W + B A when B = 0: A has no gradient, and B's is G A'."""
    if gradient.ndim < 2:
        return jnp.zeros_like(gradient)  # biases have no adapter
    *layers, _, num_in = gradient.shape
    a = jax.random.normal(key, (*layers, rank, num_in)) * num_in**-0.5
    return gradient @ jnp.swapaxes(a, -1, -2) @ a


def _inner(one: Params, other: Params) -> Array:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), one, other)
    return jax.tree.reduce(jnp.add, products)
