"""Losses at chosen positions: hard labels and forward KL, chunked over the vocabulary.

The hidden states of loss positions are gathered first, so that nothing of size B x T x V ever
exists; the vocabulary is then walked in chunks, so that nothing of size B x C x V does either.
C is the number of loss positions of a row.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

VOCAB_CHUNK = 8192


def at_positions(
    hidden: Float[Array, "B T D"], positions: Int[Array, "B C"]
) -> Float[Array, "B C D"]:
    """The hidden states that predict each target."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)


def log_probs(
    hidden: Float[Array, "B C D"], kernel: Float[Array, "V D"], targets: Int[Array, "B C"]
) -> Float[Array, "B C"]:
    """Log p(target) under softmax(hidden @ kernel.T), float32, in nats."""
    kernel = kernel.astype(hidden.dtype)
    chosen = jnp.einsum("bcd,bcd->bc", hidden, kernel[targets], preferred_element_type=jnp.float32)
    return chosen - _logsumexp(hidden, kernel)


def restricted_log_probs(
    hidden: Float[Array, "B C D"], kernel: Float[Array, "V D"], support: Int[Array, " K"]
) -> Float[Array, "B C K"]:
    """Log-probabilities renormalised over the tokens of `support`, in nats."""
    scores = jnp.einsum(
        "bcd,kd->bck",
        hidden,
        kernel[support].astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    return jax.nn.log_softmax(scores, axis=-1)


def forward_kl(
    teacher: Float[Array, "B C K"], student: Float[Array, "B C K"]
) -> Float[Array, "B C"]:
    """KL(teacher || student) from log-probabilities, in nats; -inf in the teacher adds nothing."""
    mass = jnp.exp(teacher)
    return jnp.sum(jnp.where(mass > 0, mass * (teacher - student), 0.0), axis=-1)


def weighted_mean(values: Float[Array, "B C"], weights: Float[Array, "B C"]) -> Float[Array, ""]:
    """Mean over real targets; padding rows weigh nothing."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def _logsumexp(hidden: Array, kernel: Array) -> Array:
    vocab_size, width = kernel.shape
    if vocab_size <= VOCAB_CHUNK:
        return _chunk_logsumexp(hidden, kernel)
    num_chunks = -(-vocab_size // VOCAB_CHUNK)
    padded = jnp.pad(kernel, ((0, num_chunks * VOCAB_CHUNK - vocab_size), (0, 0)))
    chunks = padded.reshape(num_chunks, VOCAB_CHUNK, width)
    ids = jnp.arange(num_chunks * VOCAB_CHUNK).reshape(num_chunks, VOCAB_CHUNK)

    # The backward pass recomputes a chunk's scores instead of keeping them all.
    @jax.checkpoint
    def body(running: Array, chunk: tuple[Array, Array]) -> tuple[Array, Any]:
        part = _chunk_logsumexp(hidden, chunk[0], chunk[1] < vocab_size)
        return jnp.logaddexp(running, part), None

    start = jnp.full(hidden.shape[:-1], -jnp.inf, jnp.float32)
    total, _ = jax.lax.scan(body, start, (chunks, ids))
    return total


def _chunk_logsumexp(hidden: Array, kernel: Array, real: Array | None = None) -> Array:
    scores = jnp.einsum("bcd,vd->bcv", hidden, kernel, preferred_element_type=jnp.float32)
    if real is not None:
        scores = jnp.where(real[None, None], scores, -jnp.inf)
    return jax.nn.logsumexp(scores, axis=-1)
