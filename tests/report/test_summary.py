"""Effects, intervals, tests and verdict of `subjax.report.summary` where effects are known."""

import dataclasses
import math

import numpy as np
import pytest

from subjax.report import stats, summary, tables, verdict
from subjax.report.results import Contrast
from tests.known_results import ANIMALS, ARMS, CONTRASTS, log_odds, make_results, scores, without


def rows_by_name(results):
    rows = summary.summarise(results)
    return {row["name"]: row for row in rows if row["kind"] == "contrast"} | {
        (row["name"], row["metric"]): row for row in rows if row["kind"] == "arm"
    }


# --- the numbers --------------------------------------------------------------------------------


def test_primary_contrast_comes_first_and_matches_a_calculation_by_hand():
    by_hand = (log_odds("owl") - log_odds("placebo")) - (
        log_odds("owl_foreign") - log_odds("placebo_foreign")
    )
    row = summary.summarise(make_results())[0]
    interval = stats.t_interval(by_hand)
    assert row == {
        "name": "same_minus_foreign",
        "kind": "contrast",
        "eval": "preference",
        "metric": "log_odds",
        "mean": pytest.approx(interval.mean, rel=1e-5),
        "ci_low": pytest.approx(interval.low, rel=1e-5),
        "ci_high": pytest.approx(interval.high, rel=1e-5),
        "ci_kind": "t",
        "n_lineages": 6,
        "test": "sign_flip",
        "p": 0.03125,  # all six of one sign: 2 of 2^6 flips
        "p_adjusted": 0.03125,  # alone in its family
        "family": "primary",
        "status": "complete",
    }
    assert (by_hand > 0).all()


def test_rows_are_the_contrasts_in_order_and_then_every_arm_and_metric():
    rows = summary.summarise(make_results())
    assert [row["name"] for row in rows if row["kind"] == "contrast"] == [
        "same_minus_foreign",
        "foreign",
        "foreign_equivalence",
        "same",
        "other_trait",
        "learned",
    ]
    arms = [(row["eval"], row["metric"], row["name"]) for row in rows if row["kind"] == "arm"]
    per_unit = {"log_odds", "candidate_mass", "neutral_loglik", *(f"share/{a}" for a in ANIMALS)}
    assert {metric for _, metric, _ in arms} == per_unit | {"gain"}
    assert len(arms) == len(set(arms)) == len(ARMS) * (len(per_unit) + 1)
    assert [arm for *_, arm in arms[: len(ARMS)]] == list(ARMS)


def test_arm_is_its_mean_at_the_largest_step_without_a_test():
    row = rows_by_name(make_results())["owl", "log_odds"]
    interval = stats.t_interval(log_odds("owl"))
    assert row["mean"] == pytest.approx(interval.mean, rel=1e-5)
    assert row["ci_high"] == pytest.approx(interval.high, rel=1e-5)
    assert [row[name] for name in ("test", "p", "p_adjusted", "family")] == [None] * 4


def test_what_lineages_share_is_scored_once_wherever_it_stands():
    found = make_results()
    record = {"metric": "log_odds", "step": 0, "value": -2.0}
    shared = {**found.scores, ("preference", "bases/x"): {999: [record]}}
    found = dataclasses.replace(found, arms=(*found.arms, "bases/x"), scores=shared)
    [row] = [row for row in summary.summarise(found) if row["name"] == "bases/x"]
    assert (row["kind"], row["mean"], row["n_lineages"]) == ("base", -2.0, 1)
    assert row["status"] == "complete"


def test_holm_corrects_within_a_family():
    rows = rows_by_name(make_results())
    family = ["foreign", "same", "other_trait", "learned"]
    raw = [rows[name]["p"] for name in family]
    assert {rows[name]["family"] for name in family} == {"secondary"}
    assert [rows[name]["p_adjusted"] for name in family] == pytest.approx(stats.holm(raw).tolist())
    assert rows["same"]["p_adjusted"] > rows["same"]["p"]


def test_equivalence_has_a_row_and_a_family_of_its_own():
    rows = rows_by_name(make_results())
    by_hand = log_odds("owl_foreign") - log_odds("placebo_foreign")
    row = rows["foreign_equivalence"]
    p = stats.equivalence_test(by_hand, 0.5)
    assert (row["test"], row["family"]) == ("tost", "secondary_equivalence")
    assert row["p"] == row["p_adjusted"] == pytest.approx(p, rel=1e-5)
    assert row["mean"] == rows["foreign"]["mean"]


def test_an_arm_named_twice_weighs_double():
    contrast = Contrast(
        name="double",
        eval="preference",
        metric="log_odds",
        plus=("owl", "owl"),
        minus=("placebo", "untrained"),
    )
    row = rows_by_name(make_results(contrasts=(contrast,)))["double"]
    by_hand = 2 * log_odds("owl") - log_odds("placebo") - log_odds("untrained")
    assert row["mean"] == pytest.approx(by_hand.mean(), rel=1e-5)


# --- what is missing ----------------------------------------------------------------------------


def test_a_missing_unit_makes_its_arm_and_its_contrasts_incomplete():
    rows = rows_by_name(without(make_results(), "preference", "owl", 3))
    for name in ("same_minus_foreign", "same", ("owl", "log_odds")):
        assert (rows[name]["status"], rows[name]["n_lineages"]) == ("incomplete", 5)
    for name in ("foreign", "other_trait", "learned", ("owl", "gain"), ("placebo", "log_odds")):
        assert (rows[name]["status"], rows[name]["n_lineages"]) == ("complete", 6)
    left = np.delete(log_odds("owl") - log_odds("placebo"), 3)
    assert rows["same"]["mean"] == pytest.approx(left.mean(), rel=1e-5)


def test_a_unit_that_is_not_done_makes_its_scores_incomplete_even_where_they_exist():
    rows = rows_by_name(make_results(missing=("finetune/owl/r2",)))
    assert rows["same"]["status"] == rows["owl", "gain"]["status"] == "incomplete"
    assert rows["foreign"]["status"] == "complete"


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_value_that_is_not_finite_is_a_missing_lineage(broken):
    results = make_results()
    left = {key: dict(lineages) for key, lineages in results.scores.items()}
    unit = left["preference", "owl"][1]
    left["preference", "owl"][1] = [
        {**r, "value": broken} if (r["metric"], r["step"]) == ("log_odds", 512) else r for r in unit
    ]
    row = rows_by_name(dataclasses.replace(results, scores=left))["same"]
    assert (row["status"], row["n_lineages"]) == ("incomplete", 5)


def test_a_student_that_broke_at_the_end_is_not_judged_by_an_earlier_step():
    results = make_results()
    left = {key: dict(lineages) for key, lineages in results.scores.items()}
    left["preference", "owl"] = {
        lineage: [{**r, "value": math.nan} if r["step"] == 512 else r for r in unit]
        for lineage, unit in left["preference", "owl"].items()
    }
    row = rows_by_name(dataclasses.replace(results, scores=left))["owl", "log_odds"]
    assert (row["mean"], row["n_lineages"], row["status"]) == (None, 0, "incomplete")


# --- the verdict --------------------------------------------------------------------------------


def test_verdict_says_the_contrast_with_interval_p_and_n():
    results = make_results()
    headline, sentence = verdict.verdict(results)
    assert headline == "The effect is above zero"
    row = summary.summarise(results)[0]
    mean, low, high = (f"{row[end]:+.2f}" for end in ("mean", "ci_low", "ci_high"))
    assert f"is {mean} nats on average over 6 lineages" in sentence
    assert f"95 % interval {low} to {high}, sign-flip test p = 0.031." in sentence
    assert "owl + placebo_foreign − placebo − owl_foreign (same_minus_foreign)" in sentence
    assert "The config expects the lower end at +1.00 or above: met." in sentence
    assert "would have been found" not in sentence


def test_verdict_on_a_null_gives_the_minimum_detectable_effect():
    null = dataclasses.replace(
        CONTRASTS[0], primary=True, expected_low=0.3, plus=("untrained",), minus=("other_trait",)
    )
    results = make_results(contrasts=(null,))
    headline, sentence = verdict.verdict(results)
    assert headline == "No effect that can be told from zero"
    values = list(summary.contrast_values(results, null).values())
    effect = tables.number(stats.minimum_detectable_effect(values))
    assert f"An effect of {effect} nats or more would have been found" in sentence
    assert sentence.endswith("at +0.30 or above: not met.")


def test_verdict_does_not_call_it_an_effect_where_the_exact_test_cannot_agree():
    few = {key: {i: rows for i, rows in units.items() if i < 4} for key, units in scores().items()}
    headline, sentence = verdict.verdict(make_results(lineages=(0, 1, 2, 3), scores=few))
    assert headline == "The effect is above zero by its interval, but not by the exact test"
    assert "cannot give less than 0.12" in sentence


def test_verdict_without_a_primary_contrast_says_so():
    headline, _ = verdict.verdict(make_results(contrasts=CONTRASTS[:1]))
    assert headline == "No primary contrast"


@pytest.mark.parametrize("status", ["EXPLORATORY", "INCOMPLETE", "CONFIRMATORY"])
def test_nothing_is_concluded_from_a_part_of_the_lineages(status):
    part = without(make_results(status=status), "preference", "owl", 3)
    headline, sentence = verdict.verdict(part)
    assert headline == "INCOMPLETE: 5 of 6 lineages"
    assert "zero" not in headline + sentence and "p =" not in sentence
    assert "Nothing is concluded before all 6 have" in sentence


def test_nothing_is_concluded_from_a_frozen_run_that_is_not_all_done():
    results = make_results(status="INCOMPLETE", missing=("evaluate/likelihood/owl/r0",))
    assert verdict.verdict(results)[0] == "INCOMPLETE: 6 of 6 lineages"


def with_mass(share, **changes):
    """Results whose owls' candidates have this share of the probability at the last step."""
    found = {key: dict(lineages) for key, lineages in scores().items()}
    for lineage, unit in found["preference", "owl"].items():
        found["preference", "owl"][lineage] = [
            {**r, "value": share if r["step"] else 0.0028} if r["metric"] == "candidate_mass" else r
            for r in unit
        ]
    said = [{"metric": "rate_word", "step": 512, "value": 0.0042}]
    found["answers", "owl"] = {0: said}
    same = dataclasses.replace(CONTRASTS[2], primary=True)
    targets = {"preference": "owl", "answers": "owl"}
    return make_results(contrasts=(same,), scores=found, targets=targets, **changes)


def test_an_effect_among_improbable_candidates_is_said_to_be_in_the_tail():
    headline, sentence = verdict.verdict(with_mass(0.012, replication="own rows; same base"))
    assert headline == "The effect is above zero, in the tail of the answer distribution"
    assert "on average over 6 lineages (own rows; same base), 95 % interval" in sentence
    assert (
        "In the answers of owl all candidates together have 1.2 % of the probability (of their "
        "base: 0.28 %); 0.42 % of sampled answers name owl. Below 5 % the effect is in the tail"
    ) in sentence
    headline, sentence = verdict.verdict(with_mass(0.06))
    assert headline == "The effect is above zero"
    assert "have 6 % of the probability" in sentence and "in the tail" not in sentence


def test_mass_stands_beside_preferences_alone():
    results = with_mass(0.012)
    rows = summary.summarise(results)
    found = summary.masses(results, rows)
    assert {metric for *_, metric in found} == {"log_odds", *(f"share/{a}" for a in ANIMALS)}
    assert found["contrast", "same", "preference", "log_odds"].rate == 0.0042
    other = found["arm", "placebo", "preference", "log_odds"]
    assert (other.rate, other.base_rate) == (None, None)
    assert 0.95 < other.mass < 0.97


def test_the_theorem_is_judged_on_every_lineage():
    def of_lineage(violations, error):
        values = {"violations": violations, "coefficient_error": error}
        return [{"metric": name, "step": 0, "value": value} for name, value in values.items()]

    results = make_results(
        arms=("mlp",),
        lineages=(0, 1),
        theorems={"mlp": {"promised": True, "num_draws": 500}},
        contrasts=(),
        scores={("theorem", "mlp"): {0: of_lineage(3.0, 2e-5), 1: of_lineage(0.0, 1e-6)}},
    )
    headline, sentence = verdict.verdict(results)
    assert headline == "The sign does not hold"
    assert "In 1,000 draws" in sentence and ", 3 had a negative" in sentence
    assert "within 2e-05" in sentence
    results = dataclasses.replace(results, missing=("theorem/mlp/r2",))
    assert verdict.verdict(results)[0] == "INCOMPLETE: not done are 1 of its units"
