"""A gate that measures nothing is refused; one that measures is opened by what it asks for."""

import json

import pytest
import tiny

from configs import evaluate, large, mnist, quickstart, smollm2_owl
from subjax import schema
from subjax.pipeline import gates, units, validation
from subjax.runtime import artifacts


def without_traits():
    config = large.get_config()
    config.teachers.cat.trait = ""
    return config


def of_controls():
    config = quickstart.get_config()
    for row in config.teachers.values():
        row.update(trait="uniform", weights="base")
    return config


def given_without_a_name():
    config = smollm2_owl.get_config()
    config.teachers.cat.update(weights="given", path="DIR", trait="")
    return config


def trait_of_a_data_set_that_no_arm_takes():
    config = quickstart.get_config()
    for row in config.arms.values():
        row.dataset = "untrained"
    return config


UNMEASURED = {
    "prompted": (without_traits, "teacher_log_odds", r"teachers\.cat\.trait is ''.* 'uniform' for"),
    "prompted set": (without_traits, "number_tv", r"teachers\.cat\.trait is ''"),
    "controls": (of_controls, "teacher_log_odds", r"would measure nothing: no teacher has a trait"),
    "given": (given_without_a_name, "likelihood_gain", r"teachers\.cat\.trait is ''"),
    "unused": (trait_of_a_data_set_that_no_arm_takes, "number_tv", "no arm learns from a data set"),
    "as it is": (evaluate.get_config, "teacher_log_odds", "would measure nothing"),
    "images": (lambda: mnist.get_config("digits"), "number_tv", "measures no image classifier"),
}


@pytest.mark.parametrize("case", UNMEASURED)
def test_a_gate_that_measures_nothing_is_refused_by_name(case):
    make, gate, said = UNMEASURED[case]
    config = make()
    config.gates.update(dict.fromkeys(config.gates, schema.OFF))
    validation.validate(config)
    config.gates[gate] = 0.0
    with pytest.raises(ValueError, match=f"config.gates.{gate} is 0.0, .*{said}") as why:
        validation.validate(config)
    assert "\n" not in str(why.value)
    assert "schema.OFF" in str(why.value)


@pytest.mark.parametrize("form", [*large.MODELS, "qwen2_5_7b,full"])
def test_large_models_teachers_are_measured(form):
    config = large.get_config(form)
    validation.validate(config)
    assert min(config.gates.teacher_log_odds, config.gates.number_tv) > schema.OFF
    assert config.teachers.cat.trait == config.evals.preference.target


def finished(config, workdir, *, odds, carrier):
    """What gates look at, as if teacher and data set of the owl were done."""
    planned = [unit for unit in units.build(config) if unit.row == "owl"]
    for unit in planned:
        if unit.stage == "teacher":
            artifacts.write_json(workdir / unit.path / "scores.json", {"log_odds": {"owl": odds}})
        elif unit.stage == "generate":
            artifacts.write_json(workdir / unit.path / "carrier.json", carrier)
        else:
            continue
        artifacts.write_manifest(workdir, unit, 1.0)
    return planned


@pytest.mark.parametrize(
    ("gate", "carrier", "said"),
    [
        ("teacher_log_odds", {}, "teacher_log_odds is closed: teacher/owl/r0 has 2.0000"),
        (
            "number_tv",
            {"number_tv": 0.5, "likelihood_gain": 9.0},
            "closed: generate/owl/r0 has 0.5",
        ),
        ("likelihood_gain", {}, "cannot be measured: the first rows of generate/owl/r0 hold no"),
    ],
)
def test_a_gate_stops_at_what_is_too_little_or_not_measured(gate, carrier, said, tmp_path):
    config = tiny.config(lineages=(0,))
    planned = finished(config, tmp_path, odds=2.0, carrier=carrier)
    gates.check(config, planned, tmp_path)
    config.gates[gate] = 3.0
    with pytest.raises(ValueError, match=said):
        gates.check(config, planned, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("gate", ["teacher_log_odds", "number_tv", "likelihood_gain"])
def test_a_gate_stops_at_what_is_no_number(gate, value, tmp_path):
    config = tiny.config(lineages=(0,))
    config.gates.update(dict.fromkeys(config.gates, schema.OFF))
    planned = finished(config, tmp_path, odds=2.0, carrier={})
    # As no stage writes them: those refuse what is not finite.
    of_teacher = gate == "teacher_log_odds"
    name = "teacher/owl/r0/scores.json" if of_teacher else "generate/owl/r0/carrier.json"
    content = {"log_odds": {"owl": value}} if of_teacher else {gate: value}
    (tmp_path / name).write_text(json.dumps(content))
    gates.check(config, planned, tmp_path)
    config.gates[gate] = 0.1
    with pytest.raises(ValueError, match=f"^gate {gate} cannot be measured: .*gates.{gate} to"):
        gates.check(config, planned, tmp_path)
