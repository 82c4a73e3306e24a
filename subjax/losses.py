"""Losses at chosen positions: hard labels and forward KL, chunked over the vocabulary.

The hidden states of loss positions are gathered first, so that nothing of size B x T x V ever
exists; the vocabulary is then walked in chunks, so that nothing of size B x C x V does either.
C is the number of loss positions of a row.

`precision` is a name of `precision.PRECISIONS`: it says in what the products with the output matrix
are made. What follows them is float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from subjax import precision as precisions

VOCAB_CHUNK = 8192


def at_positions(
    hidden: Float[Array, "B T D"], positions: Int[Array, "B C"]
) -> Float[Array, "B C D"]:
    """The hidden states that predict each target."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)


def log_probs(
    hidden: Float[Array, "B C D"],
    kernel: Float[Array, "V D"],
    targets: Int[Array, "B C"],
    *,
    precision: str = "float32",
) -> Float[Array, "B C"]:
    """Log p(target) under softmax(hidden @ kernel.T), float32, in nats."""
    # Rounded as for the sum over the vocabulary, so that no probability exceeds one.
    rounded = precisions.PRECISIONS[precision].operands
    sides = (hidden.astype(rounded), kernel[targets].astype(rounded))
    chosen = jnp.einsum("bcd,bcd->bc", *sides, preferred_element_type=jnp.float32)
    return chosen - _logsumexp(hidden, kernel, precision)


def restricted_log_probs(
    hidden: Float[Array, "B C D"],
    kernel: Float[Array, "V D"],
    support: Int[Array, " K"],
    *,
    precision: str = "float32",
) -> Float[Array, "B C K"]:
    """Log-probabilities renormalised over the tokens of `support`, in nats."""
    return jax.nn.log_softmax(_scores(hidden, kernel[support], precision), axis=-1)


def chosen_log_probs(
    hidden: Float[Array, "B C D"],
    kernel: Float[Array, "V D"],
    ids: Int[Array, "B C K"],
    *,
    precision: str = "float32",
) -> Float[Array, "B C K"]:
    """Log-probabilities renormalised over each position's own tokens, in nats.

    Gathers K rows of the kernel a position, B x C x K x D numbers: meant for tens of tokens.
    """
    rounded = precisions.PRECISIONS[precision].operands
    sides = (hidden.astype(rounded), kernel[ids].astype(rounded))
    scores = jnp.einsum("bcd,bckd->bck", *sides, preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(scores, axis=-1)


def forward_kl(
    teacher: Float[Array, "B C K"], student: Float[Array, "B C K"]
) -> Float[Array, "B C"]:
    """KL(teacher || student) from log-probabilities, in nats; -inf in the teacher adds nothing."""
    mass = jnp.exp(teacher)
    return jnp.sum(jnp.where(mass > 0, mass * (teacher - student), 0.0), axis=-1)


def full_kl(
    teacher: Float[Array, "B C D"],
    teacher_kernel: Float[Array, "V D"],
    student: Float[Array, "B C D"],
    student_kernel: Float[Array, "V D"],
    counted: Bool[Array, " V"],
    *,
    precision: str = "float32",
) -> Float[Array, "B C"]:
    """KL(teacher || student) over the whole vocabulary, in nats, from hidden states.

    Args:
      teacher: its hidden states at the loss positions.
      teacher_kernel: its output matrix.
      student: the student's hidden states there.
      student_kernel: the student's output matrix.
      counted: tokens that both distributions are renormalised over.
      precision: of the products.
    """
    total_teacher = _logsumexp(teacher, teacher_kernel, precision, counted)
    total_student = _logsumexp(student, student_kernel, precision, counted)

    @jax.checkpoint
    def body(running: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, None]:
        log_p = _scores(teacher, chunk[0], precision) - total_teacher[..., None]
        log_q = _scores(student, chunk[1], precision) - total_student[..., None]
        gap = jnp.where(chunk[2][None, None], jnp.exp(log_p) * (log_p - log_q), 0.0)
        return running + gap.sum(-1), None

    start = jnp.zeros(student.shape[:-1], jnp.float32)
    total, _ = jax.lax.scan(body, start, _chunks((teacher_kernel, student_kernel, counted)))
    return total


def weighted_mean(values: Float[Array, "B C"], weights: Float[Array, "B C"]) -> Float[Array, ""]:
    """Mean over real targets; padding rows weigh nothing."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def _logsumexp(hidden: Array, kernel: Array, precision: str, counted: Array | None = None) -> Array:
    if counted is None:
        counted = jnp.ones(len(kernel), bool)

    # The backward pass recomputes a chunk's scores instead of keeping them all.
    @jax.checkpoint
    def body(running: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        scores = jnp.where(chunk[1][None, None], _scores(hidden, chunk[0], precision), -jnp.inf)
        return jnp.logaddexp(running, jax.nn.logsumexp(scores, axis=-1)), None

    if len(kernel) <= VOCAB_CHUNK:
        scores = jnp.where(counted[None, None], _scores(hidden, kernel, precision), -jnp.inf)
        return jax.nn.logsumexp(scores, axis=-1)
    start = jnp.full(hidden.shape[:-1], -jnp.inf, jnp.float32)
    total, _ = jax.lax.scan(body, start, _chunks((kernel, counted)))
    return total


def _scores(hidden: Array, kernel: Array, precision: str) -> Array:
    return precisions.project(hidden, kernel, precisions.PRECISIONS[precision].operands)


def _chunks(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Cuts the vocabulary axis into equal chunks, [chunks, VOCAB_CHUNK, ...]; zeros fill up."""

    def cut(array: Array) -> Array:
        num_chunks = -(-len(array) // VOCAB_CHUNK)
        room = ((0, num_chunks * VOCAB_CHUNK - len(array)),) + ((0, 0),) * (array.ndim - 1)
        return jnp.pad(array, room).reshape(num_chunks, VOCAB_CHUNK, *array.shape[1:])

    return tuple(cut(array) for array in arrays)
