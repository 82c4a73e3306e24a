"""Reads the adapter_config.json of a PEFT adapter as PEFT itself does.

Settings that change what an adapter computes are read or refused by name. Settings that only matter
while an adapter is initialised and trained are ignored.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

# Settings that change no logit of a loaded adapter; tests compare each one with PEFT. The
# configuration of an initialisation only matters while the adapter is made.
_HARMLESS = """
    auto_mapping base_model_name_or_path revision inference_mode peft_version lora_dropout
    fan_in_fan_out megatron_core loftq_config eva_config corda_config lora_ga_config
    qalora_group_size runtime_config ensure_weight_tying
"""
# Initialisations that do not change the base, in lower case.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_BIASES = ("none", "all", "lora_only")

# The remedy if the merged model is supported but the adapter is not.
MERGE = (
    "merge it with PEFT, PeftModel.from_pretrained(base, DIR).merge_and_unload().save_pretrained("
    "NEW), and give NEW, with the base's tokenizer files, as full weights"
)
_AGAIN = "train the adapter again without it"
_UNKNOWN = "remove it if nothing that the adapter computes depends on it, or " + MERGE
# The remedy for each unsupported setting. PEFT cannot merge all of them.
_WAYS_OUT = {
    **dict.fromkeys(("use_dora", "modules_to_save", "trainable_token_indices"), MERGE),
    **dict.fromkeys(("target_parameters", "kasa_config", "use_bdlora", "velora_config"), MERGE),
    **dict.fromkeys(("layer_replication", "lora_bias", "megatron_config", "use_qalora"), _AGAIN),
    **dict.fromkeys(("alora_invocation_tokens", "monteclora_config", "arrow_config"), _AGAIN),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The modules that an adapter changes, with ranks and scales.

    Modules have their names in transformers' base model: model.layers.0.self_attn.q_proj.

    Attributes:
      where: the file, for errors.
      rank: R of modules that `ranks` does not name.
      alpha: numerator of the scale for modules that `alphas` does not name.
      rslora: whether scales divide by sqrt(R) instead of by R.
      targets: ends of names, or a regular expression of whole names, or "all-linear".
      excluded: in the same form, modules without an adapter.
      layers: numbers of the layers to which `targets` applies; None: all.
      layer_lists: regular expressions for the name of the list of layers; empty: any.
      ranks: regular expression of the end of a name -> rank.
      alphas: regular expression of the end of a name -> alpha.
    """

    where: str
    rank: int
    alpha: float
    rslora: bool
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    layer_lists: tuple[str, ...] = ()
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alphas: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def adapts(self, module: str) -> bool:
        """Whether PEFT puts an adapter on a linear module of the base's layers.

        Raises:
          ValueError: a regular expression cannot be read; names the setting.
        """
        if self._named(self.excluded, module, "exclude_modules"):
            return False
        if isinstance(self.targets, str) and self.targets.lower() == "all-linear":
            return True
        found = self._named(self.targets, module, "target_modules")
        # A module given by its full name is adapted in any layer.
        return found and (self.layers is None or module in self.targets or self._has_layer(module))

    def rank_of(self, module: str) -> int:
        """R of an adapted module."""
        return self._of(self.ranks, module, "rank_pattern", self.rank)

    def scale_of(self, module: str) -> float:
        """The factor of b @ a of an adapted module."""
        rank = self.rank_of(module)
        alpha = self._of(self.alphas, module, "alpha_pattern", self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _named(self, names: str | tuple[str, ...], module: str, setting: str) -> bool:
        if isinstance(names, str):
            return self._match(re.fullmatch, names, names, module, setting) is not None
        return any(module == name or module.endswith("." + name) for name in names)

    def _has_layer(self, module: str) -> bool:
        """Whether the number of the module's layer, the first in its name, is one of `layers`."""
        patterns = {name: rf"(?:^|.*?\.){name}\.(?P<layer>\d+)\." for name in self.layer_lists}
        patterns = patterns or {"": r".*?\.[^.]*\.(?P<layer>\d+)\."}
        for name, pattern in patterns.items():
            found = self._match(re.match, pattern, name, module, "layers_pattern")
            if found:
                return found["layer"] is not None and int(found["layer"]) in (self.layers or ())
        return False

    def _of(self, patterns: Mapping[str, Any], module: str, setting: str, default: Any) -> Any:
        """The value of the first pattern, in the file's order, that matches the end of the name."""
        for key, value in patterns.items():
            if self._match(re.match, rf"(.*\.)?({key})$", key, module, setting):
                return value
        return default

    def _match(
        self, how: Callable[..., Any], pattern: str, given: str, module: str, setting: str
    ) -> re.Match[str] | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the syntax of later Pythons
                return how(pattern, module)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{self.where}: {setting} has {_shown(given)}, which is no regular expression "
                f"({error}): correct it"
            ) from None


def read(config: Mapping[str, Any], where: str) -> Settings:
    """Checks the content of an adapter_config.json.

    Args:
      config: the parsed file.
      where: the file, for errors.

    Raises:
      ValueError: a setting is malformed or not supported; names it and the remedy.
    """
    left = {**config}
    kind, task = left.pop("peft_type", None), left.pop("task_type", None)
    if kind != "LORA":
        raise ValueError(f"{where}: peft_type must be LORA, is {_shown(kind)}: {MERGE}")
    if task not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"{where}: task_type is {_shown(task)}, this is no adapter of a language model's "
            "next token: give one of task_type CAUSAL_LM"
        )
    layers = left.pop("layers_to_transform", None)
    lists = left.pop("layers_pattern", None) or []
    found = {
        "rank": left.pop("r", None),
        "alpha": left.pop("lora_alpha", 8),
        "rslora": left.pop("use_rslora", False),
        "targets": _tuple(left.pop("target_modules", None)),
        "excluded": _tuple(left.pop("exclude_modules", None) or []),
        "layers": (layers,) if type(layers) is int else _tuple(layers or None),
        "layer_lists": (lists,) if isinstance(lists, str) else _tuple(lists),
        "ranks": left.pop("rank_pattern", None) or {},
        "alphas": left.pop("alpha_pattern", None) or {},
    }
    _check(found, where)
    _check_init(left.pop("init_lora_weights", True), where)
    bias = left.pop("bias", "none")
    if bias not in _BIASES:  # trained biases are refused later, as unknown tensors
        raise ValueError(
            f"{where}: bias is {_shown(bias)}, PEFT knows {', '.join(_BIASES)}: correct it"
        )
    for name, value in left.items():
        # An empty object counts as set: PEFT fills it with defaults.
        if name not in _HARMLESS.split() and value not in (None, False, [], ""):
            setting = f"{name if name.isidentifier() else _shown(name)} = {_shown(value)}"
            if name not in _WAYS_OUT:
                raise ValueError(f"{where}: {setting} is not understood: {_UNKNOWN}")
            raise ValueError(f"{where}: {setting} of PEFT is not supported: {_WAYS_OUT[name]}")
    return Settings(where, **found)


def _check(found: Mapping[str, Any], where: str) -> None:
    """Raises if a value does not have PEFT's type."""
    targets, layers = found["targets"], found["layers"]
    if targets in (None, "", ()):
        raise ValueError(
            f"{where}: target_modules names no module: list the modules that the adapter has "
            'tensors of, such as ["q_proj", "v_proj"]'
        )
    ranks, alphas = found["ranks"], found["alphas"]
    counted = layers is None or (_are(int, layers) and isinstance(targets, tuple))
    right = (
        ("r", "rank", _is_rank(found["rank"]), "a positive integer"),
        ("lora_alpha", "alpha", _is_number(found["alpha"]), "a number"),
        ("use_rslora", "rslora", type(found["rslora"]) is bool, "true or false"),
        ("target_modules", "targets", _are(str, targets), "a text or a list of texts"),
        ("exclude_modules", "excluded", _are(str, found["excluded"]), "a text or a list of texts"),
        ("layers_to_transform", "layers", counted, "whole numbers, and target_modules a list"),
        ("layers_pattern", "layer_lists", _are(str, found["layer_lists"]), "a text or several"),
        ("rank_pattern", "ranks", _holds(ranks, _is_rank), "an object of positive integers"),
        ("alpha_pattern", "alphas", _holds(alphas, _is_number), "an object of numbers"),
    )
    for name, field, is_right, wanted in right:
        if not is_right:
            value = found[field]
            shown = _shown(list(value) if isinstance(value, tuple) else value)
            raise ValueError(f"{where}: {name} is {shown}, must be {wanted}: correct it")


def _check_init(init: Any, where: str) -> None:
    """Raises if the initialisation changed the base's weights: the given base lacks the change."""
    name = init.lower() if isinstance(init, str) else init
    if any(name is plain or (name == plain and isinstance(name, str)) for plain in _PLAIN_INITS):
        return
    if isinstance(name, str) and (name.startswith("pissa") or name in ("olora", "loftq")):
        raise ValueError(
            f"{where}: init_lora_weights = {init!r} changed the base's weights, which an ordinary "
            f"LoRA leaves alone: {MERGE}"
        )
    if name in ("corda", "lora_ga"):
        raise ValueError(
            f"{where}: init_lora_weights = {init!r} changed the base's weights by data that PEFT "
            "does not keep: save it again from the trained model, with "
            "path_initial_model_for_weight_conversion, which makes an ordinary LoRA of it"
        )
    raise ValueError(f"{where}: init_lora_weights is {_shown(init)}, which is unknown: correct it")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _are(kind: type, values: Any) -> bool:
    if isinstance(values, str):
        return kind is str
    return isinstance(values, tuple) and all(type(value) is kind for value in values)


def _holds(values: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(values, dict) and all(map(is_right, values.values()))


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
