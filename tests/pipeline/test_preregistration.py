"""Only what was frozen before anything ran, and is what ran, is called confirmatory."""

import datetime
import importlib.metadata
import json
import re
from pathlib import Path

import jax
import pytest
import tiny
from ml_collections import ConfigDict

from configs import mnist, smollm2_owl
from subjax import schema
from subjax.hf import weights
from subjax.nn import transformer
from subjax.pipeline import preregistration, runner, units
from subjax.runtime import artifacts, versions

ROOT = Path(__file__).parents[2]


def digest(config):
    return preregistration.config_hash(config, units.build(config))


def changed(field, value):
    config = tiny.config()
    table, _, name = field.partition(".")
    with config.unlocked():
        if name and isinstance(value, ConfigDict):
            config[table][name] = value
        else:
            config.update_from_flattened_dict({field: value})
    return config


@pytest.fixture
def frozen(tmp_path):
    path = tmp_path / "preregistration.json"
    preregistration.freeze(
        tiny.config(), path, tmp_path / "run", command=["main.py", "--config=x.py"]
    )
    return path


def registered(path):
    config = tiny.config()
    config.preregistration = str(path)
    return config


def finish(workdir, config, *, finished_at=None, count=2):
    """Manifests of the first units, as if they had been run; None: of all."""
    for unit in units.build(config)[:count]:
        artifacts.write_manifest(workdir, unit, 1.0)
        path = workdir / unit.path / artifacts.MANIFEST
        if finished_at is not None:
            artifacts.write_json(path, {**artifacts.read_json(path), "finished_at": finished_at})


def status(config, workdir):
    return preregistration.status(config, units.build(config), workdir)


def test_the_file_says_what_will_be_tested(frozen):
    content = json.loads(frozen.read_text())
    time = datetime.datetime.fromisoformat(content.pop("frozen_at"))
    assert time.utcoffset() == datetime.timedelta(0)
    made_with = content.pop("made_with")
    assert made_with["code"] == {"subjax": versions.code()}
    assert made_with["packages"]["jaxlib"] == importlib.metadata.version("jaxlib")
    assert made_with["models"] == made_with["files"] == {}  # the run makes its own
    assert content == {
        "config": "tiny",
        "config_hash": digest(tiny.config()),
        "lineages": [0, 1],
        "primary": {
            "name": "same_base",
            "formula": "owl − placebo",
            "eval": "preference",
            "metric": "log_odds",
            "test": "two-sided sign-flip test over lineages",
            "interval": "95 % t-interval over lineages",
        },
        "workdir": str(frozen.parent / "run"),
        "command": "python -m subjax.main --config=x.py",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("lineages", (0, 1, 2)),
        ("arms.owl.train.learning_rate", 0.5),
        ("teachers.owl.trait", "placebo"),
        ("traits.owl.target", "cat"),
        ("datasets.placebo.max_value", 50),
        ("evals.preference.questions", "explore"),
        ("evals.preference.subjects", ("arms/owl", "arms/placebo", "teachers/owl")),
        ("evals.preference.at_steps", "final"),
        ("contrasts.same_base.metric", "candidate_mass"),
        ("contrasts.same_base.minus", ()),
        ("contrasts.same_base.equivalence_margin", 0.5),
        ("gates.taught", schema.gate_row(eval="preference", least=0.0)),
    ],
)
def test_the_hash_follows_results_and_analysis(field, value):
    assert digest(changed(field, value)) != digest(tiny.config())


@pytest.mark.parametrize("field", ["preregistration", "title", "claim", "name"])
def test_the_hash_follows_nothing_else(field):
    assert digest(changed(field, "other")) == digest(tiny.config())


def test_a_freeze_before_the_first_unit_confirms_once_all_units_are_done(frozen, tmp_path):
    config, workdir = registered(frozen), tmp_path / "run"
    for count, expected in ((0, "INCOMPLETE"), (2, "INCOMPLETE"), (None, "CONFIRMATORY")):
        finish(workdir, config, count=count)
        found, reason = status(config, workdir)
        assert found == expected
        assert "nothing of it was in this work directory when it was frozen" in reason
        assert ("frozen units are not done" in reason) == (found == "INCOMPLETE")
    # Of another directory it knows only what manifests say.
    finish(tmp_path / "other", config, count=None)
    found, reason = status(config, tmp_path / "other")
    assert found == "CONFIRMATORY"
    assert "no unit of it had finished in this work directory" in reason
    assert f"Freezing looked into {workdir}" in reason


@pytest.mark.parametrize("left", ["manifest", "part", "checkpoint"])
def test_nothing_is_frozen_where_units_of_it_are(left, tmp_path):
    config, workdir = tiny.config(), tmp_path / "run"
    unit = units.build(config)[1]
    if left == "manifest":
        artifacts.write_manifest(workdir, unit, 1.0)
    elif left == "part":
        artifacts.begin(workdir, unit)
    else:
        (workdir / unit.path / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"before the run, but {unit.path} is in .*lineages"):
        preregistration.freeze(config, tmp_path / "p.json", workdir)
    assert not (tmp_path / "p.json").exists()


def test_nothing_is_frozen_that_is_scored_in_a_directory_beside(tmp_path):
    config = tiny.config()
    finish(tmp_path / "looked", config, count=None)
    artifacts.write_json(tmp_path / "looked/config.json", {"name": "looked"})
    with pytest.raises(ValueError, match=r"but evaluate/.* of this config is done in .*looked"):
        preregistration.freeze(config, tmp_path / "p.json", tmp_path / "run")
    config.lineages = (7, 8)
    preregistration.freeze(config, tmp_path / "p.json", tmp_path / "run")


def test_a_freeze_after_the_first_unit_does_not(tmp_path):
    path = tmp_path / "late.json"
    finish(tmp_path / "run", tiny.config())
    preregistration.freeze(tiny.config(), path, tmp_path / "new/run")
    found, reason = status(registered(path), tmp_path / "run")
    assert found == "EXPLORATORY"
    assert "after base/toy/r0 had finished at" in reason
    assert "another one" not in reason


def test_other_code_packages_models_or_files_are_named(frozen, tmp_path, monkeypatch):
    config = registered(frozen)
    finish(tmp_path / "run", config, count=None)
    assert status(config, tmp_path / "run")[0] == "CONFIRMATORY"
    packages = {**versions.packages(), "jax": "0.0.1"}
    with monkeypatch.context() as patched:
        patched.setattr(versions, "code", lambda: "0" * 64)
        patched.setattr(versions, "packages", lambda: packages)
        found, reason = status(config, tmp_path / "run")
    assert found == "EXPLORATORY"
    assert "code subjax is another one (…" in reason
    assert re.search(r"packages jax is another one \([\d.]+ when frozen, now 0\.0\.1\)", reason)
    assert "packages flax" not in reason
    # Units of a start in between were made by what it ran.
    row = {"argv": ["main.py"], "started_at": artifacts.utc_now(), "code": "0" * 64}
    artifacts.append_jsonl(tmp_path / "run/commands.jsonl", row)
    found, reason = status(config, tmp_path / "run")
    assert (found, "the code of the start at" in reason) == ("EXPLORATORY", True)


def test_what_only_one_side_notes_is_named(frozen, tmp_path):
    config, content = registered(frozen), json.loads(frozen.read_text())
    content["made_with"]["files"]["stimuli"] = "abc"
    del content["made_with"]["packages"]["flax"]
    frozen.write_text(json.dumps(content))
    finish(tmp_path / "run", config, count=None)
    found, reason = status(config, tmp_path / "run")
    assert found == "EXPLORATORY"
    assert "files stimuli is another one (abc when frozen, now none)" in reason
    assert "packages flax is another one (none when frozen, now " in reason


def test_every_model_and_file_that_a_config_names_is_noted(tmp_path):
    adapter, rows = tmp_path / "adapter", tmp_path / "rows.jsonl"
    adapter.mkdir()
    for path in (adapter / "adapter_config.json", adapter / "adapter_model.safetensors", rows):
        path.write_text("{}")
    config = tiny.config()
    config.stimuli = str(rows)
    with config.unlocked():
        owl = tiny.as_kind(config.datasets.owl, "published", path=str(rows))
        config.datasets.owl = owl
        config.traits.owl = schema.trait_row(kind="file", path=str(rows))
    config.bases.toy.update(source="hf", path=str(adapter), adapter=str(adapter))
    config.teachers.owl.update(weights="given", path=str(adapter))
    found = preregistration.made_with(config)
    assert found["models"].keys() == {"bases.toy", "bases.toy.adapter", "teachers.owl"}
    assert found["files"].keys() == {"stimuli", "datasets.owl.path", "traits.owl.path"}
    config = mnist.get_config()
    config.images.mnist.data_dir = str(adapter)
    assert preregistration.made_with(config)["files"].keys() == {"images.mnist"}


def test_another_model_or_file_of_the_same_name_is_another_one(tmp_path, monkeypatch):
    """To the byte, also where names, shapes and sizes are the same."""
    model, stimuli = tmp_path / "model", tmp_path / "stimuli.json"
    params = transformer.init(tiny.ARCH, jax.random.key(0))
    weights.save(model, tiny.ARCH, params)
    tiny.BYTES.save(model)
    stimuli.write_text("{}")
    config = tiny.config()
    config.bases.toy.update(source="hf", path=str(model))
    config.stimuli = str(stimuli)
    before = preregistration.made_with(config)
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5000] ^= 1
    file.write_bytes(content)
    stimuli.write_text("[]")
    after = preregistration.made_with(config)
    assert before["models"].keys() == after["models"].keys() == {"bases.toy"}
    assert before["files"].keys() == after["files"].keys() == {"stimuli"}
    assert before["models"] != after["models"]
    assert before["files"] != after["files"]
    # Of a large file the header's digest sees samples alone.
    monkeypatch.setattr(preregistration.hub, "header_digest", lambda directory: "alike")
    with_it = preregistration.made_with(config)["models"]
    content[-5000] ^= 1
    file.write_bytes(content)
    assert preregistration.made_with(config)["models"] != with_it
    config.stimuli = str(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        preregistration.made_with(config)


def test_the_template_that_an_adapter_brings_counts(tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"):
        (tmp_path / name).write_text("{}")
    before = preregistration._model(str(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("{ }")
    assert preregistration._model(str(tmp_path)) != before


def test_the_published_freeze_is_older_than_what_it_would_have_to_note(tmp_path):
    config = smollm2_owl.get_config("published")
    config.preregistration = str(ROOT / "configs/smollm2_owl_preregistration.json")
    found, reason = status(config, tmp_path)
    assert found == "EXPLORATORY"
    assert "a version that did not note code, packages, models and files" in reason


def test_the_earliest_unit_counts(frozen, tmp_path):
    config = registered(frozen)
    finish(tmp_path, config)
    early = units.build(config)[1]
    path = tmp_path / early.path / artifacts.MANIFEST
    before = {**artifacts.read_json(path), "finished_at": "2001-01-01T00:00:00.000000+00:00"}
    artifacts.write_json(path, before)
    found, reason = status(config, tmp_path)
    assert (found, early.path in reason) == ("EXPLORATORY", True)


def test_a_unit_without_a_time_proves_nothing(frozen, tmp_path):
    config = registered(frozen)
    finish(tmp_path, config)
    path = tmp_path / units.build(config)[0].path / artifacts.MANIFEST
    manifest = artifacts.read_json(path)
    del manifest["finished_at"]
    artifacts.write_json(path, manifest)
    found, reason = status(config, tmp_path)
    assert (found, "does not hold" in reason) == ("EXPLORATORY", True)


def test_another_config_is_exploratory(frozen, tmp_path):
    config = registered(frozen)
    config.arms.owl.train.learning_rate = 0.5
    finish(tmp_path, config)
    found, reason = status(config, tmp_path)
    assert found == "EXPLORATORY"
    assert "the config is another one" in reason
    assert "had finished" not in reason


def test_without_a_file_a_run_is_exploratory(tmp_path):
    assert status(tiny.config(), tmp_path)[0] == "EXPLORATORY"


def test_a_file_is_never_written_over(frozen):
    before = frozen.read_bytes()
    with pytest.raises(ValueError, match=r"exists, .* give --freeze another path"):
        preregistration.freeze(tiny.config(), frozen, frozen.parent / "run")
    assert frozen.read_bytes() == before


def test_a_freeze_needs_one_primary_contrast(tmp_path):
    config = changed("contrasts.same_base.primary", False)
    with pytest.raises(ValueError, match="0 rows with primary=True"):
        preregistration.freeze(config, tmp_path / "p.json", tmp_path / "run")
    assert not (tmp_path / "p.json").exists()


NOTED = '{"config_hash": "x", "frozen_at": "2026-01-01T00:00:00+00:00", "made_with": %s}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .*--freeze="),
        ("{", "is no file of --freeze"),
        ("[]", "is no file of --freeze"),
        ('{"config_hash": "x"}', "KeyError: 'frozen_at'"),
        ('{"config_hash": "x", "frozen_at": "yesterday"}', "yesterday"),
        ('{"config_hash": "x", "frozen_at": "2026-01-01"}', "no time zone"),
        (NOTED % '{"code": {"subjax": "x"}}', "KeyError: 'packages'"),
        (NOTED % '{"code": 3}', "TypeError"),
    ],
)
def test_a_bad_file_stops_the_run_before_it_writes_anything(tmp_path, content, message):
    path = tmp_path / "p.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        runner.run(registered(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_report_shows_the_status_and_the_summary_no_time(frozen, tmp_path, capsys):
    """Nothing but the report is run: the status is a matter of files."""
    runner.run(registered(frozen), tmp_path / "run", stages=["report"])
    table = (tmp_path / "run/report/table.md").read_text()
    assert "CONFIRMATORY" not in table
    assert re.search(r"INCOMPLETE: \d+ of \d+ frozen units are not done; config", table)
    assert "**INCOMPLETE: 0 of 2 lineages.**" in table
    summary = (tmp_path / "run/report/summary.json").read_text()
    assert '"same_base"' in summary
    assert not re.search(r"\d{4}-\d\d", summary)
    late = registered(frozen)
    late.seed = 7
    capsys.readouterr()
    runner.run(late, tmp_path / "late", stages=["report"])
    assert capsys.readouterr().err.startswith("EXPLORATORY: preregistration.json does not cover")
    assert "EXPLORATORY" in (tmp_path / "late/report/table.md").read_text()
