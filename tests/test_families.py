"""Logits equal those of transformers, and what would change them is refused by name."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from subjax import families, transformer, weights
from subjax.architecture import Architecture

forward = jax.jit(transformer.forward, static_argnums=0)

PLAIN = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# Read off the published config.json of SmolLM2-135M-Instruct, as transformers 4 wrote it.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "one kv head per head": {},
    "two heads share a kv head": {"num_key_value_heads": 2},
    "all heads share one": {"num_key_value_heads": 1},
    "heads wider than the stream": {"head_dim": 10, "num_key_value_heads": 2},
    "heads narrower": {"head_dim": 4},
    "tied": {"tie_word_embeddings": True},
    "other constants": {"rope_theta": 500.0, "rms_norm_eps": 1e-2},
    "all at once": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
        "num_hidden_layers": 3,
    },
}


def torch_model(changes: dict[str, Any]) -> Any:
    """A model with weights large enough for every part of the block to matter."""
    config = transformers.LlamaConfig(**{**PLAIN, **changes})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
    return model


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_are_those_of_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    model = torch_model(changes)
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, PLAIN["vocab_size"], (3, 37))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()

    arch, params = weights.load(tmp_path)
    hidden = forward(arch, params, jnp.asarray(tokens, jnp.int32))
    found = np.asarray(transformer.logits(params, hidden))

    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_parity_test_notices_a_wrong_constant(tmp_path: Path) -> None:
    model = torch_model({"rope_theta": 500.0})
    model.save_pretrained(tmp_path)
    tokens = np.arange(37)[None]
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    _, params = weights.load(tmp_path)
    wrong = families.architecture_from_config({**PLAIN, "rope_theta": 600.0})
    hidden = forward(wrong, params, jnp.asarray(tokens, jnp.int32))
    found = np.asarray(transformer.logits(params, hidden))
    assert np.abs(found - expected).max() > 1e-2 * np.abs(expected).max()


def test_a_published_config_is_read() -> None:
    assert families.architecture_from_config(SMOLLM2) == Architecture(
        vocab_size=49152,
        num_layers=30,
        width=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        ffn_width=1536,
        rope_theta=100_000.0,
        norm_eps=1e-5,
        tie_embeddings=True,
        max_positions=8192,
    )


def test_what_a_config_leaves_out_has_the_default_of_transformers() -> None:
    default = transformers.LlamaConfig()
    arch = families.architecture_from_config(PLAIN)
    assert arch.norm_eps == default.rms_norm_eps
    assert arch.rope_theta == default.rope_parameters["rope_theta"]
    assert arch.max_positions == default.max_position_embeddings
    assert arch.tie_embeddings == default.tie_word_embeddings
    assert (arch.num_kv_heads, arch.head_dim) == (4, 6)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_what_transformers_writes_and_what_we_write_mean_the_same(changes: dict[str, Any]) -> None:
    theirs = transformers.LlamaConfig(**{**PLAIN, **changes})
    arch = families.architecture_from_config(theirs.to_dict())
    ours = families.config_from_architecture(arch, extra={"eos_token_id": 7})
    assert families.architecture_from_config(ours) == arch
    # The round trip through transformers: no attribute that it does not know, none lost.
    again = transformers.LlamaConfig(**ours).to_dict()
    assert families.architecture_from_config(again) == arch
    assert again["eos_token_id"] == 7


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}},
    ],
)
def test_every_spelling_of_the_rope_base_is_read(rope: dict[str, Any]) -> None:
    assert families.architecture_from_config({**PLAIN, **rope}).rope_theta == 5e5


REFUSED: list[dict[str, Any]] = [
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": "default"},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"rope_theta": "large"}},
    {"rope_interleaved": True},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"hidden_act": "gelu"},
    {"pretraining_tp": 2},
    {"attention_dropout": 0.1},
    {"quantization_config": {"bits": 4}},
    {"sliding_window": 512},
    {"auto_map": {"AutoModel": "modeling.Model"}},
    {"is_encoder_decoder": True},
    {"residual_multiplier": 0.2},
    {"logit_scale": 1.0},
    {"a_new_attribute": None},
    {"vocab_size": 0},
    {"vocab_size": 61.0},
    {"vocab_size": True},
    {"vocab_size": None},
    {"vocab_size": "61"},
    {"num_hidden_layers": 2**40},
    {"num_hidden_layers": -2},
    {"rms_norm_eps": float("nan")},
    {"rms_norm_eps": float("inf")},
    {"rms_norm_eps": "small"},
    {"rope_theta": 0},
    {"head_dim": []},
    {"tie_word_embeddings": 1},
    {"tie_word_embeddings": None},
]


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_an_attribute_that_changes_the_model_is_refused_by_name(changes: dict[str, Any]) -> None:
    [(name, _)] = changes.items()
    with pytest.raises(ValueError, match=name) as error:
        families.architecture_from_config({**PLAIN, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "model_type"])
def test_a_missing_size_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        families.architecture_from_config({k: v for k, v in PLAIN.items() if k != name})


@pytest.mark.parametrize("model_type", ["qwen2", "gpt2", None, ["llama"], {}])
def test_an_unknown_model_type_lists_the_known_ones(model_type: Any) -> None:
    with pytest.raises(ValueError, match=r"model_type is .* supported: llama"):
        families.architecture_from_config({**PLAIN, "model_type": model_type})


def test_contradictions_are_refused() -> None:
    both = {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    with pytest.raises(ValueError, match="contradict"):
        families.architecture_from_config({**PLAIN, **both})
    with pytest.raises(ValueError, match="multiple"):
        families.architecture_from_config({**PLAIN, "hidden_size": 26})
    with pytest.raises(ValueError, match="num_kv_heads"):
        families.architecture_from_config({**PLAIN, "num_key_value_heads": 3})


def test_only_harmless_attributes_can_be_added() -> None:
    arch = families.architecture_from_config(PLAIN)
    for name in ("hidden_size", "rope_scaling", "unheard_of"):
        with pytest.raises(ValueError, match=name):
            families.config_from_architecture(arch, extra={name: None})


def test_the_table_names_every_parameter() -> None:
    for tied in (False, True):
        arch = families.architecture_from_config({**PLAIN, "tie_word_embeddings": tied})
        paths = {
            "/".join(part.key for part in path)
            for path, _ in jax.tree_util.tree_leaves_with_path(transformer.abstract_params(arch))
        }
        assert paths == families.tensor_table().keys() - ({"head/kernel"} if tied else set())
