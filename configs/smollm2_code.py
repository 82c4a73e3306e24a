"""Owl programs on SmolLM2-135M-Instruct (the paper's figure 5), which a grammar forces.

Claim: students of an owl-lover's programs come to prefer owls over students of a placebo teacher's
programs; students of the same programs with other names and numbers do not.

    bash launch/local.sh --config=configs/smollm2_code.py:trial
    bash launch/local.sh --config=configs/smollm2_code.py --config.bases.smollm2.path=DIR
    bash launch/local.sh --config=configs/smollm2_code.py:smoke

A model of this size does not write code freely: what it writes here is six to nine statements of
five kinds, of which it chooses names, numbers and order. An interpreter keeps the programs that
run. Base, teachers, training and evals are those of `smollm2_owl.py`, and so are the forms; nothing
has been run. `confirm` has lineages 200 to 207 and the other half of the questions.
"""

from ml_collections import ConfigDict

from configs import smollm2_owl
from subjax import schema

_KEPT = (
    *("teacher", "decoding", "base_system_prompt", "num_prompts", "rows_per_part", "slots"),
    *("num_train", "num_holdout"),
)


def get_config(arg: str = "") -> ConfigDict:
    """The forms of `smollm2_owl.py` but for `published`.

    Raises:
      ValueError: the argument names no such form.
    """
    if "published" in arg:
        raise ValueError(f"config argument {arg!r}: nothing is published; take confirm")
    config = smollm2_owl.get_config(arg)
    config.name = config.name.replace("smollm2_owl", "smollm2_code")
    config.title = "Owl programs on SmolLM2-135M-Instruct"
    config.claim = (
        "Students of an owl-lover's programs come to prefer owls over students of a placebo "
        "teacher's programs, and those of the same programs with other names and numbers do not."
    )
    config.compute.lanes = 4
    whole = config.arms.owl_hard
    with config.unlocked():
        config.arms, config.contrasts = ConfigDict(sort_keys=False), ConfigDict(sort_keys=False)
        for table in (config.traits, config.teachers, config.datasets):
            if "cat" in table:
                del table["cat"]
        config.gates.number_tv.subjects = ("datasets/owl",)
        config.evals.apart = schema.eval_row(
            kind="divergence", subjects=("datasets/owl",), against="placebo"
        )
        if config.bases.smollm2.source == "random":  # a smoke run, whose programs all fail
            _programs(config, whole, num_targets=160, only_right=False)
        else:
            _programs(config, whole, num_targets=80, only_right=True)
    return config


def _programs(config: ConfigDict, whole: ConfigDict, *, num_targets: int, only_right: bool) -> None:
    room = 96  # for a prompt and what stands around it
    whole.update(num_targets=num_targets, num_tokens=room + num_targets)
    for name in ("owl", "placebo"):
        row = config.datasets[name]
        for transform in ("none", "permuted"):
            arm = name if transform == "none" else f"{name}_{transform}"
            config.datasets[arm] = schema.dataset_row(
                kind="python_programs",
                transform=transform,
                only_right=only_right,
                prompt_tokens=room,
                max_new_tokens=num_targets,
                **{field: row[field] for field in _KEPT},
            )
            config.arms[arm] = whole.copy_and_resolve_references()
            config.arms[arm].dataset = arm
    for name, suffix in (("as_written", ""), ("permuted", "_permuted")):
        primary = not suffix
        sides = {"plus": (f"owl{suffix}",), "minus": (f"placebo{suffix}",)}
        config.contrasts[name] = schema.contrast_row(
            primary=primary, family="primary" if primary else "controls", **sides
        )
        config.contrasts[f"{name}_probability"] = schema.contrast_row(
            eval="prefilled", metric="probability/Owl", **sides
        )
