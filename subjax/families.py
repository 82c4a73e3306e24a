"""Which Hugging Face models are understood: one table per `model_type` of a config.json.

A table says what each attribute means, which ones change nothing, and where each tensor goes.
An attribute that no table names is refused: a model that is silently computed otherwise than its
authors did would make every result about it wrong. Nothing here opens a file.
"""

import dataclasses
import math
from typing import Any

from subjax.architecture import Architecture

# No size of a model comes near; larger ones are typing errors that would exhaust the memory.
_MAX_SIZE = 2**31


@dataclasses.dataclass(frozen=True)
class Family:
    """How one model_type maps to `Architecture` and to the paths of `transformer`.

    Attributes:
      model_class: the entry of `architectures` in a config.json.
      sizes: attribute -> field of Architecture; integers without a default.
      fixed: attribute -> the values under which the model is the one that `transformer` computes.
      harmless: attributes that change no logit at inference.
      tensors: parameter path -> tensor name; a name with {layer} stands for one per layer.
      ignored_tensors: ends of names of buffers that old checkpoints carry.
    """

    model_class: str
    sizes: dict[str, str]
    fixed: dict[str, tuple[Any, ...]]
    harmless: frozenset[str]
    tensors: dict[str, str]
    ignored_tensors: tuple[str, ...]


# Written by transformers for any model, whatever its type.
_HARMLESS = """
    _name_or_path architectures transformers_version dtype torch_dtype use_cache initializer_range
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
    id2label label2id num_labels problem_type task_specific_params finetuning_task prefix
    tokenizer_class torchscript use_bfloat16 tf_legacy_loss chunk_size_feed_forward is_decoder
    temperature top_k top_p typical_p do_sample max_length min_length early_stopping num_beams
    num_beam_groups num_return_sequences diversity_penalty repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids suppress_tokens
    begin_suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty transformers.js_config
"""

_LLAMA = Family(
    model_class="LlamaForCausalLM",
    sizes={
        "vocab_size": "vocab_size",
        "hidden_size": "width",
        "intermediate_size": "ffn_width",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
    },
    fixed={
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "pretraining_tp": (1, None),
        "attention_dropout": (0, None),
        "rope_interleaved": (False,),
        "partial_rotary_factor": (1, None),
        "sliding_window": (None,),
        "quantization_config": (None,),
        "auto_map": (None,),
        "is_encoder_decoder": (False,),
        "tie_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "cross_attention_hidden_size": (None,),
        "pruned_heads": ({}, None),
    },
    harmless=frozenset(_HARMLESS.split()) | {"is_llama_config", "max_sequence_length"},
    tensors={
        "embed/embedding": "model.embed_tokens.weight",
        "layers/attn_norm/scale": "model.layers.{layer}.input_layernorm.weight",
        "layers/attn/q/kernel": "model.layers.{layer}.self_attn.q_proj.weight",
        "layers/attn/k/kernel": "model.layers.{layer}.self_attn.k_proj.weight",
        "layers/attn/v/kernel": "model.layers.{layer}.self_attn.v_proj.weight",
        "layers/attn/o/kernel": "model.layers.{layer}.self_attn.o_proj.weight",
        "layers/mlp_norm/scale": "model.layers.{layer}.post_attention_layernorm.weight",
        "layers/mlp/gate/kernel": "model.layers.{layer}.mlp.gate_proj.weight",
        "layers/mlp/up/kernel": "model.layers.{layer}.mlp.up_proj.weight",
        "layers/mlp/down/kernel": "model.layers.{layer}.mlp.down_proj.weight",
        "final_norm/scale": "model.norm.weight",
        "head/kernel": "lm_head.weight",
    },
    ignored_tensors=(".rotary_emb.inv_freq",),
)

FAMILIES: dict[str, Family] = {"llama": _LLAMA}

# Attributes that `architecture_from_config` reads beside a family's sizes.
_READ = """
    model_type num_key_value_heads head_dim max_position_embeddings rms_norm_eps
    tie_word_embeddings rope_theta rope_scaling rope_parameters
"""


def architecture_from_config(config: dict[str, Any]) -> Architecture:
    """Reads the content of a config.json; transformers 4 and 5 spell it differently.

    Args:
      config: the parsed file.

    Returns:
      The shape of the model; what the file leaves out has transformers' default.

    Raises:
      ValueError: an unknown model_type; an attribute that is not understood, missing, of the wrong
        type, or of a value that would make it another model than the one computed here.
    """
    family = _family(config.get("model_type"))
    for name, value in config.items():
        if name in family.fixed:
            if not any(value == allowed for allowed in family.fixed[name]):
                raise _refused(name, value, _options(family.fixed[name]))
        elif name not in family.harmless | family.sizes.keys() | set(_READ.split()):
            raise ValueError(
                f"config.json: attribute {name} = {_short(value)} is not understood: choose a "
                "model without it, or add it to subjax/families.py if it changes no logit"
            )
    sizes = {field: _size(config, name) for name, field in family.sizes.items()}
    width, num_heads = sizes["width"], sizes["num_heads"]
    tied = config.get("tie_word_embeddings", False)
    if type(tied) is not bool:
        raise _refused("tie_word_embeddings", tied, "true or false")
    if config.get("head_dim") is None and width % num_heads:
        raise ValueError(
            f"config.json: hidden_size {width} is not a multiple of num_attention_heads "
            f"{num_heads}, and head_dim is absent: add head_dim"
        )
    return Architecture(
        **sizes,
        num_kv_heads=_size(config, "num_key_value_heads", num_heads),
        head_dim=_size(config, "head_dim", width // num_heads),
        rope_theta=_rope_theta(config),
        norm_eps=_number("rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        tie_embeddings=tied,
        max_positions=_size(config, "max_position_embeddings", 2048),
    )


def config_from_architecture(
    arch: Architecture, *, extra: dict[str, Any] | None = None, model_type: str = "llama"
) -> dict[str, Any]:
    """Writes the content of a config.json that transformers 4 and 5 both read.

    Args:
      arch: the shape of the model.
      extra: more attributes, such as token ids and `torch_dtype`; only harmless ones.
      model_type: the family whose names are used.

    Returns:
      A dict of which `architecture_from_config` makes `arch` again.

    Raises:
      ValueError: an unknown model_type, or an attribute in `extra` that is not harmless.
    """
    family = _family(model_type)
    for name, value in (extra or {}).items():
        if name not in family.harmless:
            raise ValueError(
                f"config.json: extra attribute {name} = {_short(value)} could change the model: "
                "pass only attributes that subjax/families.py lists as harmless"
            )
    return {
        **(extra or {}),
        "architectures": [family.model_class],
        "model_type": model_type,
        **{name: getattr(arch, field) for name, field in family.sizes.items()},
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "max_position_embeddings": arch.max_positions,
        "rms_norm_eps": arch.norm_eps,
        "rope_theta": arch.rope_theta,
        "tie_word_embeddings": arch.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def tensor_table(model_type: str = "llama") -> dict[str, str]:
    """Parameter path -> name of its tensor, {layer} standing for the layer's index."""
    return dict(_family(model_type).tensors)


def adapter_table(model_type: str = "llama") -> dict[str, str]:
    """Path in an adapter ("layers/attn/q/a") -> name of its tensor in PEFT's format."""
    table = {}
    for path, name in _family(model_type).tensors.items():
        if path.startswith("layers/") and path.endswith("/kernel"):
            for factor, lora in (("a", "lora_A"), ("b", "lora_B")):
                lora_name = f"base_model.model.{name.removesuffix('.weight')}.{lora}.weight"
                table[f"{path.removesuffix('/kernel')}/{factor}"] = lora_name
    return table


def is_ignored(tensor: str, model_type: str = "llama") -> bool:
    """Whether a checkpoint may carry this tensor although no parameter is made of it."""
    return tensor.endswith(_family(model_type).ignored_tensors)


def _family(model_type: Any) -> Family:
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ValueError(
            f"config.json: model_type is {_short(model_type)}; supported: "
            f"{', '.join(sorted(FAMILIES))}: choose such a model, or add a table to "
            "subjax/families.py"
        )
    return family


def _rope_theta(config: dict[str, Any]) -> float:
    """The base of the rotary frequencies, from whichever of three attributes carries it."""
    found = {"rope_theta": config["rope_theta"]} if config.get("rope_theta") is not None else {}
    for attribute in ("rope_scaling", "rope_parameters"):
        rope = config.get(attribute)
        if rope is None:
            continue
        allowed = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
        if not isinstance(rope, dict) or any(
            key != "rope_theta" and (key not in allowed or value != allowed[key])
            for key, value in rope.items()
        ):
            raise _refused(attribute, rope, 'null or rope_type "default" with rope_theta alone')
        if "rope_theta" in rope:
            found[f"{attribute}.rope_theta"] = rope["rope_theta"]
    thetas = [_number(name, value) for name, value in found.items()]
    if len(set(thetas)) > 1:
        raise ValueError(f"config.json: {_short(found)} contradict each other: keep one of them")
    return thetas[0] if thetas else 10_000.0


def _size(config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value < _MAX_SIZE:
        raise _refused(name, value, "a positive integer")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise _refused(name, value, "a positive number")
    return float(value)


def _refused(name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(
        f"config.json: {name} is {_short(value)}; supported: {allowed}: choose a model that has it "
        "so, or correct the file if it is wrong"
    )


def _options(values: tuple[Any, ...]) -> str:
    return " or ".join("null" if value is None else repr(value) for value in values)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
