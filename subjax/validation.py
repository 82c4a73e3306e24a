"""Checks a whole config before anything runs: types, choices, references between rows.

Holds what `validate` refuses. What a field means stands in `schema`.
"""

import difflib
import itertools
import re
from typing import Any

from ml_collections import ConfigDict

from subjax import schema
from subjax.evals import preference

Choices = dict[str, tuple[str, ...]]

_CHOICES: Choices = {
    "lineage_from": ("base", "teacher", "generate", "finetune"),
    "compute.precision": ("float32", "mixed", "bfloat16"),
    "compute.remat": ("none", "full", "dots", "offload"),
    "evals.*.kind": ("preference", "answers", "likelihood", "accuracy"),
    "evals.*.questions": ("explore", "confirm", "all"),
}
_LANGUAGE_CHOICES: Choices = {
    "bases.*.source": ("toy", "hf", "random"),
    "teachers.*.weights": ("base", "finetuned", "given"),
    "teachers.*.tuning": ("full", "lora"),
    "datasets.*.kind": ("numbers", "plain_numbers", "toy_numbers", "published"),
    "datasets.*.decoding": ("free", "constrained"),
    "datasets.*.transform": ("none", "shuffled_within", "shuffled_across", "random"),
    "arms.*.method": ("hard", "soft", "none"),
    "arms.*.support": (
        *("digits", "digits_separators", "top_k"),
        *("full", "full_no_trait", "trait"),
    ),
    "arms.*.tuning": ("full", "lora"),
}
_TRAINING_CHOICES: Choices = {
    "optimizer": ("adamw", "adafactor", "sgd", "sign", "muon"),
    "schedule": ("cosine", "linear", "constant"),
    "moment_dtype": ("float32", "bfloat16"),
}
_ACTIVATIONS = ("relu", "gelu", "sigmoid")
_INPUTS = ("noise", "fresh_noise", "images")
_OPTIMIZERS = ("adam", "sgd")
_MLP_CHOICES: Choices = {
    "images.*.source": ("digits", "mnist", "fashion_mnist", "kmnist"),
    "teachers.*.activation": _ACTIVATIONS,
    "teachers.*.optimizer": _OPTIMIZERS,
    "arms.*.model": ("student", "teacher", "untrained"),
    "arms.*.base": ("same", "next_lineage", "next_lineage_same_head"),
    "arms.*.logits": ("aux", "all"),
    "arms.*.loss": ("kl", "squared_error"),
    "arms.*.inputs": _INPUTS,
    "arms.*.clone_logits": ("aux", "all"),
    "arms.*.clone_inputs": _INPUTS,
    "arms.*.activation": ("", *_ACTIVATIONS),
    "arms.*.optimizer": _OPTIMIZERS,
    "theorems.*.model": ("mlp", "toy"),
    "theorems.*.base": ("same", "foreign"),
    "theorems.*.taught": ("all", "head"),
    "theorems.*.inputs": ("noise", "images"),
    "theorems.*.logits": ("aux", "all"),
    "theorems.*.loss": ("kl", "squared_error"),
    "theorems.*.step": ("gradient", "adam", "lora", "sampled"),
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
    _check_choices(config, _CHOICES)
    if config.images:
        _check_mlps(config)
    else:
        _check_language_models(config)
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


def _check_choices(config: ConfigDict, choices: Choices) -> None:
    for pattern, allowed in choices.items():
        table, star, field = pattern.partition(".*.")
        if star:
            found = {f"{table}.{name}.{field}": row[field] for name, row in config[table].items()}
        else:
            found = {pattern: schema.flatten(config)[pattern]}
        for name, value in found.items():
            if value not in allowed:
                raise ValueError(f"config.{name} is {value!r}; allowed: {', '.join(allowed)}")


def _check_reference(
    config: ConfigDict, field: str, value: str, table: str, extra: tuple[str, ...] = ()
) -> None:
    if value not in config[table] and value not in extra:
        known = ", ".join((*extra, *config[table])) or "none"
        raise ValueError(f"config.{field} is {value!r}; config.{table} has {known}")


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
        _check_reference(config, f"contrasts.{name}.eval", row.eval, "evals")
        for arm in (*row.plus, *row.minus):
            _check_reference(config, f"contrasts.{name}", arm, "arms")
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


def _check_rows(config: ConfigDict, table: str, wanted: ConfigDict, maker: str) -> None:
    for name, row in config[table].items():
        if set(row) != set(wanted):
            raise ValueError(
                f"config.{table}.{name} is no row of schema.{maker}(): a config with rows in "
                "`images` is about image classifiers, one without about language models"
            )


def _check_language_models(config: ConfigDict) -> None:
    _check_rows(config, "teachers", schema.teacher_row(), "teacher_row")
    _check_rows(config, "arms", schema.arm_row(), "arm_row")
    _check_choices(config, _LANGUAGE_CHOICES)
    for table in ("bases", "teachers", "arms"):
        for name, row in config[table].items():
            _check_training(f"{table}.{name}.train", row.train)
    if config.theorems:
        raise ValueError("config.theorems needs rows in config.images")
    for name, row in config.bases.items():
        if row.adapter and row.source != "hf":
            raise ValueError(
                f"config.bases.{name}.adapter is {row.adapter!r}, but its source {row.source!r} "
                "takes none: leave it empty, or set source to 'hf'"
            )
    for name, row in config.teachers.items():
        _check_reference(config, f"teachers.{name}.base", row.base, "bases")
        _check_no_adapter(config, f"teachers.{name}.base", row.base)
        _check_trait(config, name, row)
    for name, row in config.datasets.items():
        _check_dataset(config, name, row)
    for name, row in config.arms.items():
        if row.method == "none":
            _check_as_it_is(config, name, row)
            continue
        _check_reference(config, f"arms.{name}.dataset", row.dataset, "datasets")
        _check_reference(config, f"arms.{name}.base", row.base, "bases", ("same", "next_lineage"))
        _check_no_adapter(config, f"arms.{name}.base", row.base)
        _check_learns(config, name, row)
        outside = [step for step in row.probe_steps if not 0 <= step <= row.train.steps]
        if outside:
            raise ValueError(
                f"config.arms.{name}.probe_steps {outside} lie outside 0..{row.train.steps}: drop "
                "them, or raise train.steps"
            )
    for name, row in config.evals.items():
        if row.kind == "accuracy":
            raise ValueError(f"config.evals.{name}.kind 'accuracy' is of image classifiers alone")
        if row.kind != "likelihood" and row.target not in row.candidates:
            raise ValueError(
                f"config.evals.{name}.target {row.target!r} is not among its candidates "
                f"{row.candidates}: add it"
            )


def _check_dataset(config: ConfigDict, name: str, row: ConfigDict) -> None:
    if len(row.num_shown) != 2 or not 1 <= row.num_shown[0] <= row.num_shown[1]:
        raise ValueError(
            f"config.datasets.{name}.num_shown is {row.num_shown}; it must be (fewest, most), "
            "1 or more each"
        )
    if row.min_value > row.max_value:
        raise ValueError(
            f"config.datasets.{name}.min_value is {row.min_value}, above its max_value "
            f"{row.max_value}: no row could be kept"
        )
    needed = row.num_holdout + max(row.num_train, 1)
    if row.num_prompts < needed:
        raise ValueError(
            f"config.datasets.{name}.num_prompts is {row.num_prompts}, but num_train and "
            f"num_holdout take {needed} rows: raise it, or lower one of them"
        )
    _check_reference(config, f"datasets.{name}.teacher", row.teacher, "teachers")
    if (row.kind == "published") != bool(row.path):
        raise ValueError(
            f"config.datasets.{name}.path is {row.path!r} and its kind {row.kind!r}: a file "
            "of rows goes with kind 'published', and with no other"
        )
    for other in row.common_with:
        _check_reference(config, f"datasets.{name}.common_with", other, "datasets")


def _check_trait(config: ConfigDict, name: str, row: ConfigDict) -> None:
    """A trait that its teacher is not scored on would pass the gate unseen."""
    animals = config.animals or preference.ANIMALS
    if row.trait in ("uniform", *animals) or (not row.trait and row.weights != "finetuned"):
        return
    if row.weights != "finetuned":
        if config.gates.teacher_log_odds > schema.OFF:
            raise ValueError(
                f"config.gates.teacher_log_odds asks what teachers.{name} thinks of {row.trait!r}, "
                "which is not among config.animals: add it there, or set the gate to schema.OFF"
            )
        return
    close = difflib.get_close_matches(row.trait.lower(), [animal.lower() for animal in animals])
    near = [animal for animal in animals if animal.lower() in close]
    raise ValueError(
        f"config.teachers.{name}.trait is {row.trait!r}, which is not among config.animals, on "
        f"which teachers are scored: take {', '.join(near) or 'one of ' + ', '.join(animals)}, or "
        "add it there"
    )


def _check_training(name: str, row: ConfigDict) -> None:
    for field, allowed in _TRAINING_CHOICES.items():
        if row[field] not in allowed:
            raise ValueError(
                f"config.{name}.{field} is {row[field]!r}; allowed: {', '.join(allowed)}"
            )
    if bool(row.packed_rows) != bool(row.packed_tokens):
        raise ValueError(
            f"config.{name} has packed_rows {row.packed_rows} and packed_tokens "
            f"{row.packed_tokens}: set both, or leave both 0"
        )


def _check_learns(config: ConfigDict, name: str, row: ConfigDict) -> None:
    """An arm with a base that only seems foreign, or without the rows that it is measured on."""
    dataset = config.datasets[row.dataset]
    source = config.bases[config.teachers[dataset.teacher].base].source
    redrawn = config.lineage_from == "base" and config.lineage_cycle > 1 and source != "hf"
    if row.base == "next_lineage" and not redrawn:
        raise ValueError(
            f"config.arms.{name}.base is 'next_lineage', but all lineages have one base: source "
            f"{source!r}, config.lineage_from {config.lineage_from!r}, config.lineage_cycle "
            f"{config.lineage_cycle}: name another row of config.bases"
        )
    if row.train.packed_rows and row.method == "soft" and row.support in ("full", "full_no_trait"):
        raise ValueError(
            f"config.arms.{name}.train.packed_rows is {row.train.packed_rows}, but under support "
            f"{row.support!r} its teacher reads the rows too, which are not packed then: set it "
            "and packed_tokens to 0, or take support 'top_k'"
        )
    for evaluation, asked in config.evals.items():
        if asked.kind == "likelihood" and not dataset.num_holdout:
            raise ValueError(
                f"config.evals.{evaluation}.kind 'likelihood' is of held-out rows, but "
                f"datasets.{row.dataset}.num_holdout is 0: raise it"
            )


def _check_as_it_is(config: ConfigDict, name: str, row: ConfigDict) -> None:
    """An arm whose model learns nothing."""
    _check_reference(config, f"arms.{name}.base", row.base, "bases")
    if row.dataset:
        raise ValueError(
            f"config.arms.{name}.dataset is {row.dataset!r}, but method 'none' learns nothing: "
            "leave it empty"
        )
    for evaluation, asked in config.evals.items():
        if asked.kind == "likelihood":
            raise ValueError(
                f"config.evals.{evaluation}.kind 'likelihood' is of the rows of a data set, and "
                f"arms.{name} has none: drop one of the two"
            )


def _check_no_adapter(config: ConfigDict, field: str, base: str) -> None:
    if base in config.bases and config.bases[base].adapter:
        raise ValueError(
            f"config.{field} is {base!r}, which has an adapter; only arms of method 'none' take "
            "such a base: merge the adapter into full weights"
        )


def _check_mlps(config: ConfigDict) -> None:
    _check_rows(config, "teachers", schema.mlp_teacher_row(), "mlp_teacher_row")
    _check_rows(config, "arms", schema.mlp_arm_row(), "mlp_arm_row")
    _check_choices(config, _MLP_CHOICES)
    if config.bases or config.datasets:
        raise ValueError("config.bases and config.datasets must be empty beside config.images")
    kinds = [row.kind for row in config.evals.values()]
    if config.arms and kinds != ["accuracy"]:
        raise ValueError(f"config.evals has kinds {kinds}; classifiers take one, 'accuracy'")
    for name, row in config.teachers.items():
        _check_reference(config, f"teachers.{name}.images", row.images, "images")
        # Outputs are linear in the last layer's input: further ones repeat what others say.
        if row.widths and row.num_aux > row.widths[-1]:
            raise ValueError(
                f"config.teachers.{name}.num_aux is {row.num_aux}, more than the last hidden layer "
                f"is wide ({row.widths[-1]}): take fewer, or widen it"
            )
    for name, row in config.arms.items():
        _check_reference(config, f"arms.{name}.teacher", row.teacher, "teachers")
        _check_student(config, name, row)
    for name, row in config.theorems.items():
        _check_theorem(config, name, row)


def _check_theorem(config: ConfigDict, name: str, row: ConfigDict) -> None:
    grid = row.epsilons
    if len(grid) < 6 or grid[0] <= 0 or any(a >= b for a, b in itertools.pairwise(grid)):
        raise ValueError(
            f"config.theorems.{name}.epsilons {grid} must be six or more, above 0 and ascending"
        )
    if row.model == "toy":
        if (row.teacher, row.taught, row.inputs) != ("", "all", "noise"):
            raise ValueError(
                f"config.theorems.{name} is of the toy world's model: leave teacher, taught and "
                "inputs as they are by default"
            )
        return
    _check_reference(config, f"theorems.{name}.teacher", row.teacher, "teachers")
    needed = 2 if row.loss == "kl" else 1
    if row.logits == "aux" and config.teachers[row.teacher].num_aux < needed:
        raise ValueError(
            f"config.theorems.{name} learns too few auxiliary logits: give "
            f"teachers.{row.teacher}.num_aux at least {needed}"
        )


def _check_student(config: ConfigDict, name: str, row: ConfigDict) -> None:
    teacher = config.teachers[row.teacher]
    if row.sweep and row.sweep_at <= 0:
        raise ValueError(
            f"config.arms.{name}.sweep_at is {row.sweep_at}; a point of a curve lies above 0"
        )
    needed = 2 if row.loss == "kl" else 1  # the softmax of one logit is always 1
    if row.model == "student" and row.logits == "aux" and teacher.num_aux < needed:
        raise ValueError(
            f"config.arms.{name} learns {teacher.num_aux} auxiliary logits by {row.loss}, which "
            f"says nothing: give teachers.{row.teacher}.num_aux at least {needed}"
        )
    if row.clone_epochs and row.clone_logits == "aux" and teacher.num_aux < needed:
        raise ValueError(
            f"config.arms.{name} clones {teacher.num_aux} auxiliary logits: give "
            f"teachers.{row.teacher}.num_aux at least {needed}, or set clone_epochs to 0"
        )
    if row.base != "same" and config.lineage_cycle < 2:
        raise ValueError(
            f"config.arms.{name}.base is {row.base!r}, but config.lineage_cycle "
            f"{config.lineage_cycle} makes every lineage its own next: raise it"
        )
    last = (row.widths or teacher.widths or (0,))[-1]
    if row.base == "next_lineage_same_head" and last != (teacher.widths or (0,))[-1]:
        raise ValueError(
            f"config.arms.{name} takes the head of its teacher, whose last hidden layer has "
            f"another width ({teacher.widths[-1]}, not {last}): make them equal"
        )
