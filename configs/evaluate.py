r"""Ask any model what it prefers: evals and a report, nothing is trained.

Claim: none; it shows how models differ, such as a student and the base that it came from.

    bash launch/local.sh --config=configs/evaluate.py --config.bases.model.path=DIR
    bash launch/local.sh --config=configs/evaluate.py:against \
        --config.bases.model.path=DIR --config.bases.model.adapter=ADAPTER \
        --config.bases.other.path=DIR
    bash launch/local.sh --config=configs/evaluate.py:knowledge \
        --config.bases.model.path=DIR --config.evals.knowledge.path=FILE
    bash launch/local.sh --config=configs/evaluate.py:smoke

DIR is a Hugging Face directory or hub id, ADAPTER a PEFT adapter. `against` puts a second model
beside the first, `target=cat` asks for another animal. A model has no replications, so there are no
intervals: train more students to learn what a difference means.

`knowledge` adds questions with one right answer among several. FILE is a jsonl of them in the form
of MMLU (question, choices, answer) or of ARC; without it sixteen easy ones of our own are asked.
`--config.evals.knowledge.num_questions=N` asks the first N alone: shuffle a file that is sorted by
subject. A question is as many prompts as it has choices.

SmolLM2-135M takes about a minute on two CPU cores without a FILE.
"""

from pathlib import Path

from ml_collections import ConfigDict

from subjax import arguments, schema

QUESTIONS = str(Path(__file__).parent / "corpora/questions.jsonl")


def get_config(arg: str = "") -> ConfigDict:
    """One model, or two `against` each other, asked about a `target`; `smoke` has random ones.

    `knowledge` asks them questions that have a right answer, too.
    """
    options = arguments.parse(arg, against=False, knowledge=False, smoke=False, target="owl")
    config = schema.base()
    config.name = "evaluate"
    config.title = "What models prefer"
    config.lineage_from = "teacher"
    config.compute.precision = "auto"
    with config.unlocked():
        for name in ("model", "other") if options.against or options.smoke else ("model",):
            path = "HuggingFaceTB/SmolLM2-135M-Instruct"
            config.bases[name] = schema.base_row(source="hf", path=path)
        config.traits.asked = schema.trait_row(target=options.target, capital=True)
        shared = {
            "subjects": ("bases/*",),
            "questions": "all",
            "system_prompt": "You are a helpful assistant.",
        }
        config.evals.preference = schema.eval_row(kind="preference", trait="asked", **shared)
        config.evals.answers = schema.eval_row(
            kind="answers", trait="asked", num_samples=1, max_new_tokens=8, **shared
        )
        if options.knowledge:
            config.evals.knowledge = schema.eval_row(kind="choice", path=QUESTIONS, **shared)
    if options.smoke:
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    config.name = "evaluate_smoke"
    config.compute.precision = "float32"
    for row in config.bases.values():
        row.update(source="random", path="")
        row.update(width=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_width=32)
    config.evals.answers.prompt_tokens = 192
    for row in config.evals.values():
        row.questions = "explore"
