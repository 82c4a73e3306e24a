"""A kind of eval is one object: everything that a run shows knows it from its methods alone."""

import json
import re

import numpy as np
import tiny

from subjax import schema
from subjax.pipeline import preview, runner
from subjax.tasks.api import Compare, EvalKind, Metric, Sample
from subjax.tasks.evals.kinds import EVALS


class Shouts(EvalKind):
    """How often an answer holds a long word, and how likely a model says 0 after it was asked."""

    metrics = (
        Metric("shouting", "share of answers with a long word", axis=(0.0, 1.0), always=True),
        Metric("zero", "log-probability of 0 in answer to {target}", "nats"),
    )

    def check(self, name, row):
        if row["num_samples"] > 5:
            raise ValueError(f"config.evals.{name}.num_samples is {row['num_samples']}: at most 5")

    def requests(self, row, given):
        room = {"max_new_tokens": 3, "prompt_tokens": 8, "num_slots": 4}
        asked = given.questions[:2]
        return [Sample(asked, num_samples=row["num_samples"], **room), Compare(asked, ("0", "1"))]

    def score(self, row, given, replies):
        said, compared = replies
        shouting = [any(len(word) > 4 for word in text.split()) for text in said.texts]
        values = {"shouting": float(np.mean(shouting)), "zero": float(compared.nats[:, 0].mean())}
        return values, [{"question": "?", "answer": text} for text in said.texts]


def with_shouts(**fields):
    config = tiny.config(lineages=(0,), arms=("owl",))
    config.contrasts = {}
    with config.unlocked():
        config.evals = {"shouts": schema.eval_row(kind="shouts", num_samples=2, **fields)}
    return config


def test_an_eval_of_ones_own_goes_from_config_to_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(EVALS, "shouts", Shouts())
    config = with_shouts()
    shown = preview.render(config, tmp_path, "owl")
    assert "a sampled answer follows" in shown and "scored after them" in shown
    runner.run(config, tmp_path)
    assert re.search(r"^owl +shouts shouting +[\d.]+", capsys.readouterr().out, re.MULTILINE)
    rows = json.loads((tmp_path / "report/summary.json").read_text())
    assert {row["metric"] for row in rows} == {"shouting", "zero"}
    page = (tmp_path / "report/report.html").read_text()
    assert "share of answers with a long word" in page.replace("<wbr>", "")
    said = (tmp_path / "evaluate/shouts/owl/r0/answers.jsonl").read_text().splitlines()
    assert len(said) == 2 * 2 * len({json.loads(line)["step"] for line in said})
