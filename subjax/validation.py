"""Checks a whole config before anything runs: types, choices, references between rows.

Holds what `validate` refuses. What a field means stands in `schema`.
"""

import re
from typing import Any

from ml_collections import ConfigDict

from subjax import checks, language_validation, mlp_validation, schema

_CHOICES: checks.Choices = {
    "lineage_from": ("base", "teacher", "generate", "finetune"),
    "compute.precision": ("float32", "mixed", "bfloat16"),
    "compute.remat": ("none", "full", "dots", "offload"),
    "evals.*.kind": ("preference", "answers", "likelihood", "accuracy"),
    "evals.*.questions": ("explore", "confirm", "all"),
}
_POSITIVE = (
    *("steps", "batch_size", "num_tokens", "num_targets", "num_prompts", "slots", "num_slots"),
    *("rows_per_part", "prompt_tokens", "max_new_tokens", "num_samples", "lora_rank", "top_k"),
    *("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width"),
    *("num_documents", "lineage_cycle", "cpu_devices", "steps_per_call", "keep_checkpoints"),
    *("fsdp", "tensor", "epochs", "learning_rate", "rate", "num_draws"),
    *("teacher_batch", "student_batch", "accumulate", "lora_alpha"),
)
_NOT_NEGATIVE = (
    *("num_aux", "clone_epochs", "num_images", "lanes", "packed_rows", "packed_tokens"),
    *("warmup_steps", "weight_decay", "clip_norm", "checkpoint_minutes", "data"),
    *("log_seconds", "num_train", "num_holdout", "num_questions", "max_count", "temperature"),
)
# What an eval of each kind measures; `*` is any candidate.
_METRICS = {
    "preference": ("log_odds", "candidate_mass", "neutral_loglik", "share/*"),
    "answers": ("rate_word", "rate_substring", "rate_empty", "rate_numeric"),
    "likelihood": ("gain", "loglik"),
    "accuracy": ("accuracy",),
}
# What sequences hold; ConfigDict itself checks every other type.
_ELEMENTS = {
    "epsilons": float,
    **dict.fromkeys(("lineages", "probe_steps", "banned", "num_shown", "widths"), int),
    **dict.fromkeys(("animals", "common_with", "candidates", "plus", "minus"), str),
}


def validate(config: ConfigDict) -> None:
    """Checks a whole config before anything runs.

    Raises:
      ValueError: one line with the field, its value, what is allowed.
    """
    _check_names(config)
    for name, value in schema.flatten(config).items():
        _check_value(name, value)
    if not config.lineages or len(set(config.lineages)) != len(config.lineages):
        raise ValueError(f"config.lineages {config.lineages} must be distinct and not empty")
    if min(config.lineages) < 0:
        raise ValueError(f"config.lineages {config.lineages} must not be negative")
    checks.choices(config, _CHOICES)
    if config.images:
        mlp_validation.validate(config)
    else:
        language_validation.validate(config)
    _check_contrasts(config)


def _check_value(name: str, value: Any) -> None:
    field = name.rpartition(".")[2]
    kind = _ELEMENTS.get(field)
    if kind and any(type(element) is not kind for element in value):
        raise ValueError(f"config.{name} is {value!r}; its elements must be {kind.__name__}")
    if field == "widths" and any(width < 1 for width in value):
        raise ValueError(f"config.{name} is {value}; a layer is at least 1 wide")
    if name in ("compute.lanes", "compute.batched_lanes") and value < 1:
        raise ValueError(f"config.{name} is {value}; lanes are counted from 1")
    if field == "max_unsharded" and not 0 <= value <= 1:
        raise ValueError(f"config.{name} is {value}; it is a share, 0 to 1")
    if field in _POSITIVE and value <= 0:
        least = "at least 1" if isinstance(value, int) else "above 0"
        raise ValueError(f"config.{name} is {value}; it must be {least}")
    if (field in _NOT_NEGATIVE or name == "mesh.seed") and value < 0:
        raise ValueError(f"config.{name} is {value}; it must not be negative")


def _check_names(config: ConfigDict) -> None:
    """Names of rows are names of directories."""
    for table in schema.TABLES:
        for name in config[table]:
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(
                    f"config.{table} has a row {name!r}: use letters, digits, '_', '-' and '.'"
                )


def _check_contrasts(config: ConfigDict) -> None:
    for name, row in config.contrasts.items():
        checks.reference(config, f"contrasts.{name}.eval", row.eval, "evals")
        for arm in (*row.plus, *row.minus):
            checks.reference(config, f"contrasts.{name}", arm, "arms")
        if not row.plus:
            raise ValueError(f"config.contrasts.{name}.plus is empty: name at least one arm")
        evaluation = config.evals[row.eval]
        metrics = [
            metric.replace("*", candidate)
            for metric in _METRICS[evaluation.kind]
            for candidate in (evaluation.candidates if "*" in metric else ("",))
        ]
        if row.metric not in metrics:
            raise ValueError(
                f"config.contrasts.{name}.metric is {row.metric!r}, but its eval {row.eval!r} of "
                f"kind {evaluation.kind!r} measures {', '.join(metrics)}"
            )
    primary = [name for name, row in config.contrasts.items() if row.primary]
    if len(primary) > 1:
        raise ValueError(f"config.contrasts has {len(primary)} primary rows {primary}: mark one")
