"""Only what was frozen before anything ran, and is what ran, is called confirmatory."""

import datetime
import json
import re

import pytest
import tiny

from subjax import artifacts, pipeline, preregistration, units


def digest(config):
    return preregistration.config_hash(config, units.build(config))


def changed(field, value):
    config = tiny.config()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    return config


@pytest.fixture
def frozen(tmp_path):
    path = tmp_path / "preregistration.json"
    preregistration.freeze(tiny.config(), path, command=["main.py", "--config=x.py"])
    return path


def registered(path):
    config = tiny.config()
    config.preregistration = str(path)
    return config


def finish(workdir, config, *, finished_at=None):
    """Manifests of the first two units, as if they had been run."""
    for unit in units.build(config)[:2]:
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
        "command": "python -m subjax.main --config=x.py",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("lineages", (0, 1, 2)),
        ("arms.owl.train.learning_rate", 0.5),
        ("teachers.owl.trait", "cat"),
        ("datasets.placebo.max_value", 50),
        ("evals.preference.questions", "confirm"),
        ("contrasts.same_base.metric", "candidate_mass"),
        ("contrasts.same_base.minus", ()),
        ("contrasts.same_base.equivalence_margin", 0.5),
        ("gates.teacher_log_odds", 0.0),
    ],
)
def test_the_hash_follows_results_and_analysis(field, value):
    assert digest(changed(field, value)) != digest(tiny.config())


@pytest.mark.parametrize("field", ["preregistration", "title", "claim", "name"])
def test_the_hash_follows_nothing_else(field):
    assert digest(changed(field, "other")) == digest(tiny.config())


def test_a_freeze_before_the_first_unit_confirms(frozen, tmp_path):
    config = registered(frozen)
    assert status(config, tmp_path)[0] == "CONFIRMATORY"
    finish(tmp_path, config)
    found, reason = status(config, tmp_path)
    assert found == "CONFIRMATORY"
    assert "precedes the first finished unit" in reason


def test_a_freeze_after_the_first_unit_does_not(tmp_path):
    finish(tmp_path, tiny.config())
    path = tmp_path / "late.json"
    preregistration.freeze(tiny.config(), path)
    found, reason = status(registered(path), tmp_path)
    assert found == "EXPLORATORY"
    assert "after base/toy/r0 had finished at" in reason
    assert "another one" not in reason


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
        preregistration.freeze(tiny.config(), frozen)
    assert frozen.read_bytes() == before


def test_a_freeze_needs_one_primary_contrast(tmp_path):
    config = changed("contrasts.same_base.primary", False)
    with pytest.raises(ValueError, match="0 rows with primary=True"):
        preregistration.freeze(config, tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .*--freeze="),
        ("{", "is no file of --freeze"),
        ("[]", "is no file of --freeze"),
        ('{"config_hash": "x"}', "KeyError: 'frozen_at'"),
        ('{"config_hash": "x", "frozen_at": "yesterday"}', "yesterday"),
        ('{"config_hash": "x", "frozen_at": "2026-01-01"}', "no time zone"),
    ],
)
def test_a_bad_file_stops_the_run_before_it_writes_anything(tmp_path, content, message):
    path = tmp_path / "p.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        pipeline.run(registered(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_report_shows_the_status_and_the_summary_no_time(frozen, tmp_path, capsys):
    """Nothing but the report is run: the status is a matter of files."""
    pipeline.run(registered(frozen), tmp_path / "run", stages=["report"])
    assert (tmp_path / "run/report/table.md").read_text().count("CONFIRMATORY") == 1
    summary = (tmp_path / "run/report/summary.json").read_text()
    assert '"same_base"' in summary
    assert not re.search(r"\d{4}-\d\d", summary)
    late = registered(frozen)
    late.seed = 7
    capsys.readouterr()
    pipeline.run(late, tmp_path / "late", stages=["report"])
    assert capsys.readouterr().err.startswith("EXPLORATORY: preregistration.json does not cover")
    assert "EXPLORATORY" in (tmp_path / "late/report/table.md").read_text()
