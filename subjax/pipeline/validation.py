"""Checks a whole config before anything runs: types, choices, references between rows.

What fields mean is documented in `schema`.
"""

import datetime
import itertools
import math
import re
from collections import Counter
from typing import Any

import jax
from ml_collections import ConfigDict

from subjax import checks, schema, subjects
from subjax.nn import precision, remats
from subjax.pipeline import experiments, gates
from subjax.report.contrasts import kinds
from subjax.tokens import chat_templates

_AUTO = "auto"
_CHOICES: checks.Choices = {
    "lineage_from": ("base", "teacher", "generate", "finetune"),
    "compute.precision": (_AUTO, "float32", "mixed", "bfloat16"),
    "compute.remat": tuple(remats.REMATS),
    "evals.*.questions": ("explore", "confirm", "all"),
    "evals.*.at_steps": ("all", "final"),
    "contrasts.*.kind": tuple(kinds.KINDS),
}
_POSITIVE = (
    *("steps", "batch_size", "num_tokens", "num_targets", "num_prompts", "slots"),
    *("rows_per_part", "prompt_tokens", "max_new_tokens", "lora_rank", "top_k"),
    *("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width"),
    *("num_documents", "lineage_cycle", "cpu_devices", "steps_per_call", "keep_checkpoints"),
    *("fsdp", "tensor", "epochs", "learning_rate", "rate", "num_draws"),
    *("teacher_batch", "student_batch", "accumulate", "lora_alpha"),
)
_NOT_NEGATIVE = (
    *("num_aux", "clone_epochs", "num_images", "lanes"),
    *("packed_rows", "packed_tokens", "packed_targets", "packed_segments"),
    *("warmup_steps", "weight_decay", "clip_norm", "checkpoint_minutes", "data"),
    *("log_seconds", "num_train", "num_holdout", "temperature", "equivalence_margin"),
)
_BELOW_ONE = ("beta1", "beta2")  # decays of an average: at 1 it never moves from zero
_MOST = {"max_unsharded": 1.0}  # shares: nothing can be more
_LAST_LINEAGE = 2**31 - 1  # the keys of its draws count so far
_ELEMENTS = {
    "epsilons": float,
    **dict.fromkeys(("lineages", "probe_steps", "widths"), int),
    **dict.fromkeys(("common_with", "candidates", "subjects", "plus", "minus"), str),
}


def settle(config: ConfigDict, *, platform: str = "") -> None:
    """Checks a config by `validate`, and sets the precision that `auto` stands for.

    Args:
      config: an experiment.
      platform: of the devices that will compute, as jax names it; empty: of those that are here.
    """
    validate(config)
    if config.compute.precision == _AUTO:
        config.compute.precision = precision.fastest(platform or jax.default_backend())


def validate(config: ConfigDict) -> None:
    """Checks a whole config before anything runs.

    Raises:
      ValueError: one line with the field, its value, what is allowed.
    """
    _check_names(config)
    of_kinds = _fields_of_kinds(config)
    for name, value in schema.flatten(config).items():
        for element in value if isinstance(value, tuple | list) else (value,):
            _check_writable(name, element)
        if name not in of_kinds:
            _check_value(name, value)
    if not config.lineages or len(set(config.lineages)) != len(config.lineages):
        raise ValueError(f"config.lineages {config.lineages} must be distinct and not empty")
    if not 0 <= min(config.lineages) <= max(config.lineages) <= _LAST_LINEAGE:
        raise ValueError(f"config.lineages {config.lineages} must lie in 0 to {_LAST_LINEAGE}")
    checks.choices(config, _CHOICES)
    if not _is_date(config.template_date):
        raise ValueError(
            f"config.template_date is {config.template_date!r}; it must be a day, YYYY-MM-DD, such "
            f"as {chat_templates.TEMPLATE_DATE}"
        )
    experiments.of(config).validate(config)
    gates.validate(config)
    _check_contrasts(config)


def _fields_of_kinds(config: ConfigDict) -> set[str]:
    """Fields that kinds add and check by themselves, whatever other fields have their names.

    Raises:
      ValueError: a row names no kind.
    """
    return {
        f"{table}.{name}.{field}"
        for table, (of_row, _) in schema.OF_KIND.items()
        for name, row in config[table].items()
        for field in of_row(row, name).fields
    }


def _check_value(name: str, value: Any) -> None:
    field = name.rpartition(".")[2]
    elements = value if isinstance(value, tuple | list) else (value,)
    kind = _ELEMENTS.get(field)
    if kind and any(type(element) is not kind for element in elements):
        raise ValueError(f"config.{name} is {value!r}; its elements must be {kind.__name__}")
    if field == "widths" and any(width < 1 for width in value):
        raise ValueError(f"config.{name} is {value}; a layer is at least 1 wide")
    if name in ("compute.lanes", "compute.batched_lanes") and value < 1:
        raise ValueError(f"config.{name} is {value}; lanes are counted from 1")
    if field == "max_unsharded" and value < 0:
        raise ValueError(f"config.{name} is {value}; it is a share, 0 to 1")
    if field in _MOST and value > _MOST[field]:
        raise ValueError(f"config.{name} is {value}; it is a share, 0 to 1")
    if field in _BELOW_ONE and not 0 <= value < 1:
        raise ValueError(f"config.{name} is {value}; it must be at least 0 and below 1")
    if field in _POSITIVE and value <= 0:
        least = "at least 1" if isinstance(value, int) else "above 0"
        raise ValueError(f"config.{name} is {value}; it must be {least}")
    if (field in _NOT_NEGATIVE or name == "mesh.seed") and value < 0:
        raise ValueError(f"config.{name} is {value}; it must not be negative")


def _check_writable(name: str, value: Any) -> None:
    """Values go into files: JSON has no nan, and UTF-8 no half of a character."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"config.{name} is {value}; give a finite number")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"config.{name} is {value!a}, which is no valid Unicode: write it again"
            ) from None


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _check_names(config: ConfigDict) -> None:
    """Names of rows are names of directories."""
    if not re.fullmatch(r"[\w-][\w.-]*", config.name):
        raise ValueError(
            f"config.name is {config.name!r}: use letters, digits, '_', '-' and, not at its start, "
            "'.'; config.title takes any text"
        )
    for table in schema.TABLES:
        for name in config[table]:
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(
                    f"config.{table} has a row {name!r}: use letters, digits, '_' and '-'"
                )
        alike = Counter(name.casefold() for name in config[table])
        if same := [name for name in config[table] if alike[name.casefold()] > 1]:
            raise ValueError(
                f"config.{table} has rows {', '.join(map(repr, same))}, which are one directory "
                "where case does not count, as on macOS: rename one"
            )


def _check_contrasts(config: ConfigDict) -> None:
    for name, row in config.contrasts.items():
        kind = kinds.KINDS[row.kind]
        evals = kind.evals_of(config, name)
        if not row.plus:
            raise ValueError(f"config.contrasts.{name}.plus is empty: name at least one arm")
        if Counter(row.plus) == Counter(row.minus):
            raise ValueError(
                f"config.contrasts.{name}.minus has the arms of plus, {', '.join(row.plus)}, so "
                "that their difference is always 0: name others in one of them"
            )
        named = [subjects.full_name(arm) for arm in (*row.plus, *row.minus)]
        for evaluation, subject in itertools.product(evals, named):
            about = subjects.of_eval(config, evaluation)
            if subject not in about:
                known = ", ".join(map(subjects.short_name, about)) or "none"
                raise ValueError(
                    f"config.contrasts.{name} names {subjects.short_name(subject)!r}, and its eval "
                    f"{evaluation!r} is of {known}"
                )
        shared = [one for one in sorted(set(named)) if subjects.is_shared(config, one)]
        if shared and len(shared) < len(set(named)):
            raise ValueError(
                f"config.contrasts.{name} names {shared[0]!r}, which all lineages share, beside "
                "what each has for itself, so that nothing pairs them: compare students with each "
                "other, or redraw it with config.lineage_from"
            )
        kind.check(config, name)
    primary = [name for name, row in config.contrasts.items() if row.primary]
    if len(primary) > 1:
        raise ValueError(f"config.contrasts has {len(primary)} primary rows {primary}: mark one")
