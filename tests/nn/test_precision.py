"""Products in narrow formats: what is rounded, what is not, and their derivatives."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import subjax
from subjax.nn import lora, precision, transformer
from subjax.nn.architecture import Architecture

ARCH = Architecture(
    vocab_size=31, num_layers=3, width=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_width=40
)
NARROW = ("mixed", "bfloat16")
ROOT = Path(__file__).parents[2]
FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def drawn(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def rounded(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32))


def test_a_narrow_product_rounds_both_sides_and_sums_in_float32():
    x, kernel = drawn(0, 3, 5, 64), drawn(1, 7, 64)
    found = precision.project(x, kernel, "bfloat16")
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, rounded(x) @ rounded(kernel).T, rtol=1e-5, atol=1e-5)
    assert not np.allclose(found, np.asarray(x) @ np.asarray(kernel).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operands", ["float32", "bfloat16"])
def test_derivatives_are_those_of_the_product(operands):
    x, kernel, pull = drawn(0, 3, 5, 64), drawn(1, 7, 64), drawn(2, 3, 5, 7)
    to_x, to_kernel = jax.vjp(lambda x, k: precision.project(x, k, operands), x, kernel)[1](pull)
    exact_x, exact_kernel = pull @ kernel, jnp.einsum("bto,bti->oi", pull, x)
    tolerance = 1e-5 if operands == "float32" else 2e-2
    assert to_x.dtype == to_kernel.dtype == jnp.float32
    assert jnp.abs(to_x - exact_x).max() <= tolerance * jnp.abs(exact_x).max()
    assert jnp.abs(to_kernel - exact_kernel).max() <= tolerance * jnp.abs(exact_kernel).max()


@pytest.mark.parametrize("operands", ["float32", "bfloat16"])
def test_gradients_turn_the_narrower_side(operands):
    """The wider one in column-major order made an update on CPUs take 1.4 times as long."""
    x, kernel = drawn(0, 3, 50, 8), drawn(1, 72, 8)

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(precision.project(jnp.sin(x), kernel, operands)))

    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
    assert re.search(r"\[8,(3,50|150)\]", text)
    assert not re.search(r"\[72,(3,50|150)\]|\[(3,50|150),72\]\{0", text)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_sum_that_devices_share_is_exchanged_in_its_own_dtype(platform):
    """On CPUs only products with a float32 result use matrix units."""

    def both(x: jax.Array, kernel: jax.Array) -> jax.Array:
        def found(x: jax.Array) -> jax.Array:
            return precision.project(x, kernel, "bfloat16", result=jnp.bfloat16)

        y, back = jax.vjp(found, x)
        return back(y)[0]

    x, kernel = drawn(0, 5, 64).astype(jnp.bfloat16), drawn(1, 7, 64)
    assert both(x, kernel).dtype == jnp.bfloat16
    text = jax.jit(both).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    results = re.findall(r"stablehlo\.dot_general .* -> tensor<[\dx]*x(\w+)>", text)
    assert results == {"cpu": ["f32"] * 2, "tpu": ["bf16"] * 2}[platform]


@pytest.mark.parametrize("name", NARROW)
def test_the_model_differs_from_float32_by_rounding_alone(name):
    params = transformer.init(ARCH, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (3, 9), 0, ARCH.vocab_size)

    def score(params: transformer.Params, name: str) -> jax.Array:
        hidden = transformer.forward(ARCH, params, tokens, precision=name)
        return jnp.mean(transformer.logits(ARCH, params, hidden, precision=name) ** 2)

    exact, gradient = jax.value_and_grad(score)(params, "float32")
    value, narrow = jax.value_and_grad(score)(params, name)
    assert value != exact
    assert abs(value - exact) <= 0.02 * exact
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        other = narrow
        for part in path:
            other = other[part.key]
        assert other.dtype == jnp.float32
        assert jnp.abs(other - leaf).max() <= 0.06 * jnp.abs(leaf).max(), path


@pytest.mark.parametrize(("name", "activations"), [("mixed", "float32"), ("bfloat16", "bfloat16")])
def test_activations_have_their_dtype(name, activations):
    params = transformer.init(ARCH, jax.random.key(0))
    hidden, (keys, values) = transformer.prefill(
        ARCH, params, jnp.zeros((2, 4), jnp.int32), precision=name
    )
    assert {hidden.dtype, keys.dtype, values.dtype} == {jnp.dtype(activations)}


def test_float64_can_be_differentiated_forward():
    with jax.enable_x64(True):
        x, kernel = (drawn(i, n, 8).astype(jnp.float64) for i, n in enumerate((4, 3)))
        along = jax.jvp(lambda x: precision.project(x, kernel, "float64"), (x,), (x,))[1]
        np.testing.assert_allclose(along, x @ kernel.T, rtol=1e-12)


def test_a_thin_product_is_right_to_its_last_row():
    """jaxlib 0.10.2 gets the rows behind the 32,768th wrong where YNN sums."""
    rows = np.random.default_rng(0).standard_normal((40_961, 3)).astype(np.float32)
    matrix = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32)
    found = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    np.testing.assert_allclose(found, ((rows @ matrix.T) ** 2).sum(-1), rtol=1e-4, atol=1e-5)


LATE = f"""
import importlib, os, jax, jax.numpy as jnp
jax.devices()
import subjax
from subjax.images import theorem
from subjax.nn import precision, sharding

draw = theorem.Draw(jnp.ones(3), jnp.ones(3), jnp.ones(3), jnp.ones((2, 3)), jax.random.key(0))
work = (
    sharding.make_mesh,
    lambda: precision.project(jnp.ones((2, 3)), jnp.ones((4, 3)), "float32"),
    lambda: theorem.measure(
        lambda p, x: x * p[None], jnp.sum, draw, jnp.ones(2), loss="kl", step="gradient"
    ),
)
def refusals():
    lines = []
    for start in work:
        try:
            start()
        except ValueError as error:
            lines.append(str(error))
    return lines

lines = refusals()
assert len(lines) == len(work) and lines[0].count("\\n") == 0, lines
assert "import subjax first, or start it with XLA_FLAGS={FLAG}=-reduce" in lines[0]
os.environ["XLA_FLAGS"] = "{FLAG}=-reduce"  # too late, as is another import
importlib.reload(subjax)
assert refusals() == lines
subjax.check_sums("gpu")
os.environ["XLA_FLAGS"] = "{FLAG}=+reduce"  # whoever asks for it gets it
assert not refusals()
"""


def test_cpus_do_not_work_where_jax_was_used_before_subjax_was_imported():
    given = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-c", LATE]
    done = subprocess.run(command, env=given, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ("", False),
        ("--xla_dump_to=reduce", False),
        (f"{FLAG}=", False),
        (f"{FLAG}=-reduce", False),
        (f"{FLAG}=individual_dot", False),
        (f"{FLAG}=reduce {FLAG}=-reduce", False),  # the last one counts
        (f"{FLAG}=individual_dot,LIBRARY_FUSION_TYPE_REDUCE", True),
        (f"{FLAG}=+reduce", True),
        (f"{FLAG}=-individual_dot", True),  # of jaxlib's own choice, which has sums
    ],
)
def test_whoever_asks_for_sums_by_ynn_gets_them(flags, asked):
    assert subjax._asks_for_sums(flags) == asked


LOOP = """
import functools
import jax, jax.numpy as jnp, numpy as np
from subjax.nn import sharding

mesh = sharding.make_mesh(seed=2, lanes=2)

def lane(rows, kernel, length):
    def body(rows, _):
        scores = rows @ kernel.T
        out = jnp.tanh(scores) @ kernel
        return out / jnp.sqrt(jnp.mean(out**2)), jnp.sum(jnp.abs(scores))
    return jax.lax.scan(body, rows, None, length=length)

@functools.partial(jax.jit, static_argnums=2)
def loop(rows, kernel, length):
    one = functools.partial(lane, length=length)
    return jax.vmap(one, spmd_axis_name="seed")(rows, kernel)

with jax.set_mesh(mesh):
    rows, kernel = (
        jax.device_put(
            np.random.default_rng(0).standard_normal(shape, np.float32) / 24,
            jax.NamedSharding(mesh, jax.P("seed")),
        )
        for shape in ((2, 16, 576), (2, 8192, 576))
    )
    last, sums = loop(rows, kernel, 400)
    for i in range(0, 400, 20):
        rows, few = loop(rows, kernel, 20)
        np.testing.assert_array_equal(sums[:, i : i + 20], few)
np.testing.assert_array_equal(last, rows)
"""


@pytest.mark.optimized
def test_one_long_call_on_two_devices_is_many_short_ones():
    """Without YNN, jaxlib 0.10.2 gets it wrong from the 256th step on, where both have a core."""
    two = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", LOOP]
    done = subprocess.run(command, env=two, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def bits(tree: transformer.Params) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NARROW)
def test_weights_that_are_held_narrow_give_the_same_bits(name, tied):
    """Whole rows, a token behind a cache, scores, and what an adapter is told to become."""
    arch = dataclasses.replace(ARCH, tie_embeddings=tied, qk_norm="head")
    params = transformer.init(arch, jax.random.key(0))
    adapter = lora.init(arch, jax.random.key(1), rank=2)
    adapter = jax.tree.map(lambda leaf: leaf + 0.1, adapter)
    tokens = jax.random.randint(jax.random.key(2), (3, 9), 0, arch.vocab_size)

    @jax.jit
    def computed(params: transformer.Params) -> Any:
        layers = transformer.decode_layers(params, adapter, precision=name)
        hidden, cache = transformer.prefill(arch, params, tokens, adapter=adapter, precision=name)
        after, _ = transformer.decode_step(
            arch,
            params,
            layers,
            tokens[:, -1],
            jnp.full(3, 8),
            transformer.decode_cache(*cache),
            precision=name,
        )

        def score(adapter: transformer.Params) -> jax.Array:
            hidden = transformer.forward(arch, params, tokens, adapter=adapter, precision=name)
            return jnp.mean(transformer.logits(arch, params, hidden, precision=name) ** 2)

        return hidden, after, jax.value_and_grad(score)(adapter)

    held = transformer.held(arch, params, name)
    assert bits(computed(held)) == bits(computed(params))
    sizes = {path[-1].key: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(held)}
    assert sizes["kernel"] == jnp.bfloat16
    assert sizes["scale"] == jnp.float32
    assert sizes["embedding"] == ("bfloat16" if name == "bfloat16" else "float32")
    # Rounded further, they would give others.
    coarse = jax.tree.map(lambda leaf: leaf.astype("float8_e4m3fn").astype(leaf.dtype), held)
    assert bits(computed(coarse)) != bits(computed(params))


@pytest.mark.parametrize(
    ("platform", "flags", "expected"),
    [
        ("tpu", "", "bfloat16"),
        ("gpu", "avx2", "bfloat16"),
        ("cpu", "avx512f amx_tile amx_bf16", "mixed"),
        ("cpu", "avx512f avx512_bf16 avx512_vnni", "mixed"),
        ("cpu", "avx512f avx512_bf16x", "float32"),
        ("cpu", None, "float32"),
    ],
)
def test_the_fastest_precision_is_told_by_the_instructions(platform, flags, expected, tmp_path):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t:\n")
    assert precision.fastest(platform, tmp_path / "cpuinfo") == expected
