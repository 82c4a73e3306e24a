"""Writes models of transformers to GGUF files as llama.cpp's converter does.

The names of tensors are the package's own; what the converter does to values is written again here:
the rows of Llama's queries and keys are interleaved, and Gemma's norms have one added.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# model_type -> what the package calls the architecture.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}


def write(model: Any, path: Path, kind: str = "F32", *, eos_id: int = 3, **more: Any) -> None:
    """Writes a GGUF file.

    Args:
      model: of transformers.
      path: of the file.
      kind: how matrices are packed, a name of gguf.GGMLQuantizationType; vectors are F32.
      eos_id: token that ends a text.
      more: further entries, without the architecture in front.
    """
    config = model.config
    name = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, name)
    for key, value in {**_metadata(config), **more}.items():
        key = f"{name}.{key}"
        if isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    if config.model_type == "llama" and config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _factors(config))
    writer.add_token_list([f"token {i}" for i in range(config.vocab_size)])
    writer.add_eos_token_id(eos_id)
    architecture = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}[name]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    packing = gguf.GGMLQuantizationType[kind]
    for theirs, tensor in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = _converted(config, theirs, tensor).numpy()
        ours = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if array.ndim == 1:
            writer.add_tensor(ours, array)
        else:
            writer.add_tensor(ours, gguf.quants.quantize(array, packing), raw_dtype=packing)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _metadata(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if config.model_type == "gemma3_text":
        local = config.rope_parameters["sliding_attention"]["rope_theta"]
        found["rope.freq_base_swa"] = float(local)
        kinds = [kind == "sliding_attention" for kind in config.layer_types]
        if kinds != [(i + 1) % 6 > 0 for i in range(len(kinds))]:
            found["attention.sliding_window_pattern"] = kinds
    if config.model_type == "llama":
        found["rope.dimension_count"] = head_dim
    else:
        found |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if config.model_type == "gemma2":
        found["attn_logit_softcapping"] = config.attn_logit_softcapping
        found["final_logit_softcapping"] = config.final_logit_softcapping
    if config.model_type in ("gemma2", "gemma3_text"):
        found["attention.sliding_window"] = config.sliding_window
    return found


def _factors(config: Any) -> np.ndarray:
    """What the frequencies of Llama 3.1 are divided by, from those that transformers turns by."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = config.rope_parameters["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
    stretched = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].double().numpy()
    return (plain / stretched).astype(np.float32)


def _converted(config: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    if config.model_type == "llama" and part in heads:
        halves = tensor.reshape(heads[part], 2, -1, tensor.shape[1])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def packed(array: np.ndarray, kind: str) -> np.ndarray:
    """What is left of values when they have been packed."""
    packing = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(array, packing), packing)
