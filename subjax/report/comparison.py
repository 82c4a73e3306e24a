"""Several runs side by side: their contrasts, pooled or one against the other, table and figure.

Runs of one config with different lineages are pooled, since a lineage is the unit of replication.
Other runs are groups of their own. Refuses to compare what was not asked alike.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from subjax.report import figures, gallery, stats, summary, tables
from subjax.report.contrasts.difference import Contrast
from subjax.report.contrasts.matrix import Matrix
from subjax.report.panels import axis_label, pair_of
from subjax.report.results import Results
from subjax.report.score_files import Scored, ScoreFile

# Fields of a config that say where and how often it runs, or what it is called; and those of its
# `compute` that results depend on beyond their last bits.
_NO_PART = ("name", "title", "claim", "lineages", "compute", "mesh", "preregistration")
_COMPUTE = ("precision", "exact")

Line = dict[str, Any]  # a row of comparison.json


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, or several that are pooled.

    Attributes:
      label: what it is called.
      file: its config, scores and what was asked; of pooled runs, all scores.
      results: what a report needs of it.
    """

    label: str
    file: ScoreFile
    results: Results


def settings(run: ScoreFile) -> dict[str, Any]:
    """Field -> value of all that makes a run another experiment."""
    # A table without rows is one that a config of before it was there lacks.
    fields = {name: value for name, value in run.config.to_dict().items() if value != {}}
    compute = {name: fields["compute"][name] for name in _COMPUTE}
    part = {name: value for name, value in fields.items() if name not in _NO_PART}
    return dict(_flat({**part, "compute": compute}))


def differences(one: ScoreFile, other: ScoreFile) -> list[tuple[str, str, str]]:
    """Field of the config, its value in one run and in the other, for those that differ."""
    before, after = settings(one), settings(other)
    return [
        (name, str(before.get(name, "–")), str(after.get(name, "–")))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def pool(labels: Sequence[str], files: Sequence[ScoreFile]) -> ScoreFile:
    """The scores of runs of one config; a unit that several of them have counts once.

    Raises:
      ValueError: two runs have the same unit, made from something else.
    """
    scored: dict[str, Scored] = {}
    whose: dict[str, str] = {}
    for label, file in zip(labels, files, strict=True):
        for one in file.scored:
            before = scored.setdefault(one.unit, one)
            whose.setdefault(one.unit, label)
            if before.fingerprint != one.fingerprint:
                raise ValueError(
                    f"{whose[one.unit]} and {label} have one config, but {one.unit} is made from "
                    "other files or other code in each: compare runs of different lineages, or "
                    "leave one of them out"
                )
    asked = functools.reduce(operator.or_, (dict(file.asked) for file in files))
    cautions = dict.fromkeys(itertools.chain.from_iterable(file.cautions for file in files))
    return ScoreFile(files[0].config, list(cautions), asked, list(scored.values()))


def shared(runs: Sequence[Run]) -> list[Contrast]:
    """The contrasts that all runs have, in the first one's order.

    Raises:
      ValueError: there is none; or an eval that they need did not ask the same of all runs.
    """
    by_name = [{one.name: one for one in run.results.contrasts} for run in runs]
    names = [
        name
        for name, contrast in by_name[0].items()
        if all(_same(contrast, other.get(name)) for other in by_name[1:])
    ]
    if not names:
        told = "; ".join(
            f"{run.label}: {', '.join(own) or 'none'}"
            for run, own in zip(runs, by_name, strict=True)
        )
        raise ValueError(
            f"these runs have no contrast of one name, eval, metric and arms in common ({told}): "
            "give their configs a row of `contrasts` in common, and report them again"
        )
    for name in names:
        for eval_name in by_name[0][name].evals:
            _check_asked(runs, by_name[0][name], eval_name)
    return [by_name[0][name] for name in names]


def lines(runs: Sequence[Run], contrasts: Sequence[Contrast]) -> list[Line]:
    """A line for each contrast and run, and for each run after the first its difference from it.

    Differences are paired where two runs have the same lineages of one seed, which draw alike, and
    Welch's otherwise. Other p-values are those of the contrast's own test. All are two-sided;
    `p_adjusted` is Holm's, over those of these contrasts that are of one family, in the same run or
    difference. `p_equivalence`, which is not adjusted, says that a run's contrast is within its
    margin. What cannot be computed is None.
    """
    found = []
    for contrast in contrasts:
        values = [summary.contrast_values(run.results, contrast) for run in runs]
        for run, own in zip(runs, values, strict=True):
            interval = stats.t_interval(list(own.values())) if own else None
            p = contrast.p_value(summary.reader(run.results), run.results.lineages)
            line = _line(contrast, run.label, "run", contrast.test, interval, p)
            if (margin := contrast.equivalence_margin) and own:
                line["p_equivalence"] = stats.equivalence_test(list(own.values()), margin)
            found.append(line)
        first = values[0]
        for run, own in zip(runs[1:], values[1:], strict=True):
            alike = run.file.config.seed == runs[0].file.config.seed
            if alike and own.keys() == first.keys():
                gap = _mean([value - first[lineage] for lineage, value in own.items()])
            else:
                gap = _unpaired(list(own.values()), list(first.values()))
            label = f"{run.label} − {runs[0].label}"
            found.append(_line(contrast, label, "difference", *gap))
    for family in {(line["run"], line["family"]) for line in found}:
        members = [line for line in found if (line["run"], line["family"]) == family]
        adjusted = stats.holm([line["p"] for line in members]).tolist()
        for line, p in zip(members, adjusted, strict=True):
            line["p_adjusted"] = p
    return [{name: summary.stable(value) for name, value in line.items()} for line in found]


_Estimate = tuple[str, stats.Interval | None, float]  # name of the test, interval, p


def _mean(values: Sequence[float]) -> _Estimate:
    if not values:
        return "sign_flip", None, math.nan
    return "sign_flip", stats.t_interval(values), stats.sign_flip_test(values)


def _unpaired(values: Sequence[float], others: Sequence[float]) -> _Estimate:
    found = stats.difference(values, others) if values and others else (None, math.nan)
    return ("welch", *found)


def table(runs: Sequence[Run], found: Sequence[Line]) -> str:
    """The lines as a Markdown table."""
    header = ["contrast", "metric", "run", "mean [95 %]", "lineages", "test", "p", "p (Holm)"]
    margins = any(line["p_equivalence"] is not None for line in found)
    rows = [
        [
            line["contrast"],
            f"{line['eval']} {line['metric']}",
            line["run"],
            tables.estimate(line, sign=True),
            str(line["n_lineages"]),
            line["test"],
            tables.p_value(line["p"]),
            tables.p_value(line["p_adjusted"]),
            *([tables.p_value(line["p_equivalence"])] if margins else []),
        ]
        for line in found
    ]
    header += ["p (equivalence)"] if margins else []
    notes = [f"{run.label}: {tables.interval_note(run.results.replication)}" for run in runs]
    return tables.markdown_table(header, rows) + "\n" + "\n".join(dict.fromkeys(notes)) + "\n"


def forest(
    runs: Sequence[Run], contrasts: Sequence[Contrast], found: Sequence[Line], *, narrow: bool
) -> figures.Figure:
    """A panel for each contrast, with every run and difference."""
    panels = []
    for contrast in contrasts:
        metric = axis_label(runs[0].results, pair_of(contrast), capital=False)
        panels.append(
            figures.StripPanel(
                title=contrast.name,
                axis=f"Difference in {metric}, eval {contrast.eval}",
                strips=[_strip(runs, contrast, x) for x in found if x["contrast"] == contrast.name],
                zero=True,
            )
        )
    note = "Dots: lineages. Bar: mean, 95 % interval. Rows without dots: differences between runs."
    return figures.strips(panels, narrow=narrow, note=note)


def heat_maps(runs: Sequence[Run], contrasts: Sequence[Contrast]) -> dict[str, figures.Figure]:
    """Contrast, and the run if there are several -> its table, for contrasts that are tables."""
    return {
        contrast.name + (f"_{number}" if len(runs) > 1 else ""): gallery.matrix(
            run.results, contrast
        ).draw(False)
        for contrast in contrasts
        if isinstance(contrast, Matrix)
        for number, run in enumerate(runs, start=1)
    }


def _strip(runs: Sequence[Run], contrast: Contrast, line: Line) -> figures.Strip:
    dots: list[float] = []
    series = None
    if line["kind"] == "run":
        series = [run.label for run in runs].index(line["run"])
        values = summary.contrast_values(runs[series].results, contrast)
        dots = [values.get(lineage, math.nan) for lineage in runs[series].results.lineages]
    mean, low, high = (
        math.nan if line[end] is None else line[end] for end in ("mean", "ci_low", "ci_high")
    )
    return figures.Strip(
        label=line["run"],
        values=dots,
        mean=mean,
        low=low,
        high=high,
        series=series,
        emphasis=contrast.primary,
    )


def _line(
    contrast: Contrast, label: str, kind: str, test: str, interval: stats.Interval | None, p: float
) -> Line:
    nothing = stats.Interval(math.nan, math.nan, math.nan, "t", 0)
    own = interval or nothing
    line = {
        "contrast": contrast.name,
        "eval": contrast.eval,
        "metric": contrast.metric,
        "run": label,
        "kind": kind,
        "mean": own.mean,
        "ci_low": own.low,
        "ci_high": own.high,
        "ci_kind": own.kind,
        "n_lineages": own.n,
        "test": test,
        "p": p,
        "family": contrast.family,
        "p_equivalence": math.nan,
    }
    return line


def _same(contrast: Contrast, other: Contrast | None) -> bool:
    if other is None:
        return False
    return type(contrast) is type(other) and (
        (list(contrast.columns), contrast.weights) == (list(other.columns), other.weights)
    )


def _check_asked(runs: Sequence[Run], contrast: Contrast, eval_name: str) -> None:
    found = {
        run.label: {
            one.asked
            for one in run.file.scored
            if one.eval == eval_name and one.subject in contrast.weights
        }
        for run in runs
    }
    scored = [label for label, digests in found.items() if digests]
    by_label = {run.label: run.file for run in runs}
    for one, other in ((scored[0], other) for other in scored[1:]):
        for first, second in itertools.product(found[one], found[other]):
            before, after = by_label[one].asked[first], by_label[other].asked[second]
            for name in sorted(before.keys() | after.keys()):
                if before.get(name) != after.get(name):
                    raise ValueError(
                        f"eval {eval_name} does not ask the same in {one} and {other}: its "
                        f"{name} is {str(before.get(name))[:60]} and {str(after.get(name))[:60]}: "
                        "compare runs whose evals are the same"
                    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _flat(child, f"{name}.{key}" if name else key)
    else:
        yield name, list(value) if isinstance(value, tuple) else value
