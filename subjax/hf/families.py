"""The supported Hugging Face models: one table per `model_type` of a config.json.

A table maps attributes and tensors, and lists attributes without effect; `model_config.py` reads
and writes files by it. Nothing here opens a file.
"""

import dataclasses
from typing import Any

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "intermediate_size": "ffn_width",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
_RMS = {"rms_norm_eps": ("norm_eps", 1e-6)}


@dataclasses.dataclass(frozen=True)
class Family:
    """How one model_type maps to `Architecture` and to the paths of `transformer`.

    Attributes:
      model_class: the entry of `architectures` in a config.json.
      tensors: parameter path -> tensor name; a name with {layer} is one tensor per layer.
      constants: fields of Architecture that are the same in every model of the family.
      sizes: attribute -> field of Architecture; positive integers.
      numbers: attribute -> field and default; positive.
      caps: attribute -> field and default; null means no cap.
      activation: attribute that names the MLP's activation.
      activations: activation names that mean another one in this family.
      rope: what is read of the rotary embedding besides theta: "" nothing, "partial" the rotated
        share of a head, "local" another theta for local layers.
      parallel: whether `use_parallel_residual` is read.
      local: which layers are local if `layer_types` is absent: "" none, "all", "late" (from
        max_window_layers on), "even" or "pattern" (all but every sixth).
      fixed: attribute -> the only values with which `transformer` computes the model correctly.
      harmless: attributes that change no logit at inference.
      ignored_tensors: ends of names of buffers in old checkpoints.
      defaults: transformers' defaults of attributes that are read by name.
    """

    model_class: str
    tensors: dict[str, str]
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    sizes: dict[str, str] = dataclasses.field(default_factory=lambda: _SIZES)
    numbers: dict[str, tuple[str, float]] = dataclasses.field(default_factory=lambda: _RMS)
    caps: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    activation: str = "hidden_act"
    activations: dict[str, str] = dataclasses.field(default_factory=dict)
    rope: str = ""
    parallel: bool = False
    local: str = ""
    fixed: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    ignored_tensors: tuple[str, ...] = (".rotary_emb.inv_freq",)
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A model_type whose `text_config` is a supported model; its other parts are not read.

    Attributes:
      text_type: model_type of the text part.
      parts: name prefixes of the other parts' tensors.
      harmless: attributes of the other parts, or of how they connect to the text.
    """

    text_type: str
    parts: tuple[str, ...]
    harmless: frozenset[str]


# Written by transformers for models of any type.
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
    exponential_decay_length_penalty
"""
# Written by programs that publish, finetune or convert models.
_HARMLESS_OF_OTHERS = """
    transformers.js_config custom_pipelines unsloth_fixed unsloth_version unsloth_training_args
    _attn_implementation_autoset _attn_implementation _attn_implementation_internal
    attn_implementation _flash_attn_2_enabled use_flash_attention use_flash_attn _commit_hash
    experts_implementation _experts_implementation gradient_checkpointing classifier_dropout
    model_max_length bos_token eos_token pad_token unk_token neftune_noise_alpha
"""
HARMLESS = frozenset(_HARMLESS.split()) | frozenset(_HARMLESS_OF_OTHERS.split())
_DROPOUTS = """
    attention_dropout attention_dropout_prob attention_probs_dropout_prob attn_dropout attn_pdrop
    resid_pdrop resid_dropout residual_dropout embd_pdrop embd_dropout embedding_dropout
    hidden_dropout hidden_dropout_prob activation_dropout ffn_dropout mlp_dropout dropout
    dropout_rate
"""
# Values that every supported model must have, if it has the attribute at all.
FIXED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_DROPOUTS.split(), (0, None)),
    "quantization_config": (None,),
    "compression_config": (None,),
    "quantization": (None,),
    "auto_map": (None,),
    "pretraining_tp": (1, None),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
}

_BLOCK = "model.layers.{layer}."
_LAYERS = {
    "layers/attn/q/kernel": _BLOCK + "self_attn.q_proj.weight",
    "layers/attn/k/kernel": _BLOCK + "self_attn.k_proj.weight",
    "layers/attn/v/kernel": _BLOCK + "self_attn.v_proj.weight",
    "layers/attn/o/kernel": _BLOCK + "self_attn.o_proj.weight",
    "layers/mlp/gate/kernel": _BLOCK + "mlp.gate_proj.weight",
    "layers/mlp/up/kernel": _BLOCK + "mlp.up_proj.weight",
    "layers/mlp/down/kernel": _BLOCK + "mlp.down_proj.weight",
}
_ENDS = {
    "embed/embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}
_PRE_NORMS = {
    "layers/attn_norm/scale": _BLOCK + "input_layernorm.weight",
    "layers/mlp_norm/scale": _BLOCK + "post_attention_layernorm.weight",
}
_POST_NORMS = {
    "layers/attn_post_norm/scale": _BLOCK + "post_attention_layernorm.weight",
    "layers/mlp_post_norm/scale": _BLOCK + "post_feedforward_layernorm.weight",
}
_FOUR_NORMS = {
    **_POST_NORMS,
    "layers/attn_norm/scale": _BLOCK + "input_layernorm.weight",
    "layers/mlp_norm/scale": _BLOCK + "pre_feedforward_layernorm.weight",
}
_QKV_BIASES = {
    "layers/attn/q/bias": _BLOCK + "self_attn.q_proj.bias",
    "layers/attn/k/bias": _BLOCK + "self_attn.k_proj.bias",
    "layers/attn/v/bias": _BLOCK + "self_attn.v_proj.bias",
}
_QK_NORMS = {
    "layers/attn/q_norm/scale": _BLOCK + "self_attn.q_norm.weight",
    "layers/attn/k_norm/scale": _BLOCK + "self_attn.k_norm.weight",
}
_NEOX_BLOCK = "gpt_neox.layers.{layer}."
_NEOX = {
    "embed/embedding": "gpt_neox.embed_in.weight",
    "layers/attn_norm/scale": _NEOX_BLOCK + "input_layernorm.weight",
    "layers/attn_norm/bias": _NEOX_BLOCK + "input_layernorm.bias",
    "layers/mlp_norm/scale": _NEOX_BLOCK + "post_attention_layernorm.weight",
    "layers/mlp_norm/bias": _NEOX_BLOCK + "post_attention_layernorm.bias",
    "layers/attn/qkv/kernel": _NEOX_BLOCK + "attention.query_key_value.weight",
    "layers/attn/qkv/bias": _NEOX_BLOCK + "attention.query_key_value.bias",
    "layers/attn/o/kernel": _NEOX_BLOCK + "attention.dense.weight",
    "layers/attn/o/bias": _NEOX_BLOCK + "attention.dense.bias",
    "layers/mlp/up/kernel": _NEOX_BLOCK + "mlp.dense_h_to_4h.weight",
    "layers/mlp/up/bias": _NEOX_BLOCK + "mlp.dense_h_to_4h.bias",
    "layers/mlp/down/kernel": _NEOX_BLOCK + "mlp.dense_4h_to_h.weight",
    "layers/mlp/down/bias": _NEOX_BLOCK + "mlp.dense_4h_to_h.bias",
    "final_norm/scale": "gpt_neox.final_layer_norm.weight",
    "final_norm/bias": "gpt_neox.final_layer_norm.bias",
    "head/kernel": "embed_out.weight",
}

_GEMMA = {"norm_offset": 1.0, "scale_embedding": True}
_GEMMA_FIXED = {
    "attention_bias": (False,),
    "use_bidirectional_attention": (False, None),
}
_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "activation": "gelu_pytorch_tanh",
}
_SCALED_SIZES = {**_SIZES, "query_pre_attn_scalar": "query_scale"}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        model_class="LlamaForCausalLM",
        tensors=_ENDS | _LAYERS | _PRE_NORMS,
        fixed={
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "rope_interleaved": (False,),
            "partial_rotary_factor": (1, None),
            "sliding_window": (None,),
        },
        harmless=frozenset({"is_llama_config", "max_sequence_length"}),
    ),
    "mistral": Family(
        model_class="MistralForCausalLM",
        tensors=_ENDS | _LAYERS | _PRE_NORMS,
        local="all",
        fixed={"attention_bias": (False,), "mlp_bias": (False,)},
        defaults={
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "max_position_embeddings": 131_072,
        },
    ),
    "qwen2": Family(
        model_class="Qwen2ForCausalLM",
        tensors=_ENDS | _LAYERS | _PRE_NORMS | _QKV_BIASES,
        constants={"attention_bias": "qkv"},
        local="late",
        fixed={"use_mrope": (False, None)},
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768},
    ),
    "qwen3": Family(
        model_class="Qwen3ForCausalLM",
        tensors=_ENDS | _LAYERS | _PRE_NORMS | _QK_NORMS,
        constants={"qk_norm": "head"},
        local="late",
        fixed={"use_mrope": (False, None), "attention_bias": (False,)},
        defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32_768},
    ),
    "gemma": Family(
        model_class="GemmaForCausalLM",
        tensors=_ENDS | _LAYERS | _PRE_NORMS,
        constants=_GEMMA,
        activations={"gelu": "gelu_pytorch_tanh"},  # as transformers reads the first files
        fixed={**_GEMMA_FIXED, "hidden_activation": ("gelu_pytorch_tanh", None)},
        defaults={**_GEMMA_DEFAULTS, "num_key_value_heads": 16},
    ),
    "gemma2": Family(
        model_class="Gemma2ForCausalLM",
        tensors=_ENDS | _LAYERS | _FOUR_NORMS,
        constants={**_GEMMA, "norm_after": True},
        sizes=_SCALED_SIZES,
        caps={
            "attn_logit_softcapping": ("attention_softcap", 50.0),
            "final_logit_softcapping": ("final_softcap", 30.0),
        },
        activation="hidden_activation",
        local="even",
        harmless=frozenset({"sliding_window_size"}),  # transformers reads only sliding_window
        fixed={
            **_GEMMA_FIXED,
            "hidden_act": ("gelu_pytorch_tanh",),
            "cache_implementation": ("hybrid", None),
        },
        defaults={**_GEMMA_DEFAULTS, "num_key_value_heads": 4, "sliding_window": 4096},
    ),
    "gemma3_text": Family(
        model_class="Gemma3ForCausalLM",
        tensors=_ENDS | _LAYERS | _FOUR_NORMS | _QK_NORMS,
        constants={**_GEMMA, "norm_after": True, "qk_norm": "head"},
        sizes=_SCALED_SIZES,
        caps={
            "attn_logit_softcapping": ("attention_softcap", 0.0),
            "final_logit_softcapping": ("final_softcap", 0.0),
        },
        activation="hidden_activation",
        rope="local",
        local="pattern",
        harmless=frozenset({"_sliding_window_pattern"}),  # written beside layer_types, never read
        fixed={**_GEMMA_FIXED, "cache_implementation": ("hybrid", None)},
        defaults={
            **_GEMMA_DEFAULTS,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "max_position_embeddings": 131_072,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            # Published files of models with an image encoder omit some of these.
            **{"vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216},
            **{"num_hidden_layers": 26, "num_attention_heads": 8},
        },
    ),
    "gpt_neox": Family(
        model_class="GPTNeoXForCausalLM",
        tensors=_NEOX,
        constants={
            "norm": "layer",
            "gated": False,
            "fused_qkv": True,
            "attention_bias": "all",
            "mlp_bias": True,
        },
        numbers={"layer_norm_eps": ("norm_eps", 1e-5)},
        rope="partial",
        parallel=True,
        fixed={"attention_bias": (True,)},
        ignored_tensors=(
            ".rotary_emb.inv_freq",
            ".attention.bias",
            ".attention.masked_bias",
        ),
        defaults={"activation": "gelu"},
    ),
    "olmo2": Family(
        model_class="Olmo2ForCausalLM",
        tensors=_ENDS | _LAYERS | _POST_NORMS | _QK_NORMS,
        constants={"norm_before": False, "norm_after": True, "qk_norm": "all"},
        numbers={"rms_norm_eps": ("norm_eps", 1e-5)},
        fixed={"attention_bias": (False,)},
    ),
}


_GEMMA3_WRAPPER = """
    vision_config mm_tokens_per_image image_token_index boi_token_index eoi_token_index
    image_token_id boi_token_id eoi_token_id
"""
_GEMMA3_PARTS = ("vision_tower.", "multi_modal_projector.")
WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper(
        text_type="gemma3_text",
        parts=(*_GEMMA3_PARTS, *(f"model.{part}" for part in _GEMMA3_PARTS)),
        harmless=frozenset(_GEMMA3_WRAPPER.split()),
    ),
}


def family(model_type: Any) -> Family:
    """The table of a model_type.

    Raises:
      ValueError: there is no such table.
    """
    found = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        shown = repr(model_type)
        raise ValueError(
            f"config.json: model_type is {shown if len(shown) <= 80 else shown[:77] + '...'}; "
            f"supported: {', '.join(sorted(FAMILIES | WRAPPERS))}: choose such a model, or add a "
            "table to subjax/hf/families.py"
        )
    return found


def wrapper(model_type: Any) -> Wrapper | None:
    """The table of a model_type with several parts; None for other models."""
    return WRAPPERS.get(model_type) if isinstance(model_type, str) else None


def other_parts(model_type: str) -> tuple[str, ...]:
    """Tensor name prefixes of the other parts of models whose text part has this model_type."""
    wrappers = (found for found in WRAPPERS.values() if found.text_type == model_type)
    return tuple(part for found in wrappers for part in found.parts)


def adapter_table(model_type: str) -> dict[str, str]:
    """Path in an adapter ("layers/attn/q/a") -> name of its tensor in PEFT's format."""
    table = {}
    for path, name in family(model_type).tensors.items():
        if path.startswith("layers/") and path.endswith("/kernel"):
            for factor, lora in (("a", "lora_A"), ("b", "lora_B")):
                lora_name = f"base_model.model.{name.removesuffix('.weight')}.{lora}.weight"
                table[f"{path.removesuffix('/kernel')}/{factor}"] = lora_name
    return table
