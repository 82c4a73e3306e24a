"""Losses against their definitions, and the chunked forms against the plain ones."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax.nn import losses
from subjax.nn.precision import Head

HIDDEN = jax.random.normal(jax.random.key(0), (2, 3, 8))
KERNEL = jax.random.normal(jax.random.key(1), (50, 8))
TARGETS = jax.random.randint(jax.random.key(2), (2, 3), 0, 50)


def plain(hidden, kernel):
    scores = jax.nn.log_softmax(hidden @ kernel.T, axis=-1)
    return jnp.take_along_axis(scores, TARGETS[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("chunk", [7, 10, 50, 8192])
def test_chunks_change_neither_value_nor_gradient(monkeypatch, chunk):
    monkeypatch.setattr(losses, "VOCAB_CHUNK", chunk)
    np.testing.assert_allclose(
        losses.log_probs(HIDDEN, Head(KERNEL), TARGETS), plain(HIDDEN, KERNEL), atol=1e-5
    )
    ours = jax.grad(lambda h, k: losses.log_probs(h, Head(k), TARGETS).sum(), (0, 1))(
        HIDDEN, KERNEL
    )
    theirs = jax.grad(lambda h, k: plain(h, k).sum(), (0, 1))(HIDDEN, KERNEL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("chunk", [10, 8192])
def test_no_position_ever_has_all_scores(monkeypatch, chunk):
    monkeypatch.setattr(losses, "VOCAB_CHUNK", chunk)

    def step(hidden, kernel):
        head = Head(kernel)
        drawn = losses.log_probs(hidden, head, TARGETS)
        return (drawn + losses.full_kl(HIDDEN, head, hidden, head, jnp.ones(50, bool))).sum()

    compiled = jax.jit(jax.grad(step, (0, 1))).lower(HIDDEN, KERNEL).compile().as_text()
    sizes = {math.prod(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", compiled)}
    # Six positions of fifty tokens, in whatever shape, in chunks too; nothing else has as many.
    assert (6 * 50 in sizes) == (chunk >= 50), sizes


def test_a_restriction_renormalises():
    support = jnp.array([3, 9, 40])
    log_p = losses.restricted_log_probs(HIDDEN, Head(KERNEL), support)
    np.testing.assert_allclose(jnp.exp(log_p).sum(-1), 1.0, atol=1e-6)
    full = jax.nn.softmax(HIDDEN @ KERNEL.T, axis=-1)[..., support]
    np.testing.assert_allclose(jnp.exp(log_p), full / full.sum(-1, keepdims=True), atol=1e-6)


def test_forward_kl_is_zero_at_equality_and_positive_elsewhere():
    p = jax.nn.log_softmax(jax.random.normal(jax.random.key(3), (2, 3, 5)), axis=-1)
    q = jax.nn.log_softmax(jax.random.normal(jax.random.key(4), (2, 3, 5)), axis=-1)
    np.testing.assert_allclose(losses.forward_kl(p, p), 0.0, atol=1e-6)
    assert (losses.forward_kl(p, q) > 0).all()
    certain = jnp.log(jnp.eye(5)[:3])[None]  # -inf everywhere else
    assert np.isfinite(losses.forward_kl(jnp.repeat(certain, 2, 0), q)).all()


@pytest.mark.parametrize("chunk", [7, 50, 8192])
def test_full_kl_is_the_kl_of_the_counted_tokens(monkeypatch, chunk):
    monkeypatch.setattr(losses, "VOCAB_CHUNK", chunk)
    teacher = jax.random.normal(jax.random.key(5), (2, 3, 8))
    teacher_kernel = jax.random.normal(jax.random.key(6), (50, 8))
    counted = jnp.ones(50, bool).at[jnp.array([4, 17])].set(False)
    keep = np.flatnonzero(counted)

    def plain_kl(hidden, kernel):
        p = jax.nn.log_softmax((teacher @ teacher_kernel.T)[..., keep], axis=-1)
        q = jax.nn.log_softmax((hidden @ kernel.T)[..., keep], axis=-1)
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    def ours(hidden, kernel):
        return losses.full_kl(teacher, Head(teacher_kernel), hidden, Head(kernel), counted)

    np.testing.assert_allclose(ours(HIDDEN, KERNEL), plain_kl(HIDDEN, KERNEL), atol=1e-4)

    def gradient(kl):
        return jax.grad(lambda h, k: kl(h, k).sum(), (0, 1))(HIDDEN, KERNEL)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        gradient(ours),
        gradient(plain_kl),
    )
