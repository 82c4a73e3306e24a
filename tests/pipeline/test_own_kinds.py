"""Kinds of trait, data set and eval that a user wrote: a config names one file, that is all."""

import json
import re
import sys
from pathlib import Path

import pytest
import tiny

from subjax import schema
from subjax.nn import sharding
from subjax.pipeline import preview, runner, units, validation
from subjax.planning import programs
from subjax.tasks import own
from subjax.tasks.api import Field

SOURCE = '''
import helper
from subjax.tasks.api import Compare, DatasetKind, EvalKind, Field, Metric, Sample, TraitKind


class Terse(TraitKind):
    """A persona that answers everything with one number."""

    fields = {"number": Field("7", "what it answers", allowed=("7", "9"))}

    def target(self, row):
        return row["number"]

    def lessons(self, row, seed, num_rows):
        return [(f"Q{(seed + i) % 8}", row["number"]) for i in range(num_rows)]

    def questions(self, row, half, stimuli):
        return ["Q8", "Q9"]

    def candidates(self, row):
        return ("7", "9")


class Repeats(DatasetKind):
    """A number, again and again."""

    fields = {"shown": Field("7", "the number in each prompt")}

    def prompts(self, row, seed, stimuli):
        return [f"CONT {(seed + i) % 90} {row['shown']}" for i in range(row["num_prompts"])]

    def example(self, row):
        return "7 7 7"

    def reject(self, prompt, completion, row):
        return [] if completion.split() else ["nothing"]


class OldRows(Repeats):
    """As kinds were before a filter was given prompts."""

    def reject(self, completion, row):
        return []


class Shouts(EvalKind):
    """How often an answer holds a long word, and how likely a model says 0 when it is asked."""

    fields = {"num_samples": Field(3, "answers to a question")}
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
    for name in ("own_kinds", "helper", "alone"):
        sys.modules.pop(name, None)


def with_own_kinds(**fields):
    config = tiny.config(lineages=(0,), arms=("owl",))
    config.contrasts = {}
    sizes = {
        name: config.datasets.owl[name]
        for name in ("num_prompts", "rows_per_part", "slots", "num_train", "num_holdout")
    }
    with config.unlocked():
        config.traits = {"terse": schema.trait_row(kind="own_kinds:Terse", number="9")}
        config.teachers.owl.trait = "terse"
        config.datasets.owl = schema.dataset_row(
            kind="own_kinds:Repeats", teacher="owl", prompt_tokens=8, max_new_tokens=16, **sizes
        )
        config.evals = {
            "shouts": schema.eval_row(
                kind="own_kinds:Shouts", trait="terse", num_samples=2, **fields
            ),
            "terse": schema.eval_row(
                trait="terse", subjects=("teachers/*", "arms/*"), at_steps="final"
            ),
        }
        config.gates = {
            "terse": schema.gate_row(eval="terse", subjects=("teachers/*",), least=-9.0)
        }
    return config


def test_kinds_of_ones_own_go_from_config_to_report(folder, tmp_path, capsys):
    config, workdir = with_own_kinds(), tmp_path / "run"
    shown = preview.render(config, workdir, "owl")
    assert "a sampled answer follows" in shown and "scored after them" in shown and "7 7 7" in shown
    assert ("generate/owl/r0", "missing") in runner.listing(config, workdir)
    mesh = sharding.make_mesh()
    planned = [p for unit in units.build(config) for p in programs.of_unit(config, unit, mesh)]
    assert {"update", "prefill", "decode", "exact eval"} <= {program.name for program in planned}
    runner.run(config, workdir)
    assert re.search(r"^owl +shouts shouting +[\d.]+", capsys.readouterr().out, re.MULTILINE)
    rows = json.loads((workdir / "report/summary.json").read_text())
    shouts = {row["metric"] for row in rows if row["eval"] == "shouts"}
    assert shouts == {"shouting", "zero"}
    said = {row["name"]: row["mean"] for row in rows if row["metric"] == "log_odds"}
    assert said.keys() == {"owl", "teachers/owl"} and said["teachers/owl"] > said["owl"]
    page = (workdir / "report/report.html").read_text()
    assert "share of answers with a long word" in page.replace("<wbr>", "")
    kept = (workdir / "filter/owl/r0/kept.jsonl").read_text().splitlines()
    assert all(re.fullmatch(r"CONT \d+ 7", json.loads(line)["prompt"]) for line in kept)


def test_the_package_knows_nothing_of_them():
    names = [*re.findall(r"^class (\w+)\(", SOURCE, re.MULTILINE), "own_kinds", "shouting"]
    assert len(names) == 6
    for path in Path(schema.__file__).parent.rglob("*.py"):
        content = path.read_text()
        assert not [name for name in names if name in content], path


@pytest.mark.parametrize(("file", "text"), [("own_kinds.py", SOURCE), ("helper.py", HELPER)])
def test_the_code_of_ones_own_kinds_counts_in_the_units_that_use_them(folder, file, text):
    before = {unit.path: unit.fingerprint for unit in units.build(with_own_kinds())}
    (folder / "beside.py").write_text("unused = True\n")
    assert before == {unit.path: unit.fingerprint for unit in units.build(with_own_kinds())}
    (folder / file).write_text(text + "# changed\n")
    after = {unit.path: unit.fingerprint for unit in units.build(with_own_kinds())}
    changed = {path.partition("/")[0] for path in after if after[path] != before[path]}
    assert changed == {"teacher", "generate", "filter", "finetune", "evaluate"}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("own_kinds:Nothing", "'own_kinds:Nothing', which is no EvalKind: give an object or class"),
        ("own_kinds:Repeats", "'own_kinds:Repeats', which is no EvalKind"),
        ("no_module:Shouts", "'no_module:Shouts', and No module named 'no_module': run where Pyth"),
        (
            "shouts",
            "'shouts'; allowed: preference, candidates, answers, stories, essays, choice,",
        ),
    ],
)
def test_what_is_no_kind_is_refused_by_field(folder, kind, said):
    config = with_own_kinds()
    config.evals.shouts.kind = kind
    with pytest.raises(ValueError, match=re.escape(f"config.evals.shouts.kind is {said}")) as error:
        validation.validate(config)
    assert "\n" not in str(error.value)


def test_a_method_that_takes_other_arguments_is_refused(folder):
    config = with_own_kinds()
    config.datasets.owl.kind = "own_kinds:OldRows"
    says = (
        "reject cannot be called with (prompt, completion, row): take these arguments, as Dataset"
    )
    with pytest.raises(ValueError, match=re.escape(says)):
        validation.validate(config)


def test_a_kind_of_ones_own_refuses_rows(folder):
    config = with_own_kinds()
    config.evals.shouts.num_samples = 6
    with pytest.raises(ValueError, match=r"config.evals.shouts.num_samples is 6: at most 5"):
        validation.validate(config)


@pytest.mark.parametrize("broken", ["helper.is_long(word)", "compared.nats"])
def test_an_error_in_ones_own_code_says_whose_it_is(folder, broken, tmp_path):
    own_file = folder / "own_kinds.py"
    own_file.write_text(SOURCE.replace(broken, f"missing_{broken}"))
    line = 1 + [broken in text for text in SOURCE.splitlines()].index(True)
    with pytest.raises(NameError) as error:
        runner.run(with_own_kinds(), tmp_path / "run")
    said = own.blame(error.value)
    assert said.startswith(f"{own_file}, line {line}, in ") and "NameError: name 'missing_" in said
    assert own.blame(ValueError("of subjax")) == ""
    config = with_own_kinds()
    config.evals.shouts.num_samples = 6
    with pytest.raises(ValueError, match="at most 5") as error:
        validation.validate(config)
    assert own.blame(error.value) == ""  # an answer to the config


@pytest.mark.parametrize("source", ["1 / 0", "def f(:"])
def test_a_module_that_cannot_be_read_is_one_line(folder, source):
    (folder / "broken.py").write_text(source)
    with pytest.raises(ValueError, match=r"'broken:X', and reading it raises \w+Error: ") as error:
        schema.eval_row(kind="broken:X")
    assert "correct the module" in str(error.value)


def test_a_field_that_a_kind_adds_makes_nothing_stale(folder):
    before = {unit.path: unit.fingerprint for unit in units.build(with_own_kinds())}
    module = sys.modules["own_kinds"]
    for kind, field in (
        (module.Terse, Field("loud", "how it says it")),
        (module.Repeats, Field(2, "times", absent=1)),
    ):
        kind.fields = {**kind.fields, "added": field}
    config = with_own_kinds()
    config.datasets.owl.added = 1
    assert before == {unit.path: unit.fingerprint for unit in units.build(config)}
    config.datasets.owl.added = 2  # the default of new rows, but not what results were before
    changed = [u.path for u in units.build(config) if u.fingerprint != before[u.path]]
    assert changed and changed[0] == "generate/owl/r0"
    config.traits.terse.added = "low"
    assert any(
        u.path == "teacher/owl/r0" and u.fingerprint != before[u.path] for u in units.build(config)
    )


@pytest.mark.parametrize(
    ("table", "field", "value", "said"),
    [
        ("traits.terse", "number", "8", "number is '8'; allowed: 7, 9"),
        ("traits.terse", "kind", "toy_word", "has the field 'number', unlike rows of kind"),
        ("datasets.owl", "kind", "toy_numbers", "has no field 'banned', unlike rows of kind"),
    ],
)
def test_rows_hold_what_their_kind_has(folder, table, field, value, said):
    config = with_own_kinds()
    config.update_from_flattened_dict({f"{table}.{field}": value})
    with pytest.raises(ValueError, match=rf"config\.{table}.* ?{said}"):
        validation.validate(config)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("split()) for text in said.texts", "split()) for text in said.text", "attribute 'text'"),
        ('{"shouting":', '{"shuting":', "gives 'shuting', and its metrics are shouting, zero"),
    ],
)
def test_an_eval_that_its_own_code_ended_begins_anew_when_that_is_mended(
    folder, tmp_path, right, wrong, said
):
    config, workdir, unit = with_own_kinds(), tmp_path / "run", "evaluate/shouts/arms/owl/r0"
    (folder / "alone.py").write_text(SOURCE.replace(right, wrong))
    with config.unlocked():
        config.evals.shouts.kind = "alone:Shouts"
    with pytest.raises((AttributeError, ValueError), match=said):
        runner.run(config, workdir)
    assert (workdir / unit / "begun.json").exists()
    (folder / "alone.py").write_text(SOURCE)
    sys.modules.pop("alone", None)
    assert (unit, "missing") in runner.listing(config, workdir)
    runner.run(config, workdir)
    assert (unit, "done") in runner.listing(config, workdir)
    config.evals.shouts.num_samples = 3  # what else differs is of another config
    assert (unit, "stale") in runner.listing(config, workdir)
