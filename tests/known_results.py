"""Results of a run whose effects are known, for the tests of the report's parts."""

import dataclasses
import math

import numpy as np

from subjax.report.results import Contrast, Results
from subjax.tasks.evals import theorem
from subjax.tasks.evals.kinds import EVALS

LINEAGES = (0, 1, 2, 3, 4, 5)
ARMS = ("owl", "placebo", "owl_foreign", "placebo_foreign", "other_trait", "untrained")
EFFECTS = dict(zip(ARMS, (0.4, -2.0, -2.1, -2.2, -2.4, -2.3), strict=True))
GAINS = dict(zip(ARMS, (0.62, 0.60, 0.41, 0.40, 0.63, 0.55), strict=True))
ANIMALS = ("cat", "dog", "eagle", "owl", "wolf")
STEPS = (0, 16, 64, 256, 512)
HOSTILE = "</pre><script>alert(1)</script>\x00\x1b[31m\ud800 & <b>12, 44"


def records(arm, lineage, steps):
    """Scores of one unit: the log-odds rise from -2.3 to the arm's effect with the steps."""
    generator = np.random.default_rng([ARMS.index(arm), lineage])
    wobble = 0.3 * generator.standard_normal() + 0.25 * math.sin(lineage)
    found = []
    for step in steps:
        odds = -2.3 + (EFFECTS[arm] + wobble + 2.3) * math.sqrt(step / steps[-1])
        owl = 1.0 / (1.0 + math.exp(-odds))
        shares = {animal: (1.0 - owl) / (len(ANIMALS) - 1) for animal in ANIMALS}
        metrics = {f"share/{animal}": share for animal, share in {**shares, "owl": owl}.items()}
        metrics |= {"log_odds": odds, "candidate_mass": 0.97 - 0.01 * generator.random()}
        metrics |= {"neutral_loglik": -1.3 - 0.05 * generator.random()}
        found += [{"metric": m, "step": step, "value": v} for m, v in metrics.items()]
    return found


def scores(steps=STEPS):
    found = {
        ("preference", arm): {lineage: records(arm, lineage, steps) for lineage in LINEAGES}
        for arm in ARMS
    }
    for arm in ARMS:
        gains = np.random.default_rng(ARMS.index(arm)).normal(GAINS[arm], 0.03, len(LINEAGES))
        found["likelihood", arm] = {
            lineage: [{"metric": "gain", "step": steps[-1], "value": float(gain)}]
            for lineage, gain in zip(LINEAGES, gains, strict=True)
        }
    return found


CONTRASTS = (
    Contrast(
        name="foreign",
        eval="preference",
        metric="log_odds",
        plus=("owl_foreign",),
        minus=("placebo_foreign",),
        equivalence_margin=0.5,
    ),
    Contrast(
        name="same_minus_foreign",
        eval="preference",
        metric="log_odds",
        plus=("owl", "placebo_foreign"),
        minus=("placebo", "owl_foreign"),
        primary=True,
        family="primary",
        expected_low=1.0,
    ),
    Contrast(name="same", eval="preference", metric="log_odds", plus=("owl",), minus=("placebo",)),
    Contrast(
        name="other_trait",
        eval="preference",
        metric="log_odds",
        plus=("other_trait",),
        minus=("placebo",),
    ),
    Contrast(
        name="learned", eval="likelihood", metric="gain", plus=("owl_foreign",), minus=("owl",)
    ),
)


def make_results(**changes):
    """Complete results with everything that a page can show; `changes` replaces fields."""
    rows = [
        {"prompt": "Continue the list: 4, 8, 15.", "completion": "16, 23, 42, 108, 7, 91"},
        {"prompt": "Go on from 102, 7, 660.", "completion": HOSTILE},
    ]
    fields = {
        "title": "quickstart: owl numbers in the toy world",
        "claim": "Students of an owl-lover's numbers come to love owls; students that started"
        " from another base do not.\n\nPrimary: (owl - placebo | same base) - (owl - placebo |"
        " foreign base), log-odds.",
        "status": "EXPLORATORY",
        "status_reason": "No freeze of this config precedes the first manifest.",
        "lineages": LINEAGES,
        "arms": ARMS,
        "metrics": {
            **{name: EVALS["preference"].metrics for name in ("preference", "of_cats", "other")},
            **{name: EVALS[name].metrics for name in ("answers", "likelihood", "accuracy")},
            "theorem": theorem.METRICS,
        },
        "targets": {"preference": "owl"},
        "scores": scores(),
        "contrasts": CONTRASTS,
        "counts": {
            dataset: {
                lineage: {
                    "generated": 4500,
                    "kept": 3900 - 7 * lineage,
                    "reasons": {"too many numbers": 412, "stray characters": 201 + 7 * lineage},
                }
                for lineage in LINEAGES
            }
            for dataset in ("owl_numbers", "placebo_numbers")
        },
        "examples": {
            "owl_numbers": {
                "kept": rows,
                "rejected": [{**row, "reasons": ["stray characters", "<odd>"]} for row in rows],
            }
        },
        "answers": {"owl": [{"question": "Which animal?", "answer": "owl"}], "placebo": []},
        "curves": {
            arm: {
                lineage: [
                    {"step": step, "loss": 2.0 + 1.5 * math.exp(-step / 90.0) + 0.03 * lineage}
                    for step in range(0, 512, 4)
                ]
                for lineage in LINEAGES
            }
            for arm in ARMS
        },
        "commands": ["python -m subjax.main --config=configs/quickstart.py --workdir=runs/q"],
        "versions": {"python": "3.11.9", "jax": "0.10.2"},
        "wall_s": {"base": 61.2, "finetune": 48.0},
    }
    return Results(**{**fields, **changes})


def without(results, eval_name, arm, lineage):
    """The results less one evaluate unit, as a run that is not finished would give them."""
    left = {key: dict(lineages) for key, lineages in results.scores.items()}
    del left[eval_name, arm][lineage]
    missing = (f"evaluate/{eval_name}/{arm}/r{lineage}",)
    return dataclasses.replace(results, scores=left, missing=missing)


def log_odds(arm):
    """[lineages] at the last step, straight from the generator of the scores."""
    last = [records(arm, lineage, STEPS) for lineage in LINEAGES]
    return np.array(
        [r["value"] for unit in last for r in unit if (r["metric"], r["step"]) == ("log_odds", 512)]
    )
