"""What a finished run has to say: effects, intervals and tests, as rows of summary.json.

Refuses to read files, to draw, and to leave a lineage out silently: a row that lacks one says
incomplete.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subjax.report import stats
from subjax.report.contrasts.difference import Contrast, Read
from subjax.report.results import Results, kind_of
from subjax.tasks.api import MASS, RATE

SummaryRow = dict[str, Any]  # one row of summary.json


# --- values -------------------------------------------------------------------------------------


def evals_and_metrics(results: Results) -> list[tuple[str, str]]:
    """(eval, metric) pairs that have scores: those of contrasts first, the others by name."""
    scored = {
        (eval_name, record["metric"])
        for (eval_name, _), lineages in results.scores.items()
        for records in lineages.values()
        for record in records
    }
    first = dict.fromkeys((contrast.eval, contrast.metric) for contrast in results.ordered)
    return [pair for pair in first if pair in scored] + sorted(scored - first.keys())


def trajectory(
    results: Results, eval_name: str, arm: str, metric: str
) -> dict[int, dict[int, float]]:
    """Step -> lineage -> value, both ascending; a step whose values are all nan stays, empty."""
    steps: dict[int, dict[int, float]] = {}
    for lineage, records in sorted(results.scores.get((eval_name, arm), {}).items()):
        for record in records:
            if record["metric"] != metric:
                continue
            values = steps.setdefault(record["step"], {})
            if math.isfinite(record["value"]):
                values[lineage] = float(record["value"])
    return dict(sorted(steps.items()))


def final_values(results: Results, eval_name: str, arm: str, metric: str) -> dict[int, float]:
    """Lineage -> value at the arm's largest step; a lineage without a finite one is left out."""
    steps = trajectory(results, eval_name, arm, metric)
    return steps[max(steps)] if steps else {}


def reader(results: Results, step: int | None = None) -> Read:
    """What a contrast reads, at a step or else at each arm's largest one."""

    def read(eval_name: str, arm: str, metric: str) -> dict[int, float]:
        if step is None:
            return final_values(results, eval_name, arm, metric)
        return trajectory(results, eval_name, arm, metric).get(step, {})

    return read


def contrast_values(results: Results, contrast: Contrast) -> dict[int, float]:
    """Lineage -> contrast at the arms' final steps, for the lineages that every arm has."""
    return contrast.values(reader(results), results.lineages)


@dataclass(frozen=True, kw_only=True)
class Mass:
    """How much of what models answer a number among the candidates is about, as shares.

    Means over arms and lineages; None is what nobody measured.

    Attributes:
      mass: probability on all the candidates together, at the last step.
      base_mass: the same before training.
      rate: share of sampled answers that name the target, at the last step.
      base_rate: the same before training.
    """

    mass: float | None
    base_mass: float | None
    rate: float | None
    base_rate: float | None


def mass(results: Results, eval_name: str, metric: str, arms: Sequence[str]) -> Mass | None:
    """What stands beside a log-odds or share of arms; None beside a metric that needs nothing."""
    # Several evals have candidates of their own, of which no one share can be told.
    if not results.metric(eval_name, metric).relative or len(results.evals(eval_name)) > 1:
        return None
    target = results.targets.get(eval_name, "")
    same = [name for name in results.metrics if results.targets.get(name, "") == target]
    base_mass, mass = _in_role(results, [eval_name], MASS, arms)
    base_rate, rate = _in_role(results, same, RATE, arms)
    return Mass(mass=mass, base_mass=base_mass, rate=rate, base_rate=base_rate)


def _in_role(
    results: Results, evals: Sequence[str], role: str, arms: Sequence[str]
) -> tuple[float | None, float | None]:
    """`_first_and_last` of the first metric in a role that any of these evals has measured."""
    for name in evals:
        for metric in results.metrics[name]:
            if metric.role == role:
                found = _first_and_last(results, name, metric.name, arms)
                if found[1] is not None:
                    return found
    return None, None


def _first_and_last(
    results: Results, eval_name: str, metric: str, arms: Sequence[str]
) -> tuple[float | None, float | None]:
    """Means over arms and lineages at step 0, where a student is its base, and at the last step."""
    firsts: list[float] = []
    lasts: list[float] = []
    for arm in dict.fromkeys(arms):
        steps = trajectory(results, eval_name, arm, metric)
        if steps:
            lasts += steps[max(steps)].values()
        if len(steps) > 1:
            firsts += steps.get(0, {}).values()
    return _mean(firsts), _mean(lasts)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def masses(
    results: Results, rows: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str, str, str], Mass]:
    """By kind, name, eval and metric of a row; of a contrast that of the arms it adds."""
    plus = {contrast.name: contrast.plus for contrast in results.contrasts}
    of = {f"{name}_{more}": name for name in plus for more in ("equivalence", "margin")}
    found = {}
    for row in rows:
        key = (row["kind"], row["name"], row["eval"], row["metric"])
        name = row["name"]
        arms = plus[of.get(name, name)] if row["kind"] == "contrast" else [name]
        if beside := mass(results, row["eval"], row["metric"], arms):
            found[key] = beside
    return found


# --- rows of summary.json -----------------------------------------------------------------------


def summarise(results: Results) -> list[SummaryRow]:
    """Rows of summary.json: the primary contrast, the other contrasts, then every arm and metric.

    Floats have 6 significant digits, so that the file is a function of the scores down to its
    bytes; what cannot be computed is None. A contrast with a margin has a second row, tested for
    equivalence in a family of its own: the two hypotheses of one contrast exclude each other.
    """
    rows = [row for contrast in results.ordered for row in _contrast_rows(results, contrast)]
    for family in {row["family"] for row in rows}:
        members = [row for row in rows if row["family"] == family]
        adjusted = stats.holm([row["p"] for row in members]).tolist()
        for row, p in zip(members, adjusted, strict=True):
            row["p_adjusted"] = p
    for eval_name, metric in evals_and_metrics(results):
        for arm in results.arms:
            if trajectory(results, eval_name, arm, metric):
                rows.append(_arm_row(results, eval_name, arm, metric))
    return [{name: stable(value) for name, value in row.items()} for row in rows]


def _contrast_rows(results: Results, contrast: Contrast) -> list[SummaryRow]:
    read = reader(results)
    values = contrast.values(read, results.lineages)
    scored = list(itertools.product(contrast.evals, contrast.weights))
    incomplete = any(_unfinished(results, *one) for one in scored)
    shared = _row(contrast.name, "contrast", contrast.eval, contrast.metric, values)
    wanted = max(_wanted(results, *one) for one in scored)
    shared["status"] = _status(wanted, values, incomplete)
    lineages = list(values.values())
    p = contrast.p_value(read, results.lineages)
    rows = [{**shared, "test": contrast.test, "p": p, "family": contrast.family}]
    if contrast.has_margin:
        gaps = contrast.margins(read, results.lineages)
        own = _row(f"{contrast.name}_margin", "contrast", contrast.eval, contrast.metric, gaps)
        # No test: less the best of several noisy cells it is below 0 where there is no trait.
        own |= {"test": "", "p": math.nan, "family": f"{contrast.family}_margin"}
        rows.append({**own, "status": shared["status"]})
    if margin := contrast.equivalence_margin:
        p = stats.equivalence_test(lineages, margin) if lineages else math.nan
        own = {"name": f"{contrast.name}_equivalence", "family": f"{contrast.family}_equivalence"}
        rows.append({**shared, **own, "test": "tost", "p": p})
    return rows


def _arm_row(results: Results, eval_name: str, arm: str, metric: str) -> SummaryRow:
    values = final_values(results, eval_name, arm, metric)
    row = _row(arm, kind_of(arm), eval_name, metric, values)
    wanted = _wanted(results, eval_name, arm)
    row["status"] = _status(wanted, values, _unfinished(results, eval_name, arm))
    return row


def _wanted(results: Results, eval_name: str, arm: str) -> int:
    """How many values there should be; lineages may share a teacher, a base or a data set."""
    if kind_of(arm) == "arm":
        return len(results.lineages)
    return len(results.scores.get((eval_name, arm), {}))


def _row(
    name: str, kind: str, eval_name: str, metric: str, values: Mapping[int, float]
) -> SummaryRow:
    nothing = stats.Interval(math.nan, math.nan, math.nan, "t", 0)
    interval = stats.t_interval(list(values.values())) if values else nothing
    return {
        "name": name,
        "kind": kind,
        "eval": eval_name,
        "metric": metric,
        "mean": interval.mean,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "ci_kind": interval.kind,
        "n_lineages": interval.n,
        "test": None,
        "p": None,
        "p_adjusted": None,
        "family": None,
        "status": "",
    }


def _status(wanted: int, values: Mapping[int, float], unfinished: bool) -> str:
    return "incomplete" if unfinished or len(values) < wanted else "complete"


def _unfinished(results: Results, eval_name: str, arm: str) -> bool:
    """Whether a missing unit is one that the arm's scores in this eval come from."""
    for unit in results.missing:
        stage, *names = unit.split("/")
        table, _, row = (arm if "/" in arm else f"arms/{arm}").partition("/")
        if stage == "evaluate" and names[:3] == [eval_name, table, row]:
            return True
        if stage in ("finetune", "mlp") and names[:1] == [arm]:
            return True
    return False


def stable(value: Any) -> Any:
    """A float with six significant digits, None for one that is not finite; others as they are."""
    if not isinstance(value, float):
        return value
    # Six digits hide how a sum was ordered; adding 0.0 turns a negative zero into zero.
    return float(f"{value:.6g}") + 0.0 if math.isfinite(value) else None
