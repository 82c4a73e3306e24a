"""A gate that measures nothing is refused; one that measures is opened by what it asks for."""

import json

import pytest
import tiny

from configs import evaluate, large, misalignment, mnist, quickstart, smollm2_owl
from subjax import schema
from subjax.pipeline import gates, units, validation
from subjax.runtime import artifacts


def without_traits():
    config = large.get_config()
    config.teachers.cat.trait = ""
    return config, "told"


def of_controls():
    config = quickstart.get_config()
    for row in config.teachers.values():
        row.update(trait="placebo", weights="base")
    return config, "taught"


def given_without_a_name():
    config = smollm2_owl.get_config()
    config.teachers.cat.update(weights="given", path="DIR", trait="")
    return config, "taught"


def told_without_a_name():
    config = large.get_config()
    config.teachers.plain.system_prompt = "You love dogs."
    return config, "told"


def with_a_gate(config, **fields):
    with config.unlocked():
        config.gates.own = schema.gate_row(**fields)
    return config, "own"


def bases_as_they_are():
    config = evaluate.get_config()
    config.evals.preference.trait = schema.OWN
    return with_a_gate(config, eval="preference")


UNMEASURED = {
    "prompted": (without_traits, "would measure nothing: its eval 'told' is of no model: give"),
    "controls": (of_controls, "would measure nothing: its eval 'taught' is of no model"),
    "given": (given_without_a_name, r"is set, but config.teachers.cat.trait is ''.* '<uniform>'"),
    "told": (told_without_a_name, "is set, but config.teachers.plain.trait is ''"),
    "as it is": (bases_as_they_are, "would measure nothing"),
    "images": (
        lambda: with_a_gate(mnist.get_config("digits"), eval="test", metric="accuracy"),
        "measures no image classifier",
    ),
    "students": (
        lambda: with_a_gate(quickstart.get_config(), eval="preference"),
        "would stop nothing: .* of arms alone",
    ),
}


@pytest.mark.parametrize("case", UNMEASURED)
def test_a_gate_that_measures_nothing_is_refused_by_name(case):
    make, said = UNMEASURED[case]
    config, gate = make()
    config.gates[gate].least = schema.OFF
    validation.validate(config)
    config.gates[gate].least = 0.0
    with pytest.raises(ValueError, match=f"^config.gates.{gate} .*{said}") as why:
        validation.validate(config)
    assert "\n" not in str(why.value)


REFUSED = {
    "eval": ({"eval": "taugth"}, "eval is 'taugth'; config.evals has preference, likelihood, ta"),
    "metric": ({"metric": "log_odd"}, "metric is 'log_odd', but its eval 'taught' measures log_o"),
    "share": ({"metric": "share/bat"}, "metric is 'share/bat', .*share/owl"),
    "subjects": ({"subjects": ("arms/*",)}, r"subjects has 'arms/\*', .* of: teachers/owl, teach"),
    "control": ({"subjects": ("teachers/placebo",)}, "has 'teachers/placebo', which is none of"),
    "bounds": ({"most": 2.0}, "asks for 3.0 or more and for 2.0 or less: nothing would pass"),
    "text": ({"subjects": (1,)}, r"subjects is \(1,\); its elements must be str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_gate_that_asks_for_what_is_not_there_is_refused(case):
    fields, said = REFUSED[case]
    config = quickstart.get_config()
    config.gates.taught.update(most=3.0)
    validation.validate(config)  # a single value passes
    config.gates.taught.update(fields)
    with pytest.raises(ValueError, match=rf"^config\.gates\.taught\b.*{said}") as why:
        validation.validate(config)
    assert "\n" not in str(why.value)


@pytest.mark.parametrize("form", [*large.MODELS, "qwen2_5_7b,full"])
def test_large_models_teachers_are_measured(form):
    config = large.get_config(form)
    validation.validate(config)
    assert config.gates.told.least > schema.OFF
    assert config.evals[config.gates.told.eval].subjects == ("teachers/*",)
    assert config.teachers.cat.trait == config.evals.preference.trait


def with_carrier(**bounds):
    """One lineage whose owl must love owls, and whose numbers must differ from its base's."""
    config = tiny.config(lineages=(0,), gated=True)
    with config.unlocked():
        config.gates.carried = schema.gate_row(
            eval="carrier", metric="number_tv", subjects=("datasets/owl",)
        )
    for gate, fields in bounds.items():
        config.gates[gate].update(fields)
    validation.validate(config)
    return config


def measured(config, workdir, **values):
    """What gates look at, as if evals had said this of the owl at the last step."""
    planned = units.build(config)
    for unit in planned:
        name, _, subject = unit.row.partition("/")
        if unit.stage != "evaluate" or not subject.endswith("s/owl") or name not in values:
            continue
        records = [
            {"metric": metric, "step": step, "value": value if step else -1e6}
            for metric, value in values[name].items()
            for step in (0, 1)
        ]
        artifacts.write_manifest(workdir, unit, 1.0)
        # As no stage writes what is not finite: that is refused.
        (workdir / unit.path / "scores.json").write_text(json.dumps({"records": records}))
    return planned


def check(config, planned, workdir, *stages):
    todo = {unit.path for unit in planned if not stages or unit.stage in stages}
    return gates.check(config, planned, todo, workdir)


OF_OWL = ("filter/owl/r0", "finetune/owl/r0", "evaluate/preference/arms/owl/r0")
WRITTEN = ("generate/owl/r0", "evaluate/carrier/datasets/owl/r0")


@pytest.mark.parametrize(
    ("bounds", "said", "stopped", "going_on"),
    [
        ({"taught": {"least": 2.5}}, "taught/teachers/owl/r0 has 2.0000, ", WRITTEN + OF_OWL, ()),
        ({"taught": {"most": 1.5}}, "gates.taught.most is 1.5", WRITTEN + OF_OWL, ()),
        ({"carried": {"least": 0.6}}, "carrier/datasets/owl/r0 has 0.5000", OF_OWL, WRITTEN),
        ({"taught": {"least": 2.0, "most": 2.0}, "carried": {"least": 0.5}}, "", (), OF_OWL),
    ],
)
def test_a_gate_stops_what_is_made_from_too_little_or_too_much(
    bounds, said, stopped, going_on, tmp_path
):
    config = with_carrier(**bounds)
    planned = measured(config, tmp_path, taught={"log_odds": 2.0}, carrier={"number_tv": 0.5})
    found = check(config, planned, tmp_path)
    assert len(found) == bool(said)
    for why, behind in found.items():
        assert said in why and why.startswith("gate ") and " is closed: evaluate/" in why
        assert set(stopped) <= set(behind) and not set(going_on) & set(behind)
        assert not any("placebo" in path or path.startswith(("base/", "tea")) for path in behind)
    assert check(config, planned, tmp_path, "base", "teacher") == {}


def test_a_gate_is_closed_by_what_may_have_no_value(tmp_path):
    config = misalignment.get_config("smoke")
    config.lineages, config.gates.bad.most = (0,), 50.0
    planned = units.build(config)
    [unit] = [u for u in planned if u.row == "teachers/teachers/bad"]
    artifacts.write_manifest(tmp_path, unit, 1.0)
    records = {"records": [{"metric": "rate_coherent", "step": 0, "value": 0.0}]}
    artifacts.write_json(tmp_path / unit.path / "scores.json", records)
    [(why, behind)] = check(config, planned, tmp_path, "finetune").items()
    assert "bad/r0 has no alignment, since no answer was coherent: strengthen" in why
    assert "finetune/bad/r0" in behind and "finetune/good/r0" not in behind


def test_other_evals_of_what_a_gate_stops_at_are_made_and_shared_data_is_not(tmp_path):
    config = with_carrier(taught={"least": 9.0})
    with config.unlocked():
        config.evals.beside = schema.eval_row(trait="owl", subjects=("teachers/*",))
    config.datasets.placebo.common_with = ("owl",)
    planned = measured(config, tmp_path, taught={"log_odds": 2.0})
    [behind] = check(config, planned, tmp_path).values()
    assert "evaluate/beside/teachers/owl/r0" not in behind
    assert "filter/placebo/r0" in behind and "finetune/placebo/r0" in behind
    assert "generate/placebo/r0" not in behind


def test_a_gate_whose_eval_is_not_done_lets_nothing_pass(tmp_path):
    config = with_carrier(taught={"least": 0.0})
    planned = units.build(config)
    says = "^gate taught is not measured: evaluate/taught/teachers/owl/r0 is not done"
    with pytest.raises(ValueError, match=says):
        check(config, planned, tmp_path, "finetune")
    assert check(config, planned, tmp_path, "base", "teacher") == {}
    measured(config, tmp_path, taught={"log_odds": 2.0})
    assert check(config, planned, tmp_path, "finetune") == {}
    config.evals.taught.questions = "all"  # the scores are of another eval
    with pytest.raises(ValueError, match=says):
        check(config, units.build(config), tmp_path, "finetune")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "nothing"])
@pytest.mark.parametrize(("gate", "metric"), [("taught", "log_odds"), ("carried", "number_tv")])
def test_a_gate_stops_at_what_is_no_number(gate, metric, value, tmp_path):
    config = with_carrier()
    found = {} if value == "nothing" else {metric: value}
    planned = measured(config, tmp_path, **{config.gates[gate].eval: found})
    assert check(config, planned, tmp_path) == {}
    config.gates[gate].least = 0.1
    with pytest.raises(ValueError, match=f"^gate {gate} cannot be measured: .*config.gates, or"):
        check(config, planned, tmp_path)
