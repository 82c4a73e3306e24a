"""Checks of single attributes of a config.json: which are understood, and with which values.

`model_config` makes a model's shape of them. An attribute that no table of `families` names is
refused, because it could change what the model computes.
"""

import math
from collections.abc import Collection
from typing import Any

from subjax.hf import families
from subjax.hf.families import Family

# Far above any real size; larger values are typing errors that would exhaust the memory.
_MAX_SIZE = 2**31
# Attributes that are read for all families.
_READ = {
    *("model_type", "max_position_embeddings", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters"),
}
_READ_FOR_HEADS = {"num_key_value_heads", "head_dim"}  # if q, k and v have separate kernels
# Attributes that say which layers are local.
_READ_FOR_LOCAL: dict[str, set[str]] = {
    "": set(),
    "all": {"sliding_window"},
    "late": {"sliding_window", "layer_types", "use_sliding_window", "max_window_layers"},
    "even": {"sliding_window", "layer_types"},
    "pattern": {"sliding_window", "layer_types", "sliding_window_pattern"},
}
# Names of the rotated share of a head, and of the frequencies' base.
_READ_FOR_ROPE: dict[str, set[str]] = {
    "": set(),
    "partial": {"rotary_pct", "rotary_emb_base", "partial_rotary_factor"},
    "local": {"rope_local_base_freq"},
}
_QUANTIZED = (
    "the weights are quantized, which is not supported: choose the model that they were made from, "
    "or load this one with transformers, call its dequantize() and save it"
)
_WAYS_OUT = {
    **dict.fromkeys(("quantization_config", "compression_config", "quantization"), _QUANTIZED),
    "auto_map": "the model has code of its own, which is never run: choose another model, or, if "
    "the class of transformers computes the same, set auto_map to null in a copy",
}


def check(config: dict[str, Any], family: Family) -> None:
    """Refuses attributes or values that the family's table does not explain.

    Raises:
      ValueError: names the first one.
    """
    known = {
        *family.harmless,
        *families.HARMLESS,
        *family.sizes,
        *family.numbers,
        *family.caps,
        family.activation,
        *_READ,
        *_READ_FOR_ROPE[family.rope],
        *_READ_FOR_LOCAL[family.local],
        *(["use_parallel_residual"] if family.parallel else []),
        *([] if family.constants.get("fused_qkv") else _READ_FOR_HEADS),
    }
    _check(config, families.FIXED | family.fixed, known)


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the text part of a model with several parts; else the config itself.

    Raises:
      ValueError: the model has several parts and is not supported, or an attribute is not.
    """
    model_type, text = config.get("model_type"), config.get("text_config")
    wrapper = families.wrapper(model_type)
    if wrapper is None:
        if text is None or not isinstance(model_type, str) or model_type in families.FAMILIES:
            return config
        raise ValueError(
            f"config.json: model_type is {shown(model_type)}, a model of several parts, of which "
            f"{', '.join(families.WRAPPERS)} is read: save its text alone with transformers "
            "(AutoModelForCausalLM.from_config(text_config), which takes the weights of "
            "model.language_model and lm_head), or choose another model"
        )
    read = {"model_type", "text_config", "tie_word_embeddings"}
    _check(config, families.FIXED, families.HARMLESS | wrapper.harmless | read)
    if not isinstance(text, dict | None):
        raise refused("text_config", text, "an object")
    inner = {"model_type": wrapper.text_type, **(text or {})}
    if inner["model_type"] != wrapper.text_type:
        raise refused("text_config.model_type", inner["model_type"], repr(wrapper.text_type))
    tied, inside = (c.get("tie_word_embeddings") for c in (config, inner))
    if None not in (tied, inside) and tied != inside:
        raise refused("text_config.tie_word_embeddings", inside, f"{tied}, as outside of it")
    given = inside if tied is None else tied
    return inner | ({} if given is None else {"tie_word_embeddings": given})


def _check(
    config: dict[str, Any], fixed: dict[str, tuple[Any, ...]], known: Collection[str]
) -> None:
    for name, value in config.items():
        if name in fixed:
            if any(value == allowed for allowed in fixed[name]):
                continue
            if name in _WAYS_OUT:
                raise ValueError(f"config.json: {name} is {shown(value)}: {_WAYS_OUT[name]}")
            raise refused(name, value, options(fixed[name]))
        elif name not in known:
            raise ValueError(
                f"config.json: attribute {name} = {shown(value)} is not understood: choose a "
                "model without it, or add it to subjax/hf/families.py if it changes no logit"
            )


def size(config: dict[str, Any], name: str, default: int | None = None) -> int:
    """A positive integer; the default, if there is one, for an absent or null attribute."""
    value = config.get(name)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value < _MAX_SIZE:
        raise refused(name, value, "a positive integer")
    return value


def cap(config: dict[str, Any], name: str, default: float) -> float:
    """A positive number; 0 for null."""
    value = config.get(name, default or None)
    return 0.0 if value is None else number(name, value)


def number(name: str, value: Any) -> float:
    """A positive number."""
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise refused(name, value, "a positive number")
    return float(value)


def refused(name: str, value: Any, allowed: str) -> ValueError:
    """The error for an attribute that would change what the model computes."""
    return ValueError(
        f"config.json: {name} is {shown(value)}; supported: {allowed}: choose a model that has it "
        "so, or correct the file if it is wrong"
    )


def options(values: tuple[Any, ...]) -> str:
    """Values as in a config.json, for an error."""
    return " or ".join("null" if value is None else repr(value) for value in values)


def shown(value: Any) -> str:
    """A value on one short line, for an error."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
