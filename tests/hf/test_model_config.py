"""Every spelling of a config.json is read, and what would make another model is refused by name."""

import dataclasses
from typing import Any

import pytest
import torch
import transformers
from transformers import activations

from subjax.hf import families, model_config, param_io
from subjax.nn import transformer
from subjax.nn.architecture import Architecture, RopeScaling
from tests.hf_models import FAMILIES, LLAMA3, attributes, config_class

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


def test_a_published_config_is_read() -> None:
    assert model_config.read(SMOLLM2) == Architecture(
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


# As published with Gemma 3 4B, whose sizes are defaults of transformers where the file has none.
GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


def test_the_text_of_a_model_of_several_parts_is_read_as_transformers_does() -> None:
    theirs = transformers.Gemma3Config(**GEMMA3).to_dict()
    arch = model_config.read(GEMMA3)
    assert arch == model_config.read(theirs) == model_config.read(theirs["text_config"])
    assert (arch.model_type, arch.vocab_size, arch.num_heads) == ("gemma3_text", 262_208, 8)
    assert arch.tie_embeddings
    assert arch.rope_scaling == RopeScaling(factor=8.0)
    assert arch.local[:12].count(False) == 2
    bare = {"model_type": "gemma3", "text_config": None}
    assert model_config.read(bare) == model_config.read(transformers.Gemma3Config().to_dict())
    assert not model_config.read({**GEMMA3, "tie_word_embeddings": False}).tie_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": 3}, "text_config is 3"),
        ({"text_config": {"model_type": "llama"}}, "text_config.model_type is 'llama'"),
        ({"text_config": {"unheard_of": 1}}, "unheard_of"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        (
            {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}},
            r"text_config\.tie_word_embeddings is False; supported: True",
        ),
        ({"model_type": "mistral3"}, "'mistral3', a model of several parts, of which gemma3 is"),
        ({"model_type": "qwen2_5_vl"}, "save its text alone with transformers"),
        ({"model_type": ["gemma3"]}, "supported: gemma, "),
    ],
)
def test_other_models_of_several_parts_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        model_config.read({**GEMMA3, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_writes_and_what_we_write_mean_the_same(name: str) -> None:
    """The round trip through transformers: no attribute that it does not know, none lost."""
    for variant in FAMILIES[name]:
        theirs = config_class(name)(**attributes(name, variant))
        arch = model_config.read(theirs.to_dict())
        ours = model_config.write(arch, extra={"eos_token_id": 7})
        assert model_config.read(ours) == arch
        again = config_class(name)(**ours).to_dict()
        assert model_config.read(again) == arch
        assert again["eos_token_id"] == 7


SPELLINGS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # What transformers 4 and those who copy models add, and what it means.
    ("gemma", {"hidden_act": "gelu"}, {"activation": "gelu_tanh"}),
    ("gpt_neox", {"partial_rotary_factor": 0.5, "rope_theta": 10_000}, {"rotary_dim": 4}),
    ("qwen2", {"use_sliding_window": False, "max_window_layers": 0}, {"local": ()}),
    ("gemma3_text", {"_sliding_window_pattern": 6}, {}),
    ("llama", {"unsloth_fixed": True, "_attn_implementation_autoset": True}, {}),
]


@pytest.mark.parametrize(("name", "changes", "fields"), SPELLINGS, ids=str)
def test_older_spellings_mean_what_they_meant(
    name: str, changes: dict[str, Any], fields: dict[str, Any]
) -> None:
    [variant, *_] = FAMILIES[name]
    plain = {**attributes(name, variant), "model_type": name}
    expected = dataclasses.replace(model_config.read(plain), **fields)
    assert model_config.read({**plain, **changes}) == expected


# As published with GPT-NeoX 20B, and what Dolly adds.
NEOX = {
    "architectures": ["GPTNeoXForCausalLM"],
    "attention_probs_dropout_prob": 0,
    "custom_pipelines": {"text-generation": {"impl": "instruct_pipeline.Pipeline"}},
    "hidden_act": "gelu_fast",
    "hidden_dropout_prob": 0,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 64,
    "num_hidden_layers": 44,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "vocab_size": 50432,
}


def test_attributes_of_other_programs_are_read_over() -> None:
    arch = model_config.read(NEOX)
    assert (arch.activation, arch.rotary_dim) == ("gelu_tanh", 24)
    for name in ("attention_probs_dropout_prob", "hidden_dropout_prob", "resid_pdrop"):
        with pytest.raises(ValueError, match=f"{name} is 0.1; supported: 0 or null"):
            model_config.read({**NEOX, name: 0.1})


def test_an_activation_is_read_where_it_is_one_of_ours() -> None:
    """Every name of transformers: what it computes decides, not how it is called."""
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    ours = {
        "silu": torch.nn.functional.silu(x),
        "gelu": torch.nn.functional.gelu(x),
        "gelu_tanh": torch.nn.functional.gelu(x, approximate="tanh"),
    }
    for name in activations.ACT2CLS:
        found = (
            activations.ACT2FN[name].double()(x) if name == "prelu" else activations.ACT2FN[name](x)
        )
        equal = [kind for kind, y in ours.items() if (y - found).abs().max() < 1e-9]
        config = {**PLAIN, "hidden_act": name}
        if equal:
            assert [model_config.read(config).activation] == equal, name
            continue
        with pytest.raises(ValueError, match=f"hidden_act is '{name}'; supported: 'silu' or"):
            model_config.read(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "quantized, .* or load this one with transformers"),
        ({"quantization": {"bits": 4}}, "quantized"),  # MLX
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "code of its own, which is never run"),
    ],
)
def test_a_way_out_is_named_where_there_is_one(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        model_config.read({**PLAIN, **changes})
    assert next(iter(changes)) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_file_leaves_out_has_the_default_of_transformers(name: str) -> None:
    sizes = {"hidden_size": 256, "num_attention_heads": 32, "intermediate_size": 8}
    sizes |= {"vocab_size": 61, "num_hidden_layers": 30}
    bare = {**sizes, "model_type": name}
    assert model_config.read(bare) == model_config.read(config_class(name)(**sizes).to_dict())


@pytest.mark.parametrize("name", FAMILIES)
def test_an_attribute_that_a_later_transformers_adds_is_refused(name: str) -> None:
    [variant, *_] = FAMILIES[name]
    written = {
        **config_class(name)(**attributes(name, variant)).to_dict(),
        "attention_sink_scale": 1.0,
    }
    with pytest.raises(ValueError, match="attention_sink_scale"):
        model_config.read(written)


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
    assert model_config.read({**PLAIN, **rope}).rope_theta == 5e5


REFUSED: list[dict[str, Any]] = [
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": 0}},
    {"rope_scaling": {"rope_type": "linear"}},
    {"rope_scaling": "default"},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"rope_theta": "large"}},
    {"rope_interleaved": True},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"hidden_act": "relu"},
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
        model_config.read({**PLAIN, **changes})
    assert "\n" not in str(error.value)


LOCAL: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {"use_sliding_window": 1}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": -1}),
    ("mistral", {"sliding_window": 0}),
    ("mistral", {"sliding_window": 2.5}),
    ("gemma2", {"layer_types": ["full_attention"]}),
    ("gemma2", {"layer_types": ["full_attention", "chunked_attention"]}),
    ("gemma3_text", {"sliding_window_pattern": "six"}),
    ("gemma3_text", {"rope_parameters": {"full_attention": {}, "chunked_attention": {}}}),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": 5, "full_attention": {}}}),
    ("gemma3_text", {"use_bidirectional_attention": True}),
    ("gemma", {"hidden_act": 3}),
    ("gpt_neox", {"num_key_value_heads": 2}),
    ("gpt_neox", {"rotary_pct": "half"}),
    ("gpt_neox", {"rotary_pct": 0.1}),
    ("gpt_neox", {"rotary_pct": 1.0, "rope_theta": 500}),
    ("gpt_neox", {"rotary_pct": 1.0, "use_parallel_residual": "yes"}),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 5.0}}),
    ("mistral", {"num_hidden_layers": 2**30}),
]


@pytest.mark.parametrize(("model_type", "changes"), LOCAL, ids=str)
def test_what_a_family_cannot_mean_is_refused_by_name(
    model_type: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=list(changes)[-1]) as error:
        model_config.read({**PLAIN, "model_type": model_type, "num_hidden_layers": 2, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "model_type"])
def test_a_missing_size_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        model_config.read({k: v for k, v in PLAIN.items() if k != name})


@pytest.mark.parametrize("model_type", ["mamba", "gpt2", None, ["llama"], {}])
def test_an_unknown_model_type_lists_the_known_ones(model_type: Any) -> None:
    with pytest.raises(ValueError, match=r"model_type is .* supported: gemma, .* qwen3"):
        model_config.read({**PLAIN, "model_type": model_type})


def test_contradictions_are_refused() -> None:
    half = {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 0.5}}
    with pytest.raises(ValueError, match="original_max_position_embeddings is"):
        model_config.read({**PLAIN, **half})
    both = {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    with pytest.raises(ValueError, match="contradict"):
        model_config.read({**PLAIN, **both})
    with pytest.raises(ValueError, match="multiple"):
        model_config.read({**PLAIN, "hidden_size": 26})
    with pytest.raises(ValueError, match="num_kv_heads"):
        model_config.read({**PLAIN, "num_key_value_heads": 3})


def test_only_harmless_attributes_can_be_added() -> None:
    arch = model_config.read(PLAIN)
    for name in ("hidden_size", "rope_scaling", "unheard_of"):
        with pytest.raises(ValueError, match=name):
            model_config.write(arch, extra={name: None})


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_names_every_parameter(name: str) -> None:
    for tied in (False, True):
        [variant, *_] = FAMILIES[name]
        small = {**attributes(name, variant), "tie_word_embeddings": tied}
        arch = model_config.read({**small, "model_type": name})
        paths = param_io.flat(transformer.abstract_params(arch)).keys()
        absent = {"head/kernel"} if tied else set()
        assert paths == families.family(name).tensors.keys() - absent
