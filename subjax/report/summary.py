"""What a finished run has to say: effects, intervals and tests, as rows and as one sentence.

Holds `Results`, the plain data that a run left behind, and the numbers of the report. Refuses to
read files, to draw, and to leave a lineage out silently: a row that lacks one says incomplete.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from subjax.report import stats
from subjax.tasks.api import MASS, RATE, Metric, find

SummaryRow = dict[str, Any]  # one row of summary.json
Record = Mapping[str, Any]  # {"metric": str, "step": int, "value": float}

INCOMPLETE = "INCOMPLETE"  # of a frozen run that is not all done
STATUSES = ("EXPLORATORY", "CONFIRMATORY", INCOMPLETE)
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A linear contrast of arms within one metric: the sum of `plus` less the sum of `minus`.

    `family` is corrected together by Holm's method; `equivalence_margin` 0 asks for no equivalence
    test; `expected_low` is the lower end of the interval that the config predicts.
    """

    name: str
    eval: str
    metric: str
    plus: Sequence[str]
    minus: Sequence[str]
    primary: bool = False
    family: str = "secondary"
    equivalence_margin: float = 0.0
    expected_low: float | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each arm; an arm that is named twice weighs double."""
        net = Counter(self.plus)
        net.subtract(Counter(self.minus))
        return {arm: float(weight) for arm, weight in net.items()}

    @property
    def formula(self) -> str:
        """The contrast in the names of its arms, such as "owl − placebo"."""
        return " + ".join(self.plus) + "".join(f" − {arm}" for arm in self.minus)


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that a report shows, as plain data.

    Attributes:
      title: `config.title`, or its name.
      claim: `config.claim`, what the run is meant to show.
      status: one of STATUSES, and `status_reason` the sentence that says why.
      lineages: those that the config asks for, done or not.
      arms: what is scored, in the order of the tables and figures: arms by their names, and other
        subjects of evals with their table, such as "teachers/owl".
      metrics: eval -> what it measures.
      targets: eval -> the candidate that it is about.
      scores: (eval, arm) -> lineage -> records of the evaluate unit.
      contrasts: in the order of the tables; at most one is primary.
      replication: what is a lineage's own, such as "own base, teachers, rows and order".
      cautions: sentences on what the config's evals cannot keep apart.
      missing: names of units that are not done.
      counts: dataset -> lineage -> {"generated": int, "kept": int, "reasons": {reason: int}}.
      examples: dataset -> {"kept": rows, "rejected": rows with "reasons"}.
      answers: arm -> [{"question": str, "answer": str}].
      curves: arm -> lineage -> [{"step": int, "loss": float}].
      theorems: row -> curves over eps, as the theorem stage writes them.
      published: arm -> mean that was published for it, in the metric of the main figure.
      sweeps: curve -> arm -> where it lies on the curve's axis.
      step_name: what a step is, for axes.
      commands: as typed, in order.
      versions: package or device -> version.
      wall_s: stage -> seconds.
      times: of trainings by table row: predicted_s, measured_s and wall_s of so many units.

    ValueError: names that repeat or that nothing else knows.
    """

    title: str
    claim: str
    status: str
    status_reason: str
    lineages: tuple[int, ...]
    arms: tuple[str, ...]
    scores: Mapping[tuple[str, str], Mapping[int, Sequence[Record]]]
    contrasts: Sequence[Contrast]
    metrics: Mapping[str, Sequence[Metric]]
    targets: Mapping[str, str] = field(default_factory=dict)
    replication: str = ""
    cautions: Sequence[str] = ()
    missing: Sequence[str] = ()
    counts: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)
    examples: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]] = field(default_factory=dict)
    answers: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[int, Sequence[Record]]] = field(default_factory=dict)
    theorems: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    sweeps: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    step_name: str = "Training step"
    commands: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    wall_s: Mapping[str, float] = field(default_factory=dict)
    times: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}; give one of {STATUSES}")
        _check_unique("lineages", self.lineages)
        _check_unique("arms", self.arms)
        _check_unique("contrasts", [contrast.name for contrast in self.contrasts])
        if sum(contrast.primary for contrast in self.contrasts) > 1:
            raise ValueError("contrasts has several with primary=True; mark one of them")
        for contrast in self.contrasts:
            if not contrast.plus:
                raise ValueError(f"contrast {contrast.name!r} has no plus arms; name at least one")
            for arm in (*contrast.plus, *contrast.minus):
                _check_known(f"contrast {contrast.name!r} names arm", arm, self.arms)
        for (eval_name, arm), lineages in self.scores.items():
            _check_known(f"scores of eval {eval_name!r} names arm", arm, self.arms)
            _check_known("scores name eval", eval_name, list(self.metrics))
            # Lineages may share another subject, whose scores then stand at lineage 0.
            for lineage in lineages if kind_of(arm) == "arm" else ():
                _check_known(f"scores of arm {arm!r} names lineage", lineage, self.lineages)

    @property
    def primary(self) -> Contrast | None:
        """The contrast that the verdict is about."""
        return next((contrast for contrast in self.contrasts if contrast.primary), None)

    def describe(self, eval_name: str, metric: str) -> tuple[str, str]:
        """Label and unit of a metric, with the target of its eval by name."""
        found = self.metric(eval_name, metric)
        return found.describe(metric, self.targets.get(eval_name, "")), found.unit

    def metric(self, eval_name: str, metric: str) -> Metric:
        """What an eval measures under a name.

        Raises:
          ValueError: the eval measures nothing of that name.
        """
        return find(self.metrics[eval_name], metric)


def _check_unique(name: str, values: Sequence[Any]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{name} has {repeated[0]!r} twice; give each one once")


def _check_known(what: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise ValueError(f"{what} {value!r}; give one of {list(known)}")


def ordered(results: Results) -> list[Contrast]:
    """The contrasts as every table and figure lists them: the primary one first."""
    return sorted(results.contrasts, key=lambda contrast: not contrast.primary)


# --- values -------------------------------------------------------------------------------------


def evals_and_metrics(results: Results) -> list[tuple[str, str]]:
    """(eval, metric) pairs that have scores: those of contrasts first, the others by name."""
    scored = {
        (eval_name, record["metric"])
        for (eval_name, _), lineages in results.scores.items()
        for records in lineages.values()
        for record in records
    }
    first = dict.fromkeys((contrast.eval, contrast.metric) for contrast in ordered(results))
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


def contrast_values(results: Results, contrast: Contrast) -> dict[int, float]:
    """Lineage -> contrast at the arms' final steps, for the lineages that every arm has."""
    arms = {
        arm: final_values(results, contrast.eval, arm, contrast.metric) for arm in contrast.weights
    }
    shared = [lineage for lineage in results.lineages if all(lineage in v for v in arms.values())]
    columns = {arm: [values[lineage] for lineage in shared] for arm, values in arms.items()}
    if not shared:
        return {}
    return dict(zip(shared, stats.combine(columns, contrast.weights).tolist(), strict=True))


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
    if not results.metric(eval_name, metric).relative:
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
    plus |= {f"{name}_equivalence": arms for name, arms in plus.items()}
    found = {}
    for row in rows:
        key = (row["kind"], row["name"], row["eval"], row["metric"])
        arms = plus[row["name"]] if row["kind"] == "contrast" else [row["name"]]
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
    rows = [row for contrast in ordered(results) for row in _contrast_rows(results, contrast)]
    for family in {row["family"] for row in rows}:
        members = [row for row in rows if row["family"] == family]
        adjusted = stats.holm([row["p"] for row in members]).tolist()
        for row, p in zip(members, adjusted, strict=True):
            row["p_adjusted"] = p
    for eval_name, metric in evals_and_metrics(results):
        for arm in results.arms:
            if trajectory(results, eval_name, arm, metric):
                rows.append(_arm_row(results, eval_name, arm, metric))
    return [{name: _stable(value) for name, value in row.items()} for row in rows]


def _contrast_rows(results: Results, contrast: Contrast) -> list[SummaryRow]:
    values = contrast_values(results, contrast)
    incomplete = any(_unfinished(results, contrast.eval, arm) for arm in contrast.weights)
    shared = _row(contrast.name, "contrast", contrast.eval, contrast.metric, values)
    wanted = max(_wanted(results, contrast.eval, arm) for arm in contrast.weights)
    shared["status"] = _status(wanted, values, incomplete)
    lineages = list(values.values())
    p = stats.sign_flip_test(lineages) if lineages else math.nan
    rows = [{**shared, "test": "sign_flip", "p": p, "family": contrast.family}]
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


def kind_of(subject: str) -> str:
    """What a row of summary.json is about: arm, teacher, base or dataset."""
    table, slash, _ = subject.partition("/")
    return table.removesuffix("s") if slash else "arm"


def arms(results: Results) -> list[str]:
    """The students among what is scored."""
    return [subject for subject in results.arms if kind_of(subject) == "arm"]


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


def _stable(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    # Six digits hide how a sum was ordered; adding 0.0 turns a negative zero into zero.
    return float(f"{value:.6g}") + 0.0 if math.isfinite(value) else None
