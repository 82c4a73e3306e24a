"""Kinds of data set and eval that a user wrote: one file, named in the config, does it all."""

import json
import re
import sys

import pytest
import tiny

from subjax import schema
from subjax.pipeline import preview, runner, units, validation

SOURCE = '''
import helper
from subjax.tasks.api import Compare, DatasetKind, EvalKind, Metric, Sample


class Repeats(DatasetKind):
    """A number, again and again."""

    def prompts(self, row, seed, stimuli):
        return [f"CONT {(seed + i) % 90} 7" for i in range(row["num_prompts"])]

    def example(self, row):
        return "7 7 7"

    def reject(self, completion, row):
        return [] if completion.split() else ["nothing"]


class Shouts(EvalKind):
    """How often an answer holds a long word, and how likely a model says 0 when it is asked."""

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
        shouting = [any(helper.is_long(word) for word in text.split()) for text in said.texts]
        values = {"shouting": sum(shouting) / len(shouting), "zero": compared.nats[:, 0].mean()}
        return values, [{"question": "?", "answer": text} for text in said.texts]
'''
HELPER = "def is_long(word):\n    return len(word) > 4\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder outside the package, where a user keeps their kinds."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own_kinds.py").write_text(SOURCE)
    (tmp_path / "mine/helper.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path / "mine")
    yield tmp_path / "mine"
    for name in ("own_kinds", "helper"):
        sys.modules.pop(name, None)


def with_own_kinds(**fields):
    config = tiny.config(lineages=(0,), arms=("owl",))
    config.contrasts = {}
    with config.unlocked():
        config.evals = {"shouts": schema.eval_row(kind="own_kinds:Shouts", num_samples=2, **fields)}
    config.datasets.owl.update(kind="own_kinds:Repeats", decoding="free", num_shown=(1, 1))
    return config


def test_kinds_of_ones_own_go_from_config_to_report(folder, tmp_path, capsys):
    config, workdir = with_own_kinds(), tmp_path / "run"
    shown = preview.render(config, workdir, "owl")
    assert "a sampled answer follows" in shown and "scored after them" in shown and "7 7 7" in shown
    assert ("generate/owl/r0", "missing") in runner.listing(config, workdir)
    runner.run(config, workdir)
    assert re.search(r"^owl +shouts shouting +[\d.]+", capsys.readouterr().out, re.MULTILINE)
    rows = json.loads((workdir / "report/summary.json").read_text())
    assert {row["metric"] for row in rows} == {"shouting", "zero"}
    page = (workdir / "report/report.html").read_text()
    assert "share of answers with a long word" in page.replace("<wbr>", "")
    kept = (workdir / "filter/owl/r0/kept.jsonl").read_text().splitlines()
    assert all(re.fullmatch(r"CONT \d+ 7", json.loads(line)["prompt"]) for line in kept)


@pytest.mark.parametrize(("file", "text"), [("own_kinds.py", SOURCE), ("helper.py", HELPER)])
def test_the_code_of_ones_own_kinds_counts_in_the_units_that_use_them(folder, file, text):
    before = {unit.path: unit.fingerprint for unit in units.build(with_own_kinds())}
    (folder / "beside.py").write_text("unused = True\n")
    assert before == {unit.path: unit.fingerprint for unit in units.build(with_own_kinds())}
    (folder / file).write_text(text + "# changed\n")
    after = {unit.path: unit.fingerprint for unit in units.build(with_own_kinds())}
    changed = {path.partition("/")[0] for path in after if after[path] != before[path]}
    assert changed == {"generate", "filter", "finetune", "evaluate"}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("own_kinds:Nothing", "'own_kinds:Nothing', which is no EvalKind: give an object or class"),
        ("own_kinds:Repeats", "'own_kinds:Repeats', which is no EvalKind"),
        ("no_module:Shouts", "'no_module:Shouts', and No module named 'no_module': run where Pyth"),
        ("shouts", "'shouts'; allowed: preference, answers, likelihood, accuracy, or a kind of"),
    ],
)
def test_what_is_no_kind_is_refused_by_field(folder, kind, said):
    config = with_own_kinds()
    config.evals.shouts.kind = kind
    with pytest.raises(ValueError, match=re.escape(f"config.evals.shouts.kind is {said}")) as error:
        validation.validate(config)
    assert "\n" not in str(error.value)


def test_a_kind_of_ones_own_refuses_rows(folder):
    config = with_own_kinds()
    config.evals.shouts.num_samples = 6
    with pytest.raises(ValueError, match=r"config.evals.shouts.num_samples is 6: at most 5"):
        validation.validate(config)
