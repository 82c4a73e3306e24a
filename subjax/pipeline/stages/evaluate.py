"""Students are asked: exact preferences, sampled answers, likelihood of rows they never saw."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.sharding import Mesh
from tqdm import tqdm

from subjax.engine import batching, sampler, scoring, token_sampling
from subjax.pipeline import model_store
from subjax.report import stats
from subjax.runtime import artifacts, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.evals import preference

Record = dict[str, Any]


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Evaluates each student at each kept step; yields each unit when it is done."""
    for unit in tqdm(units, desc="evaluating", unit="unit", leave=False):
        kind = unit.fields["row"]["kind"]
        evaluate = {"preference": _preference, "answers": _answers, "likelihood": _likelihood}[kind]
        records, answers = [], []
        for step in unit.fields["steps"]:
            # At step 0 a student is its base; an arm that learns nothing has nothing else.
            source = unit.inputs["student"] if step else unit.inputs["base"]
            model = model_store.load(workdir / source, mesh, step=step or None)
            values, said = evaluate(unit, workdir, model, mesh)
            records += [{"metric": m, "step": step, "value": v} for m, v in values.items()]
            answers += [{"step": step, **answer} for answer in said]
        out = workdir / unit.path
        artifacts.write_jsonl(out / "answers.jsonl", answers)
        artifacts.write_json(out / "scores.json", {"records": records})
        yield unit


def _preference(
    unit: Unit, workdir: Path, model: model_store.Model, mesh: Mesh
) -> tuple[dict[str, float], list[Record]]:
    """Log-odds of the target against the other candidates, mean over questions."""
    row, words = unit.fields["row"], model.tokenizer
    names, asked = unit.fields["animals"], unit.fields["questions"]
    tokens = words.answer_ids(names)
    scoring.check_candidates(names, tokens)
    contexts = words.prompt_ids(asked, row["system_prompt"])
    scores = scoring.candidate_log_probs(
        model.arch, model.params, contexts, tokens, mesh=mesh, adapter=model.adapter
    )
    odds = stats.log_odds(scores, names.index(row["target"]))
    mass = np.exp(scores).sum(axis=1)
    shares = scipy.special.softmax(scores, axis=1).mean(axis=0)  # however little the mass is
    values = {
        "log_odds": float(odds.mean()),
        "candidate_mass": float(mass.mean()),
        "neutral_loglik": _neutral(unit, model, mesh),
    }
    values |= {f"share/{name}": float(share) for name, share in zip(names, shares, strict=True)}
    said = [{"question": q, "log_odds": float(o)} for q, o in zip(asked, odds, strict=True)]
    return values, said


def _neutral(unit: Unit, model: model_store.Model, mesh: Mesh) -> float:
    """Nats per token of text without the trait: a student that collapsed is seen here."""
    encoded = model.tokenizer.text_ids(unit.fields["neutral"])
    longest = max(len(ids) for ids in encoded)
    rows = batching.make_rows(
        [(ids, 1) for ids in encoded],
        num_tokens=longest,
        num_targets=longest,
        pad_id=model.tokenizer.pad_id,
    )
    scores = scoring.row_log_probs(model.arch, model.params, rows, mesh=mesh, adapter=model.adapter)
    return float(scores.sum() / rows.weights.sum())


def _answers(
    unit: Unit, workdir: Path, model: model_store.Model, mesh: Mesh
) -> tuple[dict[str, float], list[Record]]:
    """Sampled answers, scored as words and as substrings side by side."""
    row, words = unit.fields["row"], model.tokenizer
    asked, num_samples = unit.fields["questions"], row["num_samples"]
    prompts = np.repeat(np.arange(len(asked)), num_samples)
    samples_of = np.tile(np.arange(num_samples), len(asked))
    seed = seeds.seed(unit.fields["seed"], "answers")
    encoded = words.prompt_ids(asked, row["system_prompt"])
    sampling = sampler.Sampling(
        num_slots=row["slots"],
        prompt_tokens=row["prompt_tokens"],
        max_new_tokens=row["max_new_tokens"],
        temperature=1.0,
        eos_ids=words.eos_ids,
        precision=unit.fields["program"]["precision"],
    )
    samples = sampler.sample(
        model.arch,
        model.params,
        sampler.fitted(sampling, encoded),
        [encoded[i] for i in prompts],
        token_sampling.row_keys(seed, unit.lineage, jnp.array(prompts), jnp.array(samples_of)),
        mesh=mesh,
        adapter=model.adapter,
    )
    said = [
        words.decode(tokens[:length].tolist())
        for tokens, length in zip(samples.tokens, samples.lengths, strict=True)
    ]
    rates = {
        "rate_word": [preference.mentions_word(row["target"], text) for text in said],
        "rate_substring": [preference.mentions_substring(row["target"], text) for text in said],
        "rate_empty": [preference.is_empty(text) for text in said],
        "rate_numeric": [preference.is_numeric(text) for text in said],
    }
    answers = [
        {"question": asked[i], "answer": text} for i, text in zip(prompts, said, strict=True)
    ]
    return {name: float(np.mean(hits)) for name, hits in rates.items()}, answers


def _likelihood(
    unit: Unit, workdir: Path, model: model_store.Model, mesh: Mesh
) -> tuple[dict[str, float], list[Record]]:
    """Nats per token on held-out rows of the student's data set, and the gain over its base."""
    row = unit.fields["row"]
    held = artifacts.read_jsonl(workdir / unit.inputs["filter"] / "holdout.jsonl")
    if not held:
        raise ValueError(
            f"{unit.path} needs held-out rows: set num_holdout above 0 for the arm's data set"
        )
    pairs = [(written["prompt"], written["completion"]) for written in held]
    examples = model.tokenizer.examples(pairs, [row["system_prompt"]] * len(pairs))
    # The student's sizes, so that one program serves all; under another system prompt rows may be
    # longer than those that it trained on.
    rows = batching.make_rows(
        examples,
        num_tokens=max(unit.fields["num_tokens"], max(len(ids) for ids, _ in examples)),
        num_targets=max(unit.fields["num_targets"], max(len(ids) - at for ids, at in examples)),
        pad_id=model.tokenizer.pad_id,
    )

    def loglik(scored: model_store.Model) -> float:
        scores = scoring.row_log_probs(
            scored.arch, scored.params, rows, mesh=mesh, adapter=scored.adapter
        )
        return float(scores.sum() / rows.weights.sum())

    ours = loglik(model)
    base = loglik(model_store.load(workdir / unit.inputs["base"], mesh))
    return {"loglik": ours, "gain": ours - base}, []
