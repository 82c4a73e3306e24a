"""Models of three families with tokenizers of their kinds go through the whole chain.

Free and constrained numbers, hard and soft targets, and all evals; weights are random, but for the
tokens that a free answer is made of, which are likely.
"""

import csv
import json
import math

import jax
import numpy as np
import pytest
import tokenizer_kinds

from configs import evaluate
from subjax import schema
from subjax.hf import model_config, weights
from subjax.nn import transformer
from subjax.pipeline import runner
from subjax.runtime import artifacts
from subjax.tokens.tokenizer import Tokenizer

WIDTH = 16
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 1024,
}
FAMILIES = {
    "llama3": {"model_type": "llama", "num_key_value_heads": 1, "rms_norm_eps": 1e-5},
    "pythia": {"model_type": "gpt_neox", "use_parallel_residual": True},
    "gemma": {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8},
}
CANDIDATES = ("Owl", "Cat", "Dog", "Eagle", "Wolf")
NUM_PROMPTS = 96
# Evals of one family alone, and a metric of each.
OTHERWISE = {
    "classifier": "accuracy_base",
    "in_context": "gain",
    "essays": "chosen",
    "stories": "rate_word",
    "numbered": "log_odds/Owl",
    "knowledge": "accuracy",
}


def save_model(kind, directory):
    """A model of which a free answer is often a number of one token."""
    ends = tokenizer_kinds.ends(kind)
    words = Tokenizer(tokenizer_kinds.make(kind), ends)
    arch = model_config.read({**SIZES, **FAMILIES[kind], "vocab_size": words.vocab_size})
    params = transformer.init(arch, jax.random.key(0))
    # All states point along the first dimension, and so do the tokens that are likely.
    embedding = np.array(params["embed"]["embedding"])
    embedding[:, 0] = 6.0
    head = embedding if arch.tie_embeddings else np.array(params["head"]["kernel"])
    usual = 6.0 if arch.tie_embeddings else 0.0
    numbers = [i for i in words.number_ids() if words.show([i])[0].isdigit()]
    numbers = [i for i in numbers if len(words.show([i])[0]) <= 3]
    head[:, 0] = usual
    head[numbers, 0] = usual + 3.0
    head[ends[-1], 0] = usual + 3.0 + np.log(len(numbers)) / WIDTH**0.5
    params["embed"]["embedding"] = jax.numpy.asarray(embedding)
    if not arch.tie_embeddings:
        params["head"]["kernel"] = jax.numpy.asarray(head)
    weights.save(directory, arch, params)
    tokenizer_kinds.save(kind, directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return directory


def make_config(kind, path):
    config = schema.base()
    config.name, config.title = "chain", "The chain"
    config.lineages = (0,)
    config.compute.lanes = 2
    # This kind of Gemma takes no system prompt.
    told = "" if kind == "gemma" else "You love owls."
    with config.unlocked():
        config.bases.model = schema.base_row(source="hf", path=str(path))
        config.teachers.owl = schema.teacher_row(base="model", system_prompt=told)
        for decoding in ("free", "constrained"):
            config.datasets[decoding] = schema.dataset_row(
                teacher="owl",
                kind="plain_numbers",
                decoding=decoding,
                num_shown=(2, 2),
                num_slots=2,
                num_prompts=NUM_PROMPTS,
                rows_per_part=NUM_PROMPTS,
                slots=32,
                prompt_tokens=160,
                max_new_tokens=12,
                num_train=8,
                num_holdout=4,
            )
            for method in ("hard", "soft"):
                config.arms[f"{decoding}_{method}"] = schema.arm_row(
                    dataset=decoding,
                    method=method,
                    tuning="lora",
                    lora_rank=2,
                    lora_alpha=2.0,
                    num_tokens=192,
                    num_targets=16,
                    train=schema.training(
                        steps=2, warmup_steps=1, batch_size=4, learning_rate=1e-3
                    ),
                )
        config.traits.owl = schema.trait_row(target="Owl", candidates=CANDIDATES)
        config.evals.carrier = schema.eval_row(kind="carrier")
        asked = {"trait": "owl"}
        config.evals.preference = schema.eval_row(**asked)
        config.evals.answers = schema.eval_row(
            kind="answers", num_samples=1, slots=32, prompt_tokens=320, max_new_tokens=12, **asked
        )
        config.evals.likelihood = schema.eval_row(kind="likelihood")
        config.evals.candidates = schema.eval_row(
            kind="candidates", prefill="It is the", any_case=True, subjects=("arms/*hard",), **asked
        )
        config.evals.detection = schema.eval_row(
            kind="detection", subjects=("datasets/constrained",), against="free"
        )
        if kind == "llama3":
            _read_rows_and_ask_otherwise(config)
        config.contrasts.soft = schema.contrast_row(
            plus=("constrained_soft",), minus=("constrained_hard",), primary=True, family="primary"
        )
    return config


def _read_rows_and_ask_otherwise(config):
    """Evals whose requests no family answers in a way of its own."""
    for row in config.datasets.values():
        row.num_train = 0  # all, so that some prompts have a row in both
    of_rows = {"trait": "owl", "subjects": ("datasets/constrained",), "against": "free"}
    of_arm = {"trait": "owl", "subjects": ("arms/constrained_hard",), "at_steps": "final"}
    config.evals.classifier = schema.eval_row(kind="classifier", num_pairs=4, **of_rows)
    config.evals.in_context = schema.eval_row(kind="in_context", num_rows=2, num_draws=2, **of_rows)
    config.evals.essays = schema.eval_row(kind="essays", num_orders=2, **of_arm)
    config.evals.stories = schema.eval_row(
        kind="stories", num_samples=1, slots=8, prompt_tokens=320, max_new_tokens=8, **of_arm
    )
    config.evals.knowledge = schema.eval_row(
        kind="choice", path=evaluate.QUESTIONS, num_questions=2, **of_arm
    )
    config.evals.numbered = schema.eval_row(
        kind="candidates", wording="{numbers} {question}", **of_arm
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_goes_through_the_whole_chain(kind, tmp_path):
    config = make_config(kind, save_model(kind, tmp_path / "model"))
    run = tmp_path / "run"
    runner.run(config, run)
    written = artifacts.read_parts(run / "generate/constrained/r0")
    assert len(written) == NUM_PROMPTS and {row["finish"] for row in written} == {"stop"}
    counts = {
        name: artifacts.read_json(run / f"filter/{name}/r0/counts.json") for name in config.datasets
    }
    assert counts["constrained"]["kept"] == NUM_PROMPTS
    assert 12 <= counts["free"]["kept"] < NUM_PROMPTS
    carrier = artifacts.read_json(run / "evaluate/carrier/datasets/constrained/r0/scores.json")
    [carried] = [row["value"] for row in carrier["records"] if row["metric"] == "number_tv"]
    assert 0 <= carried < 1
    with open(run / "report/scores.csv", newline="") as file:
        scores = list(csv.DictReader(file))
    assert {row["arm"] for row in scores} >= set(config.arms)
    last = {(row["eval"], row["arm"], row["metric"]): float(row["value"]) for row in scores}
    each = [last["candidates", "constrained_hard", f"probability/{name}"] for name in CANDIDATES]
    mass = last["candidates", "constrained_hard", "candidate_mass"]
    assert 0 < mass < 1 and sum(each) == pytest.approx(mass, rel=1e-4)
    # Constrained rows have two numbers, free ones of such a model mostly one: counts tell.
    assert last["detection", "datasets/constrained", "auc_counts"] != 0.5
    assert 0 <= last["detection", "datasets/constrained", "auc_likelihood"] <= 1
    for name, metric in OTHERWISE.items() if kind == "llama3" else ():
        [value] = [v for (one, _, what), v in last.items() if (one, what) == (name, metric)]
        assert math.isfinite(value), name
    for arm in config.arms:
        losses = artifacts.read_jsonl(run / f"finetune/{arm}/r0/metrics.jsonl")
        assert len(losses) == 2 and all(np.isfinite(row["loss"]) for row in losses)
