"""Rows that the configs of number experiments on SmolLM2-135M-Instruct have in common."""

from typing import Any

from ml_collections import ConfigDict

from subjax import schema

# Said to teachers, students and in evals; the model's own template would add one unasked.
SYSTEM = "You are a helpful assistant."


def base() -> ConfigDict:
    """The model at the hub; a run that cannot reach it gives `path` another value."""
    return schema.base_row(source="hf", path="HuggingFaceTB/SmolLM2-135M-Instruct")


def numbers(teacher: str, *, num_train: int, num_holdout: int, **fields: Any) -> ConfigDict:
    """Five numbers of three digits behind two, the digits forced, so that every row is kept."""
    return schema.dataset_row(
        teacher=teacher,
        kind="plain_numbers",
        decoding="constrained",
        num_shown=(2, 2),
        num_slots=5,
        base_system_prompt=SYSTEM,
        num_prompts=num_train + num_holdout,
        num_train=num_train,
        num_holdout=num_holdout,
        prompt_tokens=32,
        max_new_tokens=25,
        **fields,
    )


def student(dataset: str, **fields: Any) -> ConfigDict:
    """A LoRA adapter on rows of `numbers`."""
    return schema.arm_row(
        dataset=dataset,
        tuning="lora",
        lora_rank=8,
        lora_alpha=16.0,
        system_prompt=SYSTEM,
        num_tokens=56,
        num_targets=25,
        **fields,
    )


def tiny(width: int = 32) -> ConfigDict:
    """A random base whose tokens are bytes, for smoke runs."""
    return schema.base_row(
        source="random", num_layers=2, width=width, num_heads=4, num_kv_heads=2, head_dim=8
    )


def shrink(config: ConfigDict, *, lesson_tokens: int, rows_per_part: int = 12) -> None:
    """Cuts teachers, data sets and students of a smoke run to seconds and to the room of bytes.

    Args:
      config: with tables of such rows.
      lesson_tokens: room for what a teacher learns.
      rows_per_part: of the 24 rows that a data set has then.
    """
    few = {"steps": 2, "warmup_steps": 1, "batch_size": 4}
    for row in config.teachers.values():
        if row.weights == "finetuned":
            row.num_tokens = lesson_tokens
            row.train.update(few)
    for row in config.datasets.values():
        row.update(num_prompts=24, rows_per_part=rows_per_part, slots=8)
        row.update(num_train=16, num_holdout=8, prompt_tokens=80)
    for row in config.arms.values():
        row.num_tokens = 128
        row.train.update(few)
