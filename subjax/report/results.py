"""`Results`: everything that a report shows of a run, as plain data, whose names fit together.

`read` makes it from the files of a run; `summary` computes the numbers.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from subjax.report.contrasts.difference import Contrast
from subjax.report.contrasts.matrix import Matrix
from subjax.tasks.api import Metric, find

Record = Mapping[str, Any]  # {"metric": str, "step": int, "value": float}

INCOMPLETE = "INCOMPLETE"  # of a frozen run that is not all done
STATUSES = ("EXPLORATORY", "CONFIRMATORY", INCOMPLETE)


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
      versions: package -> version, and the precision of the run.
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

    @property
    def ordered(self) -> list[Contrast]:
        """The contrasts as every table and figure lists them: the primary one first."""
        return sorted(self.contrasts, key=lambda contrast: not contrast.primary)

    @property
    def matrices(self) -> list[Matrix]:
        """The contrasts that are tables."""
        return [contrast for contrast in self.ordered if isinstance(contrast, Matrix)]

    @property
    def students(self) -> list[str]:
        """The arms among what is scored."""
        return [subject for subject in self.arms if kind_of(subject) == "arm"]

    def describe(self, eval_name: str, metric: str) -> tuple[str, str]:
        """Label and unit of a metric, with the target of its eval by name."""
        found = self.metric(eval_name, metric)
        return found.describe(metric, self.targets.get(eval_name, "")), found.unit

    def metric(self, eval_name: str, metric: str) -> Metric:
        """What an eval measures under a name.

        Raises:
          ValueError: the eval measures nothing of that name.
        """
        return find([one for name in self.evals(eval_name) for one in self.metrics[name]], metric)

    def evals(self, pattern: str) -> list[str]:
        """The evals that the name or pattern of a contrast stands for."""
        return [name for name in self.metrics if fnmatch.fnmatchcase(name, pattern)]


def _check_unique(name: str, values: Sequence[Any]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{name} has {repeated[0]!r} twice; give each one once")


def _check_known(what: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise ValueError(f"{what} {value!r}; give one of {list(known)}")


def kind_of(subject: str) -> str:
    """What a row of summary.json is about: arm, teacher, base or dataset."""
    table, slash, _ = subject.partition("/")
    return table.removesuffix("s") if slash else "arm"
