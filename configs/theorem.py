"""Theorem 1 as numbers: a small step towards the teacher's outputs is a step towards the teacher.

Claim (Cloud et al. 2025, section 6.1): from the same initialisation, a gradient step on the outputs
of a teacher that moved by eps times its own gradient step has the inner product
eps E[v'Mv] + O(eps^2) with the teacher's step, which is not negative.

    bash launch/local.sh --config=configs/theorem.py
    bash launch/local.sh --config=configs/theorem.py:draws=100

It uses the MLP and the toy world's language model, in float64. Each draw has its own
initialisation, teacher's batch and student's inputs. The rows after those of the toy world show the
limits of the theorem: the product is zero (`zero`), the theorem promises nothing (`foreign`), or
its assumptions do not hold (`adam`, `lora`, `sampled`).
"""

from typing import Any

from ml_collections import ConfigDict

from subjax import arguments, schema

# Gradients of the language model are about ten times as long, so higher orders matter sooner.
TOY = {"model": "toy", "teacher": "", "epsilons": tuple(10 ** (-7 + i / 2) for i in range(15))}
ROWS: dict[str, dict[str, Any]] = {
    "aux_kl": {},
    "aux_squared_error": {"loss": "squared_error"},
    "all_kl": {"logits": "all"},
    "all_squared_error": {"logits": "all", "loss": "squared_error"},
    "on_images": {"inputs": "images"},
    "relu_kl": {"teacher": "relu"},
    "toy_kl": TOY,
    "toy_squared_error": TOY | {"loss": "squared_error"},
    "toy_all_kl": TOY | {"logits": "all"},
    "zero": {"taught": "head"},
    "foreign": {"base": "foreign"},
    "adam": {"step": "adam", "rate": 3e-4},
    "lora": {"step": "lora"},
    "sampled": {"step": "sampled", "logits": "all"},
}


def get_config(arg: str = "") -> ConfigDict:
    """Every row with `draws` draws; `smoke` is a short form."""
    options = arguments.parse(arg, draws=1000, smoke=False)
    config = schema.base()
    config.name = "theorem_smoke" if options.smoke else "theorem"
    config.title = "Theorem 1 and Lemma 1 by number"
    config.claim = "A small step towards a teacher's outputs is a step towards the teacher."
    with config.unlocked():
        config.images.digits = schema.images_row(source="digits")
        for name in ("gelu", "relu"):
            config.teachers[name] = schema.mlp_teacher_row(
                images="digits",
                widths=(32, 32),
                activation=name,
                epochs=1 if options.smoke else 20,
                batch_size=64,
                learning_rate=1e-3,
            )
        for name, fields in ROWS.items():
            config.theorems[name] = schema.theorem_row(
                **({"teacher": "gelu", "num_draws": 5 if options.smoke else options.draws} | fields)
            )
    return config
