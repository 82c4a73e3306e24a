"""Other weights of the same function: what they compute, and whether gradients move with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import quickstart
from subjax import schema
from subjax.nn import starts, transformer
from subjax.pipeline import validation

LLAMA = dataclasses.replace(tiny.ARCH, num_heads=4, num_kv_heads=2)
ARCHS = {
    "llama": LLAMA,
    "untied": dataclasses.replace(LLAMA, tie_embeddings=not LLAMA.tie_embeddings),
    "qwen2": dataclasses.replace(LLAMA, attention_bias="qkv", qk_norm="head"),
    "gemma": dataclasses.replace(
        LLAMA, norm_offset=1.0, norm_after=True, activation="gelu_tanh", scale_embedding=True
    ),
    "gpt": dataclasses.replace(
        LLAMA, norm="layer", gated=False, mlp_bias=True, attention_bias="all", parallel=True
    ),
}
TOKENS = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]], jnp.int32)
KEY = jax.random.key(7)


def model(name):
    """Weights without a value that would hide a mistake: no gain is 1, no bias is 0."""
    arch = ARCHS[name]
    params = transformer.init(arch, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return arch, jax.tree.unflatten(tree, noisy)


def loss(arch, params):
    hidden = transformer.forward(arch, params, TOKENS)
    scores = jax.nn.log_softmax(transformer.logits(arch, params, hidden))
    return -jnp.take_along_axis(scores[:, :-1], TOKENS[:, 1:, None], axis=-1).mean()


def logits(arch, params):
    return transformer.logits(arch, params, transformer.forward(arch, params, TOKENS))


CASES = [("permuted", 0.0, name) for name in ARCHS]
CASES += [("rescaled", 4.0, name) for name in ARCHS if name != "gpt"]


@pytest.mark.parametrize(("start", "size", "name"), CASES)
def test_other_weights_of_the_same_function(start, size, name):
    arch, params = model(name)
    changed = starts.change(start, arch, params, KEY, size)
    assert jax.tree.map(jnp.shape, changed) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(logits(arch, changed), logits(arch, params), rtol=2e-4, atol=2e-4)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), changed, params)
    still = {"q", "k"} if start == "rescaled" and arch.norm_offset == 2 else set()
    assert all(
        leaf["kernel"]
        for owner, leaf in moved["layers"]["attn"].items()
        if owner not in still and "kernel" in leaf
    )
    assert all(leaf["kernel"] for leaf in moved["layers"]["mlp"].values())


def test_training_takes_the_same_course_from_permuted_weights_and_another_from_rescaled():
    arch, params = model("llama")

    def after(tree):
        """The loss after steps of gradient descent."""
        for _ in range(3):
            gradient = jax.grad(lambda one: loss(arch, one))(tree)
            tree = jax.tree.map(lambda w, g: w - 0.3 * g, tree, gradient)
        return float(loss(arch, tree))

    before, course = float(loss(arch, params)), after(params)
    assert course < before - 0.1
    permuted = after(starts.change("permuted", arch, params, KEY, 0.0))
    rescaled = after(starts.change("rescaled", arch, params, KEY, 4.0))
    assert permuted == pytest.approx(course, rel=1e-4)
    assert abs(rescaled - course) > 0.01


def test_noise_is_as_large_as_is_said_and_on_matrices_alone():
    arch, params = model("llama")
    changed = starts.change("noised", arch, params, KEY, 0.5)
    for (path, new), old in zip(
        jax.tree_util.tree_leaves_with_path(changed), jax.tree.leaves(params), strict=True
    ):
        noise = np.asarray(new - old)
        if path[-1].key == "scale":
            assert not noise.any()
        else:
            assert noise.std() == pytest.approx(0.5 * float(old.std()), rel=0.15)
    again = starts.change("noised", arch, params, jax.random.key(8), 0.5)
    assert not np.array_equal(again["embed"]["embedding"], changed["embed"]["embedding"])


def test_the_base_as_it_is_is_not_copied():
    arch, params = model("llama")
    assert starts.change("base", arch, params, KEY, 0.0) is params


@pytest.mark.parametrize("start", ["permuted", "rescaled"])
def test_a_model_that_has_no_such_weights_is_refused(start):
    arch = dataclasses.replace(LLAMA, fused_qkv=True, num_kv_heads=LLAMA.num_heads)
    with pytest.raises(ValueError, match=f"start '{start}' moves heads, and this model fuses"):
        starts.change(start, arch, transformer.init(arch, KEY), KEY, 4.0)
    arch, params = model("gpt")
    if start == "rescaled":
        with pytest.raises(ValueError, match="is for gated MLPs behind root-mean-square norms"):
            starts.change(start, arch, params, KEY, 4.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"start": "shuffled"}, "arms.owl.start is 'shuffled'; allowed: base, permuted, rescaled"),
        ({"start_size": 2.0}, "start_size is 2.0, and start 'base' takes none: set it to 0"),
        ({"start": "rescaled", "start_size": 1.0}, "start 'rescaled' needs one above 1"),
        ({"start": "noised"}, "start_size is 0.0, and start 'noised' needs one above 0"),
        ({"start": "permuted", "tuning": "lora"}, "tuning 'lora' leaves the base as it is: take"),
        ({"start": "permuted", "probe_steps": (0, 5)}, "probe_steps has 0, .*: leave it out"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, said):
    config = quickstart.get_config("smoke")
    config.arms.owl.probe_steps = ()
    validation.validate(config)
    assert config.arms.owl.start == schema.arm_row().start == starts.AS_IT_IS
    config.arms.owl.update(fields)
    with pytest.raises(ValueError, match=said) as why:
        validation.validate(config)
    assert "\n" not in str(why.value)
