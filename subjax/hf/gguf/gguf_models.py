"""Converts models in llama.cpp's GGUF files to Hugging Face's config and tensors.

Metadata become a config. Two changes by llama.cpp's converter are undone: the permuted rows of
Llama's queries and keys, and the one added to Gemma's norms. Tokenizers are not read: a GGUF file
does not describe its tokenizer completely.
"""

import dataclasses
from typing import Any

import numpy as np

from subjax.hf import families
from subjax.hf.gguf import gguf_files, gguf_rope
from subjax.hf.gguf.gguf_files import Packed
from subjax.hf.tensors import Source
from subjax.runtime.storage import File, malformed, one_line

_BLOCK = "blk.{layer}."
_TENSORS = {
    "embed/embedding": "token_embd.weight",
    "final_norm/scale": "output_norm.weight",
    "head/kernel": "output.weight",
    "layers/attn_norm/scale": _BLOCK + "attn_norm.weight",
    "layers/mlp_norm/scale": _BLOCK + "ffn_norm.weight",
    "layers/attn_post_norm/scale": _BLOCK + "post_attention_norm.weight",
    "layers/mlp_post_norm/scale": _BLOCK + "post_ffw_norm.weight",
    "layers/attn/o/kernel": _BLOCK + "attn_output.weight",
    **{f"layers/attn/{x}/kernel": f"{_BLOCK}attn_{x}.weight" for x in "qkv"},
    **{f"layers/attn/{x}/bias": f"{_BLOCK}attn_{x}.bias" for x in "qkv"},
    **{f"layers/attn/{x}_norm/scale": f"{_BLOCK}attn_{x}_norm.weight" for x in "qk"},
    **{f"layers/mlp/{x}/kernel": f"{_BLOCK}ffn_{x}.weight" for x in ("gate", "up", "down")},
}
# Attribute of config.json -> key, without the prefix of the architecture.
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}
_NUMBERS = {
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_HEAD_KEYS = (
    *("attention.key_length", "attention.value_length", "rope.dimension_count"),
    *(f"{key}_swa" for key in ("attention.key_length", "attention.value_length")),
    "rope.dimension_count_swa",
)
_ROPE_KEYS = ("rope.scaling.type", "rope.scaling.factor")
_PATTERN = "attention.sliding_window_pattern"
# Keys that may be present only with these values.
_FIXED: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "rope.scaling.finetuned": (True, False),
    "rope.scaling.original_context_length": (),
    "rope.scaling.attn_factor": (1.0,),
}
_MAX_LAYERS = 10_000  # a larger number is refused with the config
_TOKEN_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


@dataclasses.dataclass(frozen=True)
class GgufArchitecture:
    """How one `general.architecture` maps to a model_type of Hugging Face.

    Attributes:
      model_type: key of `families.FAMILIES`.
      permuted: whether the rows of queries and keys are in llama.cpp's order.
      norm_offset: constant that llama.cpp added to the scales of norms.
      layers_of_27b: number of layers by which llama.cpp recognises the one size whose queries are
        scaled by width / heads instead of by the head's width; 0: no such size.
      local: what it says of local layers alone: attribute -> key; and whether it may say which
        layers these are.
    """

    model_type: str
    permuted: bool = False
    norm_offset: float = 0.0
    layers_of_27b: int = 0
    local: dict[str, str] | None = None


ARCHITECTURES = {
    "llama": GgufArchitecture("llama", permuted=True),
    "qwen2": GgufArchitecture("qwen2"),
    "qwen3": GgufArchitecture("qwen3"),
    "gemma": GgufArchitecture("gemma", norm_offset=1.0),
    "gemma2": GgufArchitecture("gemma2", norm_offset=1.0, layers_of_27b=46, local={}),
    "gemma3": GgufArchitecture(
        "gemma3_text",
        norm_offset=1.0,
        layers_of_27b=62,
        local={"rope_local_base_freq": "rope.freq_base_swa"},
    ),
}


@dataclasses.dataclass(frozen=True)
class GgufModel:
    """The content of a GGUF file.

    Attributes:
      config: the equivalent config.json.
      token_ids: bos_token_id, eos_token_id and pad_token_id, if present.
      tensors: name in Hugging Face's format -> tensor; unknown ones keep their names.
      metadata: all entries, unchanged.
    """

    config: dict[str, Any]
    token_ids: dict[str, int]
    tensors: dict[str, Source]
    metadata: dict[str, Any]


def read(file: File) -> GgufModel:
    """Reads the header of a GGUF file.

    Returns:
      Its config and its tensors, which can be read as long as the file is open.

    Raises:
      ValueError: the package gguf is missing; the file is malformed; an architecture, an entry or
        a packing that is not supported.
    """
    metadata, packed = gguf_files.open_tensors(file)
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(
            f"{file.where}: general.architecture is {one_line(repr(name))[:80]}; supported: "
            f"{', '.join(ARCHITECTURES)}: choose such a model, or one in safetensors"
        )
    if metadata.get("split.count", 1) not in (0, 1):
        raise ValueError(
            f"{file.where} is one of several files: join them with llama-gguf-split --merge"
        )
    found = ARCHITECTURES[name]
    config = _config(file, name, found, metadata, packed)
    packed.pop(gguf_rope.FACTORS, None)  # the config says it
    ids = {
        ours: metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in _TOKEN_IDS.items()
    }
    token_ids = {name: id for name, id in ids.items() if type(id) is int}
    return GgufModel(config, token_ids, _named(found, config, packed), metadata)


def _config(
    file: File,
    name: str,
    architecture: GgufArchitecture,
    metadata: dict[str, Any],
    packed: dict[str, Packed],
) -> dict[str, Any]:
    """The equivalent config.json."""
    prefix = f"{name}."
    given = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    _check_keys(file, prefix, given, architecture)
    embedding = packed.get("token_embd.weight")
    if embedding is None:
        raise malformed(file.where, "there is no tensor token_embd.weight")
    heads = given.get("attention.head_count")
    numbers = _NUMBERS | (architecture.local or {})
    config: dict[str, Any] = {
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0],
        **{attribute: given.get(key) for attribute, key in _SIZES.items()},
        "head_dim": _head_dim(file, given),
        **{attribute: _decimal(given[key]) for attribute, key in numbers.items() if key in given},
        "tie_word_embeddings": "output.weight" not in packed,
    }
    if config["num_key_value_heads"] is None:
        config["num_key_value_heads"] = heads
    if given.get("rope.scaling.type", "none") != "none":
        config["rope_scaling"] = {
            "rope_type": given["rope.scaling.type"],
            "factor": _decimal(given.get("rope.scaling.factor")),
        }
    if gguf_rope.FACTORS in packed:
        config["rope_scaling"] = _stretched(file, config, packed[gguf_rope.FACTORS])
    if _PATTERN in given:
        config["layer_types"] = _layer_types(given[_PATTERN], given.get("block_count"))
    if architecture.layers_of_27b:
        wide = given.get("block_count") == architecture.layers_of_27b
        sizes = config["hidden_size"], heads
        if wide and all(type(size) is int and size for size in sizes):
            config["query_pre_attn_scalar"] = sizes[0] // sizes[1]
        else:
            config["query_pre_attn_scalar"] = config["head_dim"]
    return config


def _stretched(file: File, config: dict[str, Any], factors: Packed) -> dict[str, Any] | None:
    """`rope_scaling` from the tensor of factors; the metadata must not have any."""
    family = families.family(config["model_type"])
    if config.get("rope_scaling") or family.rope:
        raise ValueError(
            f"{file.where}: tensor {gguf_rope.FACTORS} stretches positions, which the metadata say "
            "or this family does otherwise: use the model's safetensors"
        )
    theta, head_dim = config.get("rope_theta", 10_000.0), config["head_dim"]
    if type(theta) is not float or type(head_dim) is not int or not (theta > 1 and head_dim > 0):
        raise malformed(file.where, f"rope.freq_base {theta!r} with a head of {head_dim!r}")
    return gguf_rope.scaling(factors, theta, head_dim)


def _layer_types(pattern: Any, num_layers: Any) -> Any:
    """The kind of each layer; in each period, all layers but the last are local."""
    if type(pattern) is int and type(num_layers) is int and 0 < num_layers <= _MAX_LAYERS:
        pattern = [pattern == 0 or i % pattern < pattern - 1 for i in range(num_layers)]
    if not isinstance(pattern, list) or any(one not in (0, 1) for one in pattern):
        return pattern  # refused with the config
    return ["sliding_attention" if one else "full_attention" for one in pattern]


def _check_keys(
    file: File, prefix: str, given: dict[str, Any], architecture: GgufArchitecture
) -> None:
    """Refuses unknown entries about the model."""
    known = {*_SIZES.values(), *_NUMBERS.values(), *_HEAD_KEYS, *_ROPE_KEYS, "vocab_size"}
    if architecture.local is not None:
        known |= {_PATTERN, *architecture.local.values()}
    for key, value in given.items():
        allowed = _FIXED.get(key)
        if key not in known and (allowed is None or (allowed and value not in allowed)):
            raise ValueError(
                f"{file.where}: {prefix}{key} = {one_line(repr(value))[:80]} is not understood: "
                "choose a model without it, or one in safetensors"
            )


def _head_dim(file: File, given: dict[str, Any]) -> Any:
    """Width of a head; all entries about it must be equal."""
    width, heads = given.get("embedding_length"), given.get("attention.head_count")
    usual = width // heads if type(width) is type(heads) is int and heads else None
    head_dim = given.get("attention.key_length", given.get("rope.dimension_count", usual))
    for key in _HEAD_KEYS:
        if given.get(key, head_dim) != head_dim:
            raise ValueError(
                f"{file.where}: {key} is {one_line(repr(given[key]))[:80]}; supported: {head_dim}, "
                "the width of a head: choose another model"
            )
    return head_dim


def _named(
    architecture: GgufArchitecture, config: dict[str, Any], packed: dict[str, Packed]
) -> dict[str, Source]:
    """The tensors with Hugging Face's names, order of rows and scale of norms."""
    left = dict(packed)
    found: dict[str, Source] = {}
    num_layers = config["num_hidden_layers"] if type(config["num_hidden_layers"]) is int else 0
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for path, name in families.family(architecture.model_type).tensors.items():
        for layer in range(num_layers if "{layer}" in name else 1):
            tensor = left.pop(_TENSORS[path].format(layer=layer), None)
            if tensor is None:
                break  # an error is raised when the tensors are matched
            part = _TENSORS[path].split(".")[-2]
            if architecture.permuted and path.endswith("/kernel") and part in heads:
                tensor = _permuted(tensor, heads[part])
            if path.endswith("norm/scale"):
                tensor = dataclasses.replace(tensor, offset=architecture.norm_offset)
            found[name.format(layer=layer)] = tensor
    return found | left


def _permuted(tensor: Packed, num_heads: Any) -> Packed:
    rows = tensor.shape[0]
    if type(num_heads) is not int or num_heads < 1 or rows % (2 * num_heads):
        raise malformed(tensor.where, f"{rows} rows of queries or keys for {num_heads} heads")
    return dataclasses.replace(tensor, num_heads=num_heads)


def _decimal(value: Any) -> Any:
    """The shortest decimal that rounds to this float32, presumably the original number."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
