"""The verdict of a run: a headline and a sentence on its primary contrast.

This module has the words; the numbers come from `summary`. An unfinished run gets no conclusion.
"""

import math
from collections.abc import Sequence

from subjax.report import stats
from subjax.report.contrasts.difference import Contrast
from subjax.report.results import INCOMPLETE, Results
from subjax.report.summary import Mass, SummaryRow, contrast_values, mass, summarise
from subjax.report.tables import number, p_value, percent

ALPHA = 0.05
TAIL = 0.05  # candidates with less probability are in the tail of the answers


def verdict(results: Results) -> tuple[str, str]:
    """Headline and sentence on the primary contrast, in plain words with interval, p and n."""
    if results.theorems and results.primary is None:
        return _theorem_verdict(results)
    if results.primary is None:
        return "No primary contrast", "The config marks no contrast as primary, so nothing is said."
    contrast, row = results.primary, summarise(results)[0]
    label, unit = results.describe(contrast.eval, contrast.metric)
    what = (
        f"In {label} (eval {contrast.eval}) the primary contrast {contrast.formula}"
        f" ({contrast.name})"
    )
    total = len(results.lineages)
    if row["mean"] is None:
        return f"INCOMPLETE: 0 of {total} lineages", f"{what} has no lineage with all its arms."
    value = f"{number(row['mean'], sign=True)}{unit and ' ' + unit}"
    if row["status"] == "incomplete" or results.status == INCOMPLETE:
        return f"INCOMPLETE: {row['n_lineages']} of {total} lineages", (
            f"{what} is {value} so far, on average over the lineages that have it. Nothing is"
            f" concluded before all {total} have, and before every unit is done."
        )
    if row["ci_low"] is None:
        return "No interval yet", f"{what} is {value} in the only lineage that is scored."
    low, high = (number(row[end], row["mean"], sign=True) for end in ("ci_low", "ci_high"))
    sentence = (
        f"{what} is {value} on average over {row['n_lineages']} lineages"
        f"{results.replication and f' ({results.replication})'},"
        f" 95 % interval {low} to {high}, {contrast.test_words} p = {p_value(row['p'])}."
    )
    of_each = "*" in contrast.metric  # of all targets, where one target's share says little
    beside = None if of_each else mass(results, contrast.eval, contrast.metric, contrast.plus)
    headline = _headline(row)
    if _in_tail(beside) and not row["ci_low"] <= 0.0 <= row["ci_high"]:
        headline += ", in the tail of the answer distribution"
    sentence += _beside(results, contrast, beside) + _reservations(results, contrast, row)
    return headline, sentence


def _in_tail(beside: Mass | None) -> bool:
    return beside is not None and beside.mass is not None and beside.mass < TAIL


def _beside(results: Results, contrast: Contrast, beside: Mass | None) -> str:
    """A sentence on the candidates' share of the students' answers."""
    if beside is None:
        return ""
    target = results.targets.get(contrast.eval, "") or "the target"
    before = "" if beside.base_mass is None else f" (of their base: {percent(beside.base_mass)})"
    text = (
        f" In the answers of {_named(contrast.plus)} all candidates together have"
        f" {percent(beside.mass)} of the probability{before}; "
    )
    if beside.rate is None:
        text += f"whether sampled answers name {target} was not asked."
    else:
        before = (
            "" if beside.base_rate is None else f" (of their base: {percent(beside.base_rate)})"
        )
        text += f"{percent(beside.rate)} of sampled answers name {target}{before}."
    if _in_tail(beside):
        text += f" Below {percent(TAIL)} the effect is in the tail of the answer distribution."
    return text


def _named(arms: Sequence[str]) -> str:
    """Up to three names, or how many there are."""
    return " and ".join(arms) if len(arms) <= 3 else f"the {len(arms)} arms {arms[0]} to {arms[-1]}"


def _theorem_verdict(results: Results) -> tuple[str, str]:
    """Verdict on the rows to which the theorem applies; other rows show its limits."""
    rows = [name for name, curves in results.theorems.items() if curves["promised"]]
    found = [
        {record["metric"]: record["value"] for record in records}
        for name in rows
        for records in results.scores["theorem", name].values()
    ]
    if not found:
        return "Nothing is promised", "No row of this config is one that the theorem is about."
    violations = sum(values["violations"] for values in found)
    num_draws = sum(
        results.theorems[name]["num_draws"] * len(results.scores["theorem", name]) for name in rows
    )
    error = max(values.get("coefficient_error", math.nan) for values in found)
    headline = "The sign holds in every draw" if not violations else "The sign does not hold"
    if missing := [unit for unit in results.missing if unit.startswith("theorem/")]:
        headline = f"INCOMPLETE: not done are {len(missing)} of its units"
    return headline, (
        f"In {num_draws:,} draws over {len(rows)} rows that the theorem is about"
        f" ({', '.join(rows)}), {violations:.0f} had a negative inner product at the smallest step"
        f" of the teacher; the predicted coefficient is met within {error:.1g} (median of the worst"
        " row)."
    )


def _headline(row: SummaryRow) -> str:
    if row["ci_low"] <= 0.0 <= row["ci_high"]:
        return "No effect that can be told from zero"
    side = "above" if row["mean"] > 0.0 else "below"
    if row["p"] <= ALPHA:
        return f"The effect is {side} zero"
    return f"The effect is {side} zero by its interval, but not by the exact test"


def _reservations(results: Results, contrast: Contrast, row: SummaryRow) -> str:
    found = []
    if row["ci_low"] <= 0.0 <= row["ci_high"]:
        values = list(contrast_values(results, contrast).values())
        effect = number(stats.minimum_detectable_effect(values))
        unit = results.describe(contrast.eval, contrast.metric)[1]
        found.append(
            f"An effect of {effect}{unit and ' ' + unit} or more would have been found with 80 %"
            " probability at this spread and number of lineages."
        )
    smallest = contrast.smallest_p(row["n_lineages"])
    if smallest > ALPHA:
        found.append(f"With so few lineages the exact test cannot give less than {smallest:.2g}.")
    if contrast.expected_low is not None:
        met = "met" if row["ci_low"] >= contrast.expected_low else "not met"
        expected = number(contrast.expected_low, sign=True)
        found.append(f"The config expects the lower end at {expected} or above: {met}.")
    return "".join(f" {text}" for text in found)
