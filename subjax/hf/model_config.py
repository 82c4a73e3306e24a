"""Converts a config.json to an `Architecture` and back, by the tables of `families`.

An attribute that no table names is refused: if a model were silently computed differently than by
its authors, every result about it would be wrong.
"""

from collections.abc import Iterator
from typing import Any

from subjax.hf import config_attributes, families
from subjax.hf.config_attributes import cap, number, options, refused, shown, size
from subjax.hf.families import Family
from subjax.nn.architecture import Architecture, RopeScaling

_MAX_LAYERS = 10_000
# Equivalent names in transformers; its other activations are different functions.
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
}
_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}

# Attributes of rotary frequencies, and what they say.
_FIELDS = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "rotary_pct": "share",
    "partial_rotary_factor": "share",
    "rope_local_base_freq": "local_rope_theta",
}
_SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
}


def read(config: dict[str, Any]) -> Architecture:
    """Reads the content of a config.json; transformers 4 and 5 spell it differently.

    Args:
      config: the parsed file.

    Returns:
      The shape of the model, or of the text part of a model with several parts. Absent attributes
      have transformers' defaults.

    Raises:
      ValueError: an unknown model_type; an attribute that is not understood, missing, of the wrong
        type, or with a value that would change what the model computes.
    """
    config = config_attributes.text_part(config)
    model_type: Any = config.get("model_type")
    family = families.family(model_type)
    config_attributes.check(config, family)
    given = {**family.defaults, **{n: v for n, v in config.items() if v is not None}}
    sizes: dict[str, Any] = {field: size(given, name) for name, field in family.sizes.items()}
    width, num_heads = sizes["width"], sizes["num_heads"]
    if sizes["num_layers"] > _MAX_LAYERS:
        raise refused("num_hidden_layers", sizes["num_layers"], f"at most {_MAX_LAYERS}")
    tied = config.get("tie_word_embeddings", family.defaults.get("tie_word_embeddings", False))
    if type(tied) is not bool:
        raise refused("tie_word_embeddings", tied, "true or false")
    if "head_dim" not in given and width % num_heads:
        raise ValueError(
            f"config.json: hidden_size {width} is not a multiple of num_attention_heads "
            f"{num_heads}, and head_dim is absent: add head_dim"
        )
    head_dim = size(given, "head_dim", width // num_heads)
    # null means as many as there are heads; an absent attribute means the default.
    kv_heads = config if "num_key_value_heads" in config else family.defaults
    numbers: dict[str, Any] = {
        field: number(name, config.get(name, default))
        for name, (field, default) in family.numbers.items()
    }
    for name, (field, default) in family.caps.items():
        numbers[field] = cap(config, name, default)
    return Architecture(
        **sizes,
        **family.constants,
        **numbers,
        **_rope(config, family, head_dim),
        **_windows(config, family, sizes["num_layers"]),
        model_type=model_type,
        num_kv_heads=size(kv_heads, "num_key_value_heads", num_heads),
        head_dim=head_dim,
        activation=_activation(config, family),
        parallel=_parallel(config, family),
        tie_embeddings=tied,
        max_positions=size(given, "max_position_embeddings", 2048),
    )


def write(arch: Architecture, *, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Writes the content of a config.json that transformers 4 and 5 both read.

    Args:
      arch: the shape of the model.
      extra: more attributes, such as token ids and `torch_dtype`; only harmless ones.

    Returns:
      A dict from which `read` makes `arch` again.

    Raises:
      ValueError: an attribute in `extra` that is not harmless.
    """
    family = families.family(arch.model_type)
    for name, value in (extra or {}).items():
        if name not in family.harmless | families.HARMLESS:
            raise ValueError(
                f"config.json: extra attribute {name} = {shown(value)} could change the model: "
                "pass only attributes that subjax/hf/families.py lists as harmless"
            )
    spelled = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    config = {
        **(extra or {}),
        "architectures": [family.model_class],
        "model_type": arch.model_type,
        **{name: getattr(arch, field) for name, field in family.sizes.items()},
        **{name: getattr(arch, field) for name, (field, _) in family.numbers.items()},
        **{name: getattr(arch, field) or None for name, (field, _) in family.caps.items()},
        "max_position_embeddings": arch.max_positions,
        "tie_word_embeddings": arch.tie_embeddings,
        family.activation: spelled[arch.activation],
        **{n: v for n, v in _rope_attributes(arch, family).items() if v is not None},
    }
    for name in family.fixed.keys() & {"attention_bias", "mlp_bias"}:
        config[name] = family.fixed[name][0]
    if not arch.fused_qkv:
        config |= {"num_key_value_heads": arch.num_kv_heads, "head_dim": arch.head_dim}
    if family.parallel:
        config["use_parallel_residual"] = arch.parallel
    if family.local == "all":
        config["sliding_window"] = arch.window or None
    elif family.local:
        kinds = {local: name for name, local in _LAYER_TYPES.items()}
        config["layer_types"] = [kinds[x] for x in arch.local or (False,) * arch.num_layers]
        config["sliding_window"] = arch.window or None
    if family.local == "late":
        config["use_sliding_window"] = bool(arch.window)
    return config


def _parallel(config: dict[str, Any], family: Family) -> bool:
    if not family.parallel:
        return False
    value = config.get("use_parallel_residual", True)
    if type(value) is not bool:
        raise refused("use_parallel_residual", value, "true or false")
    return value


def _activation(config: dict[str, Any], family: Family) -> str:
    name = config.get(family.activation) or family.defaults.get("activation", "silu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise refused(family.activation, name, options(tuple(_ACTIVATIONS)))
    return _ACTIVATIONS[family.activations.get(name, name)]


def _windows(config: dict[str, Any], family: Family, num_layers: int) -> dict[str, Any]:
    """The window of local layers, and which layers are local."""
    window = config.get("sliding_window", family.defaults.get("sliding_window"))
    used = config.get("use_sliding_window", False) if family.local == "late" else bool(family.local)
    if type(used) is not bool:
        raise refused("use_sliding_window", used, "true or false")
    if not used or window is None:
        return {}
    if config.get("layer_types") is not None:
        local = _named_layers(config["layer_types"], num_layers)
    else:
        local = _usual_layers(config, family, num_layers)
    if not any(local):
        return {}
    return {"window": size({"sliding_window": window}, "sliding_window"), "local": local}


def _named_layers(types: Any, num_layers: int) -> tuple[bool, ...]:
    if not isinstance(types, list) or len(types) != num_layers:
        raise refused("layer_types", types, f"null or a list of {num_layers}, one a layer")
    for entry in types:
        if not isinstance(entry, str) or entry not in _LAYER_TYPES:
            raise refused("layer_types", entry, options(tuple(_LAYER_TYPES)))
    return tuple(_LAYER_TYPES[entry] for entry in types)


def _usual_layers(config: dict[str, Any], family: Family, num_layers: int) -> tuple[bool, ...]:
    """Which layers are local if the file does not list them layer by layer."""
    layers = range(num_layers)
    if family.local == "late":
        first = config.get("max_window_layers", 28)
        if type(first) is not int or first < 0:
            raise refused("max_window_layers", first, "an integer, 0 or more")
        return tuple(i >= first for i in layers)
    if family.local == "pattern":
        every = size(config, "sliding_window_pattern", 6)
        return tuple((i + 1) % every > 0 for i in layers)
    return tuple(family.local == "all" or i % 2 == 0 for i in layers)


def _rope(config: dict[str, Any], family: Family, head_dim: int) -> dict[str, Any]:
    """Base, stretching, rotated share and local base of the rotary frequencies, in any spelling."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, field in _FIELDS.items():
        elsewhere = family.rope == "partial" and name == "rope_theta"
        if config.get(name) is not None and not elsewhere:
            found.setdefault(field, []).append((name, config[name]))
    scaling: RopeScaling | None = None
    for where, rope, local in _rope_objects(config, family):
        named = {
            "rope_theta": "local_rope_theta" if local else "rope_theta",
            "partial_rotary_factor": "share",
        }
        for name, field in named.items():
            if rope.get(name) is not None:
                found.setdefault(field, []).append((f"{where}.{name}", rope[name]))
        stretched = _scaling(where, rope)
        if stretched and local:
            raise refused(where, rope, 'rope_type "default"')
        scaling = stretched or scaling
    values = {field: _agreed(pairs) for field, pairs in found.items()}
    share = values.get("share", 0.25 if family.rope == "partial" else 1.0)
    turned = int(head_dim * share)
    if (family.rope != "partial" and share != 1) or not 2 <= turned <= head_dim:
        name = found.get("share", [("partial_rotary_factor", share)])[0][0]
        raise refused(name, share, f"a share of a head of {head_dim} that this family can turn")
    result = {
        "rope_theta": values.get("rope_theta", family.defaults.get("rope_theta", 10_000.0)),
        "rope_scaling": scaling,
        "rotary_dim": turned if share != 1 else 0,
    }
    theta = config.get("rope_theta")
    if family.rope == "partial" and theta not in (None, result["rope_theta"]):
        # transformers reads this family's base from another attribute; this one must be equal.
        raise refused("rope_theta", theta, f"{result['rope_theta']}, as rotary_emb_base says")
    if family.rope == "local":
        default = family.defaults["rope_local_base_freq"]
        result["local_rope_theta"] = values.get("local_rope_theta", default)
    return result


def _rope_objects(
    config: dict[str, Any], family: Family
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every object of rope parameters: its place, and whether it is for local layers."""
    for attribute in ("rope_scaling", "rope_parameters"):
        rope = config.get(attribute)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise refused(attribute, rope, "null or an object")
        # With local layers, only the older attribute applies to global layers only.
        if family.rope != "local" or (
            attribute == "rope_scaling" and rope.keys().isdisjoint(_LAYER_TYPES)
        ):
            yield attribute, rope, False
            continue
        for kind, part in rope.items():
            if kind not in _LAYER_TYPES or not isinstance(part, dict):
                raise refused(attribute, rope, f"an object for {' and '.join(_LAYER_TYPES)}")
            yield f"{attribute}.{kind}", part, _LAYER_TYPES[kind]


def _scaling(where: str, rope: dict[str, Any]) -> RopeScaling | None:
    """The stretching in an object of rope parameters."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise refused(f"{where}: rope_type", kind, options(tuple(_SCALINGS)))
    numbers = _SCALINGS[kind]
    shared = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if rope.keys() - shared - set(numbers) or rope.get("type", kind) != kind:
        raise refused(where, rope, f"for {kind!r}: {', '.join(numbers) or 'rope_theta'}")
    values = {name: number(f"{where}.{name}", rope.get(name)) for name in numbers}
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(factor=values["factor"])
    return RopeScaling(
        factor=values["factor"],
        low_freq_factor=values["low_freq_factor"],
        high_freq_factor=values["high_freq_factor"],
        original_positions=size(rope, "original_max_position_embeddings"),
    )


def _rope_attributes(arch: Architecture, family: Family) -> dict[str, Any]:
    """The attributes that `_rope` reads, in a spelling for both versions of transformers."""
    scaling, rope = arch.rope_scaling, None
    if scaling and scaling.low_freq_factor:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_positions,
        }
    elif scaling:
        rope = {"rope_type": "linear", "factor": scaling.factor}
    if family.rope == "partial":
        share = (arch.rotary_dim or arch.head_dim) / arch.head_dim
        return {"rotary_emb_base": arch.rope_theta, "rotary_pct": share, "rope_scaling": rope}
    local = arch.local_rope_theta or None
    return {"rope_theta": arch.rope_theta, "rope_scaling": rope, "rope_local_base_freq": local}


def _agreed(pairs: list[tuple[str, Any]]) -> float:
    values = {number(name, value) for name, value in pairs}
    if len(values) > 1:
        raise ValueError(
            f"config.json: {shown(dict(pairs))} contradict each other: keep one of them"
        )
    return values.pop()
