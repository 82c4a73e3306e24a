"""Faster ways to attend, the kernel run operation by operation, against the einsum."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subjax.nn import attention, functional, sharding
from tests.tiny import ARCH

WIDE = dataclasses.replace(ARCH, num_heads=4, num_kv_heads=2, head_dim=128)
CASES = {
    "causal": (WIDE, False),
    "all_heads": (dataclasses.replace(WIDE, num_kv_heads=4), False),
    "one_kv_head": (dataclasses.replace(WIDE, num_kv_heads=1, query_scale=77), False),
    "windowed": (dataclasses.replace(WIDE, window=50, local=(True, False)), True),
    "capped": (dataclasses.replace(WIDE, attention_softcap=3.0), False),
    "capped_windowed": (
        dataclasses.replace(WIDE, attention_softcap=3.0, window=129, local=(True, False)),
        True,
    ),
}


def heads(arch, length=256):
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, length, arch.num_heads, arch.head_dim))
    k, v = (
        jax.random.normal(key, (2, arch.num_kv_heads, length, arch.head_dim)) for key in keys[1:]
    )
    return q, k, v


def reference(arch, local, q, k, v, segments=None):
    length = q.shape[1]
    views = functional.views(arch, jnp.arange(length)[None], length)
    mask = views[local].mask
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    return functional.attend(arch, q, k, v, mask, jax.lax.Precision.HIGHEST)


@pytest.mark.parametrize("name", CASES)
def test_kernel_computes_what_the_einsum_does(name):
    arch, local = CASES[name]
    rows = heads(arch)
    fast = attention.splash(arch, *rows, local=local, interpret=True)
    np.testing.assert_allclose(fast, reference(arch, local, *rows), atol=2e-5)


@pytest.mark.parametrize("name", ["causal", "windowed", "capped"])
def test_kernel_has_the_einsums_gradients(name):
    arch, local = CASES[name]
    rows = heads(arch)
    weights = jax.random.normal(jax.random.key(1), rows[0].shape)

    def fast(*rows):
        return jnp.sum(weights * attention.splash(arch, *rows, local=local, interpret=True))

    def slow(*rows):
        return jnp.sum(weights * reference(arch, local, *rows))

    for ours, theirs in zip(
        jax.grad(fast, (0, 1, 2))(*rows), jax.grad(slow, (0, 1, 2))(*rows), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_segments_keep_packed_rows_apart():
    rows = heads(WIDE)
    segments = jnp.repeat(jnp.array([[0, 1], [3, 2]]), 128, axis=1)
    fast = attention.splash(WIDE, *rows, segments=segments, interpret=True)
    np.testing.assert_allclose(fast, reference(WIDE, False, *rows, segments), atol=2e-5)
    alone = attention.splash(WIDE, *rows, interpret=True)
    assert not np.allclose(fast, alone, atol=1e-2)


def uneven_segments():
    """Two packed rows of 12 tokens: their segments, and where the tokens of each stand."""
    segments = np.array(
        [[1, 1, 1, 2, 2, 2, 2, 3, 0, 0, 0, 0], [1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 0, 0]]
    )
    places = np.full((2, 4, 5), -1)
    for row in range(2):
        for number in range(1, 4):
            found = np.flatnonzero(segments[row] == number)
            places[row, number - 1, : len(found)] = found
    return jnp.array(segments), jnp.array(places)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", ["causal", "one_kv_head", "near"])
def test_segments_attend_by_themselves_as_in_whole_packed_rows(name, traced):
    near = {"window": 3, "local": (True, False)}
    arch, local = (dataclasses.replace(WIDE, **near), True) if name == "near" else CASES[name]
    rows, (segments, places) = heads(arch, length=12), uneven_segments()
    pulls = jax.random.normal(jax.random.key(1), rows[0].shape)
    real = (segments > 0)[..., None, None]

    def whole(*rows):
        return jnp.where(real, reference(arch, local, *rows, segments), 0)

    def apart(*rows, near=local):
        return attention.by_segment(arch, segments, places, "float32", near=near)(*rows)

    if traced:
        apart = jax.jit(functools.partial(apart, near=jnp.array(local)))
    np.testing.assert_allclose(apart(*rows), whole(*rows), atol=2e-5)
    gradients = [
        jax.grad(lambda *rows: jnp.sum(pulls * way(*rows)), (0, 1, 2))(*rows)  # noqa: B023
        for way in (whole, apart)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_segments_that_attend_by_themselves_have_no_other_scores():
    segments, places = uneven_segments()
    attend = attention.causal(*(WIDE, 12, "float32"), near=False, segments=segments, places=places)
    sizes = re.findall(r"f32\[([\d,]+)\]", str(jax.make_jaxpr(attend)(*heads(WIDE, length=12))))
    assert not [size for size in sizes if size.endswith("12,12")]
    assert [size for size in sizes if size.endswith("5,5")]


@pytest.mark.parametrize("tensor", [1, 2, 4])  # 4 does not divide the two kv heads
def test_rows_and_heads_are_split_over_a_mesh(tensor):
    rows = heads(WIDE)
    mesh = sharding.make_mesh(1, 1, 2, tensor)
    with jax.set_mesh(mesh):
        fast = jax.jit(lambda *rows: attention.splash(WIDE, *rows, interpret=True))(*rows)
    np.testing.assert_allclose(fast, reference(WIDE, False, *rows), atol=2e-5)


def test_programs_for_cpu_keep_the_einsum():
    with jax.set_mesh(sharding.make_mesh(1, 1, 2, 1)):
        assert not attention.usable(256, "bfloat16")
    assert not attention.usable(256, "bfloat16")
