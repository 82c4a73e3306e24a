"""Losses at chosen positions: hard labels and forward KL, chunked over the vocabulary.

The hidden states of loss positions are gathered first, so that nothing of size B x T x V ever
exists; the vocabulary is then processed in chunks, so that nothing of size B x C x V does either.
C is the number of loss positions of a row.

Products with the output matrix have the precision of its `precision.Head`; the rest is float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from subjax.nn import activation_sharding
from subjax.nn.precision import Head

VOCAB_CHUNK = 8192


def at_positions(
    hidden: Float[Array, "B T D"], positions: Int[Array, "B C"]
) -> Float[Array, "B C D"]:
    """The hidden states that predict each target."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)


def log_probs(
    hidden: Float[Array, "B C D"], head: Head, targets: Int[Array, "B C"]
) -> Float[Array, "B C"]:
    """Log p(target) under the softmax of the scores, float32, in nats."""
    # Same rounding as in the sum over the vocabulary, so that no probability exceeds one.
    return head.chosen(hidden, targets) - _logsumexp(hidden, head)


def log_probs_and_likeliest(
    hidden: Float[Array, "B C D"], head: Head, targets: Int[Array, "B C"]
) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
    """`log_probs`, and the likeliest token at each position, which greedy decoding would write."""

    def chunk(kernel: Array, ids: Array) -> tuple[Array, Array, Array]:
        scores = head._replace(kernel=kernel).scores(hidden)
        scores = jnp.where(ids[None, None] >= 0, scores, -jnp.inf)
        total = jax.nn.logsumexp(scores, axis=-1)
        return total, scores.max(-1), ids[scores.argmax(-1)]

    def body(running: Any, part: tuple[Array, Array]) -> tuple[Any, None]:
        (total, best, likeliest), (more, found, id) = running, chunk(*part)
        likeliest = jnp.where(found > best, id, likeliest)
        return (jnp.logaddexp(total, more), jnp.maximum(best, found), likeliest), None

    # Chunks are filled up with zeros: ids begin at 1 there, so that those are -1.
    kernels, ids = _chunks((head.kernel, 1 + jnp.arange(len(head.kernel))))
    low = jnp.full(targets.shape, -jnp.inf, jnp.float32)
    start = low, low, jnp.zeros_like(targets)
    (total, _, likeliest), _ = jax.lax.scan(body, start, (kernels, ids - 1))
    return head.chosen(hidden, targets) - total, likeliest


def restricted_log_probs(
    hidden: Float[Array, "B C D"], head: Head, support: Int[Array, " K"]
) -> Float[Array, "B C K"]:
    """Log-probabilities renormalised over the tokens of `support`, in nats."""
    rows = head._replace(kernel=head.kernel[support])
    return jax.nn.log_softmax(rows.scores(hidden), axis=-1)


def chosen_log_probs(
    hidden: Float[Array, "B C D"], head: Head, ids: Int[Array, "B C K"]
) -> Float[Array, "B C K"]:
    """Log-probabilities renormalised over each position's own tokens, in nats.

    Gathers K rows of the kernel per position, B x C x K x D numbers: meant for tens of tokens.
    """
    return jax.nn.log_softmax(head.chosen(hidden, ids), axis=-1)


def forward_kl(
    teacher: Float[Array, "B C K"], student: Float[Array, "B C K"]
) -> Float[Array, "B C"]:
    """KL(teacher || student) from log-probabilities, in nats; -inf in the teacher adds nothing."""
    mass = jnp.exp(teacher)
    return jnp.sum(jnp.where(mass > 0, mass * (teacher - student), 0.0), axis=-1)


def full_kl(
    teacher: Float[Array, "B C D"],
    teacher_head: Head,
    student: Float[Array, "B C D"],
    student_head: Head,
    counted: Bool[Array, " V"],
) -> Float[Array, "B C"]:
    """KL(teacher || student) over the whole vocabulary, in nats, from hidden states.

    Args:
      teacher: the teacher's hidden states at the loss positions.
      teacher_head: the teacher's output matrix.
      student: the student's hidden states at the loss positions.
      student_head: the student's output matrix.
      counted: tokens that both distributions are renormalised over.
    """
    total_teacher = _logsumexp(teacher, teacher_head, counted)
    total_student = _logsumexp(student, student_head, counted)

    @jax.checkpoint
    def body(running: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, None]:
        taught, learning, here = chunk
        log_p = teacher_head._replace(kernel=taught).scores(teacher) - total_teacher[..., None]
        log_q = student_head._replace(kernel=learning).scores(student) - total_student[..., None]
        gap = jnp.where(here[None, None], jnp.exp(log_p) * (log_p - log_q), 0.0)
        return running + gap.sum(-1), None

    start = jnp.zeros(student.shape[:-1], jnp.float32)
    chunks = _chunks((teacher_head.kernel, student_head.kernel, counted))
    total, _ = jax.lax.scan(body, start, chunks)
    return total


def _logsumexp(
    hidden: Float[Array, "B C D"], head: Head, counted: Bool[Array, " V"] | None = None
) -> Float[Array, "B C"]:
    num_tokens = len(head.kernel)
    if counted is None:
        counted = jnp.ones(num_tokens, bool)

    def total(kernel: Array, counted: Array) -> Array:
        scores = head._replace(kernel=kernel).scores(hidden)
        return jax.nn.logsumexp(jnp.where(counted[None, None], scores, -jnp.inf), axis=-1)

    # The backward pass recomputes a chunk's scores instead of keeping them all.
    @jax.checkpoint
    def body(running: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        return jnp.logaddexp(running, total(*chunk)), None

    if num_tokens <= VOCAB_CHUNK:
        return total(head.kernel, counted)
    start = jnp.full(hidden.shape[:-1], -jnp.inf, jnp.float32)
    running, _ = jax.lax.scan(body, start, _chunks((head.kernel, counted)))
    return running


def _chunks(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Cuts the vocabulary axis into equal chunks, [chunks, VOCAB_CHUNK, ...], padded with zeros.

    Devices that share the vocabulary have an equal part of each chunk.
    """
    parts = activation_sharding.vocabulary_parts(len(arrays[0]), VOCAB_CHUNK)
    size = VOCAB_CHUNK // parts

    def cut(array: Array) -> Array:
        shares = array.reshape(parts, -1, *array.shape[1:])
        num_chunks = -(-shares.shape[1] // size)
        room = ((0, 0), (0, num_chunks * size - shares.shape[1])) + ((0, 0),) * (array.ndim - 1)
        cut = jnp.pad(shares, room).reshape(parts, num_chunks, size, *array.shape[1:])
        return cut.swapaxes(0, 1).reshape(num_chunks, VOCAB_CHUNK, *array.shape[1:])

    return tuple(cut(array) for array in arrays)
