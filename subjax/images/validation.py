"""Checks of configs of image classifiers."""

import itertools

from ml_collections import ConfigDict

from subjax import checks, schema
from subjax.images import image_files, mlp, mlp_training
from subjax.tasks.evals import kinds as eval_kinds

_ACTIVATIONS = tuple(mlp.ACTIVATIONS)
_INPUTS = ("noise", "fresh_noise", "images")
_OPTIMIZERS = tuple(mlp_training.OPTIMIZERS)
_CHOICES: checks.Choices = {
    "images.*.source": image_files.SOURCES,
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


def validate(config: ConfigDict) -> None:
    """Raises a ValueError of one line with the field, its value, and the allowed values."""
    checks.rows(config, "teachers", schema.mlp_teacher_row(), "mlp_teacher_row")
    checks.rows(config, "arms", schema.mlp_arm_row(), "mlp_arm_row")
    checks.choices(config, _CHOICES)
    _check_lanes(config.compute.lanes, config.compute.batched_lanes)
    if config.bases or config.datasets:
        raise ValueError("config.bases and config.datasets must be empty beside config.images")
    kinds = [row.kind for row in config.evals.values()]
    of_images = [eval_kinds.of_row(row, name).of_images for name, row in config.evals.items()]
    if config.arms and of_images != [True]:
        known = [repr(name) for name, kind in eval_kinds.EVALS.items() if kind.of_images]
        raise ValueError(
            f"config.evals has kinds {kinds}; classifiers take one, {' or '.join(known)}"
        )
    for name, row in config.teachers.items():
        checks.reference(config, f"teachers.{name}.images", row.images, "images")
        # Outputs are linear in the last layer's input: more outputs than its width are redundant.
        if row.widths and row.num_aux > row.widths[-1]:
            raise ValueError(
                f"config.teachers.{name}.num_aux is {row.num_aux}, more than the last hidden layer "
                f"is wide ({row.widths[-1]}): take fewer, or widen it"
            )
    for name, row in config.arms.items():
        checks.reference(config, f"arms.{name}.teacher", row.teacher, "teachers")
        _check_student(config, name, row)
    for name, row in config.theorems.items():
        _check_theorem(config, name, row)


def _check_lanes(lanes: int, batched: int) -> None:
    """Checks all lanes; the lanes of one device are only known with the mesh."""
    if lanes % batched:
        divisors = [str(number) for number in range(1, lanes + 1) if lanes % number == 0]
        raise ValueError(
            f"config.compute.batched_lanes is {batched}, which does not divide config.compute.lanes"
            f", {lanes}: take {' or '.join(divisors)}, or change lanes"
        )


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
    checks.reference(config, f"theorems.{name}.teacher", row.teacher, "teachers")
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
