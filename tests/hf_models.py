"""Small random models of every family, made by transformers; what parity tests compare with."""

from pathlib import Path
from typing import Any

import torch
import transformers

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": None,  # torch would give its embedding no gradient
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500.0,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 6}

# model_type -> what a variant is about -> its attributes; `SMALL` is what they change.
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "one kv head per head": {"num_key_value_heads": 4},
        "all heads share one": {"num_key_value_heads": 1},
        "wide heads, tied": {"head_dim": 10, "tie_word_embeddings": True},
        "narrow heads": {"head_dim": 4},
        "other constants": {"rope_theta": 500.0, "rms_norm_eps": 1e-2},
        "stretched as in llama 3.1": {"rope_parameters": LLAMA3},
        "stretched evenly": {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    },
    "mistral": {
        "short window": {"sliding_window": 50},
        "window of two": {"sliding_window": 2},
        "no window": {"sliding_window": None},
        "longer window than prompt": {"sliding_window": 5000, "head_dim": 8},
    },
    "qwen2": {
        "biases": {},
        "window in later layers": WINDOWED,
        "tied": {"tie_word_embeddings": True},
    },
    "qwen3": {"normed heads": {"head_dim": 8}, "window in later layers": WINDOWED},
    "gemma": {
        "plain": {"head_dim": 8},
        "one kv head, untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    },
    "gemma2": {
        "caps and windows": {
            **GEMMA,
            **{"sliding_window": 50, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
        },
        "no caps": {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None},
        "longer window than prompt": {**GEMMA, "sliding_window": 5000},
    },
    "gemma3_text": {
        "local layers": {**GEMMA, "num_hidden_layers": 7, "sliding_window": 50},
        "kinds named": {
            **GEMMA,
            "sliding_window": 20,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        "global layers stretched": {
            **GEMMA,
            "sliding_window": 50,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    },
    "gpt_neox": {
        "parallel": {},
        "one after the other": {"use_parallel_residual": False},
        "all of a head turns": {"rope_parameters": {"partial_rotary_factor": 1.0}},
        "tied": {"tie_word_embeddings": True},
    },
    "olmo2": {"norms behind": {}, "wide heads": {"head_dim": 8, "num_key_value_heads": 4}},
}
CASES = [(name, variant) for name, variants in FAMILIES.items() for variant in variants]

_VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 8, "patch_size": 4},
}
_CLASSES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "gpt_neox": "GPTNeoX",
    "olmo2": "Olmo2",
}


def attributes(model_type: str, variant: str) -> dict[str, Any]:
    """What the config of a variant is made of."""
    found = {**SMALL, **FAMILIES[model_type][variant]}
    if model_type == "gpt_neox":
        del found["num_key_value_heads"]
        found["hidden_size"] = 32
    return found


def config_class(model_type: str) -> Any:
    """The config class of transformers."""
    return getattr(transformers, f"{_CLASSES[model_type]}Config")


def save(model_type: str, variant: str, directory: Path) -> Any:
    """Makes a model whose weights are large enough for every part of it to matter, and saves it."""
    config = config_class(model_type)(**attributes(model_type, variant))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
            if name.endswith("norm.weight"):
                parameter.add_(1.0)
    model = model.eval()
    model.save_pretrained(directory)
    return model


def save_with_images(directory: Path) -> Any:
    """A Gemma 3 with an image encoder, as transformers makes and saves it."""
    config = transformers.Gemma3Config(
        text_config=attributes("gemma3_text", "global layers stretched"),
        vision_config=_VISION,
        mm_tokens_per_image=4,
        image_token_index=60,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(
        config, attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    model.eval().save_pretrained(directory)
    return model
