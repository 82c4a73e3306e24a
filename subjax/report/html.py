"""The HTML page of a report: results, data, and commands, in one self-contained file.

This module has the order and the words of the page; report.html.j2 has the markup and the style.
The page has no scripts and no external files. Every text is escaped, since models can write
anything; only the drawings are markup.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jinja2
from markupsafe import Markup, escape

from subjax.report import summary, tables, verdict
from subjax.report.results import Results

TEMPLATE = "report.html.j2"
NUM_SHOWN = 4  # examples per kind and dataset; answers per arm
MAX_COLUMNS = 6  # metrics per table
MAX_CHARACTERS = 900  # of a prompt or a completion

METHOD = (
    "A lineage is one repetition in which everything from the config's first random stage on is"
    " drawn anew. It is the unit of replication: every interval is a 95 % Student t-interval over"
    " lineages, never over answers or over students that share a teacher's rows.",
    "Every arm runs in every lineage. A contrast is taken within each lineage first and then"
    " averaged, so what the arms of a lineage have in common cancels.",
    "The sign-flip test is two-sided and exact up to 20 lineages; its smallest possible p is"
    " 2 / 2ⁿ. p (Holm) is corrected for the other contrasts of the family. An equivalence test"
    " (two one-sided t-tests) supports that an effect is smaller than its margin; there a small p"
    " speaks for no effect of that size.",
)


@dataclass(frozen=True, kw_only=True)
class View:
    """A figure as two `<svg>` elements, for a screen and for a phone."""

    label: str
    wide: str
    narrow: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its caption; of several views the last is shown first, others are chosen."""

    kind: ClassVar[str] = "drawing"
    name: str
    views: Sequence[View]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells of text; text after a line break in a cell is small. `strong` rows are highlighted."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    strong: Sequence[int] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt and a completion, with the reasons for its rejection, if rejected."""

    prompt: str
    completion: str
    reasons: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples side by side under one heading; `tone` is "kept", "rejected" or "" for neither.

    `asked` and `written` name the two texts of a sample.
    """

    kind: ClassVar[str] = "samples"
    title: str
    asked: str
    written: str
    samples: Sequence[Sample]
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Lines to copy, such as commands."""

    kind: ClassVar[str] = "listing"
    lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, paragraphs and blocks; a section without blocks and text is not shown."""

    title: str
    blocks: Sequence[Drawing | Table | Samples | Listing] = ()
    text: Sequence[str] = ()


def page(
    results: Results, rows: Sequence[Mapping[str, Any]], drawings: Mapping[str, Drawing]
) -> str:
    """The page as text, to be written as UTF-8.

    `rows` are the rows of summary.json; `drawings` have the names of `gallery.pictures`; missing
    ones are omitted.
    """
    headline, sentence = verdict.verdict(results)
    beside = summary.masses(results, rows)
    contrast_rows = [row for row in rows if row["kind"] == "contrast"]
    sections = [
        Section(
            title="Effect",
            blocks=[
                *_pick(drawings, *(name for name in drawings if name.startswith("matrix_"))),
                *_pick(drawings, "effect", "signs", "sweeps", "contrasts"),
                *_contrasts(results, contrast_rows, beside),
            ],
        ),
        Section(title="Arms", blocks=_scored(results, rows, beside, ["arm"])),
        Section(
            title="Teachers, bases and data sets",
            blocks=[
                *_pick(drawings, "sources"),
                *_scored(results, rows, beside, ["teacher", "base", "dataset"]),
            ],
        ),
        Section(
            title="What the students answer",
            blocks=[*_pick(drawings, "shares"), *_answers(results)],
        ),
        Section(
            title="Did the students learn the data, and are they intact?",
            blocks=_pick(drawings, "checks"),
        ),
        Section(title="Training", blocks=_pick(drawings, "probes", "losses", "alignment")),
        Section(title="The data and its filter", blocks=[*_filter(results), *_examples(results)]),
        Section(title="Predicted and measured time", blocks=_times(results)),
        Section(
            title="How to read this",
            text=[f"{METHOD[0]} {tables.interval_note(results.replication)}", *METHOD[1:]],
        ),
        Section(title="Run it again", blocks=_reproduction(results)),
    ]
    return _template().render(
        title=results.title,
        claim=results.claim.strip(),
        status=results.status,
        status_reason=results.status_reason,
        headline=headline,
        sentence=sentence,
        cautions=results.cautions,
        missing=results.missing,
        incomplete=bool(results.missing) or any(row["status"] == "incomplete" for row in rows),
        most_views=max((len(drawing.views) for drawing in drawings.values()), default=0),
        sections=[section for section in sections if section.blocks or section.text],
    )


def _pick(drawings: Mapping[str, Drawing], *names: str) -> list[Drawing]:
    return [drawings[name] for name in names if name in drawings]


Beside = Mapping[tuple[str, str, str, str], summary.Mass]


def _contrasts(results: Results, rows: Sequence[Mapping[str, Any]], masses: Beside) -> list[Table]:
    formulas = {contrast.name: contrast.formula for contrast in results.contrasts}
    margins = {
        f"{contrast.name}_equivalence": f"within ±{contrast.equivalence_margin:g}?"
        for contrast in results.contrasts
    }
    lines = []
    for row in rows:
        label, unit = results.describe(row["eval"], row["metric"])
        arms = formulas.get(row["name"]) or margins.get(row["name"], "")
        value = tables.estimate(row, sign=True)
        lines.append(
            [
                f"{row['name']}\n{arms}",
                f"{label}\n{row['eval']}",
                f"{value}{unit and ' ' + unit}{_flag(row)}",
                f"{tables.p_value(row['p'])}\n{row['test'].replace('_', '-')}",
                f"{tables.p_value(row['p_adjusted'])}\n{row['family']}",
                str(row["n_lineages"]),
                _mass(row, masses),
            ]
        )
    header = ["contrast", "metric", "mean [95 %]", "p", "p (Holm)", "lineages", _MASS]
    strong = [0] if results.primary else []
    caption = "Contrasts between arms, within lineages." + (
        " The primary one comes first." if results.primary else ""
    )
    caption += f" {tables.interval_note(results.replication)}{tables.MASS_NOTE if masses else ''}"
    return [Table(header=header, lines=lines, strong=strong, caption=caption)] if lines else []


_MASS = "candidates' mass\nsampled"


def _mass(row: Mapping[str, Any], masses: Beside) -> str:
    found = masses.get((row["kind"], row["name"], row["eval"], row["metric"]))
    return f"{tables.percent(found.mass)}\n{tables.percent(found.rate)}" if found else ""


def _scored(
    results: Results,
    rows: Sequence[Mapping[str, Any]],
    masses: Beside,
    kinds: Sequence[str],
) -> list[Table]:
    """What was scored by metrics, a table for each kind and for MAX_COLUMNS of its metrics.

    Without the distributions that a figure shows.
    """
    found = []
    for kind in kinds:
        title = tables.SUBJECTS[kind]
        shown = {
            (row["name"], (row["eval"], row["metric"])): row
            for row in rows
            if row["kind"] == kind
            and not results.metric(row["eval"], row["metric"]).is_distribution
        }
        pairs = list(dict.fromkeys(pair for _, pair in shown))
        names = list(dict.fromkeys(name for name, _ in shown))
        if kind == "arm":
            title, names = "Students at their last step", results.students
        caption = f"{title}: mean and 95 % interval. {tables.interval_note(results.replication)}"
        for start in range(0, len(pairs), MAX_COLUMNS):
            columns = pairs[start : start + MAX_COLUMNS]
            lines = [
                [name, *(_arm_cell(shown.get((name, pair)), masses) for pair in columns)]
                for name in names
            ]
            header = [kind, *(_column(results, *pair) for pair in columns)]
            found.append(Table(header=header, lines=lines, caption=caption))
    return found


def _column(results: Results, eval_name: str, metric: str) -> str:
    label, unit = results.describe(eval_name, metric)
    return f"{label}\n{unit}{unit and ', '}{eval_name}"


def _arm_cell(row: Mapping[str, Any] | None, masses: Beside) -> str:
    if row is None:
        return "–"
    mean, _, interval = tables.estimate(row).partition(" ")
    mass, _, rate = _mass(row, masses).partition("\n")
    beside = f", candidates' mass {mass}, sampled {rate}" if mass else ""
    return f"{mean}\n{interval}{beside}{_flag(row)}"


def _flag(row: Mapping[str, Any]) -> str:
    return f" (incomplete, n = {row['n_lineages']})" if row["status"] == "incomplete" else ""


def _samples(
    title: str, rows: Sequence[Mapping[str, Any]], *, asked: str, written: str, tone: str = ""
) -> Samples:
    """The first rows, whose two texts are in the fields `asked` and `written`."""
    samples = [
        Sample(
            prompt=_cut(row[asked]), completion=_cut(row[written]), reasons=row.get("reasons", ())
        )
        for row in rows[:NUM_SHOWN]
    ]
    return Samples(title=title, asked=asked, written=written, samples=samples, tone=tone)


def _answers(results: Results) -> list[Samples]:
    return [
        _samples(f"Students of the arm {arm}", answers, asked="question", written="answer")
        for arm, answers in results.answers.items()
        if answers
    ]


def _filter(results: Results) -> list[Table]:
    """Numbers of generated, kept and rejected rows per dataset and reason, over all lineages."""
    lines = []
    for dataset, lineages in results.counts.items():
        counts = list(lineages.values())
        generated = sum(count["generated"] for count in counts)
        kept = sum(count["kept"] for count in counts)
        rates = [count["kept"] / count["generated"] for count in counts if count["generated"]]
        spread = f"\n{min(rates):.1%} to {max(rates):.1%} by lineage" if len(rates) > 1 else ""
        reasons: Counter[str] = Counter()
        for count in counts:
            reasons.update(count.get("reasons", {}))
        listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        share = f"{kept / generated:.1%}" if generated else "–"
        row = [dataset, str(len(counts)), f"{generated:,}", f"{kept:,}", share + spread]
        lines.append([*row, listed or "none rejected"])
    header = ["dataset", "lineages", "generated", "kept", "share kept", "reasons for rejection"]
    caption = "A row may be rejected for several reasons at once."
    return [Table(header=header, lines=lines, caption=caption)] if lines else []


def _examples(results: Results) -> list[Samples]:
    return [
        _samples(
            f"{tone.capitalize()} rows of {dataset}",
            kinds[tone],
            asked="prompt",
            written="completion",
            tone=tone,
        )
        for dataset, kinds in results.examples.items()
        for tone in ("kept", "rejected")
        if kinds.get(tone)
    ]


def _times(results: Results) -> list[Table]:
    """Measured times of trainings, and the predictions of `plan --measure`."""
    if not results.times:
        return []
    names = ("units", "predicted_s", "measured_s", "wall_s")
    totals = {name: sum(row[name] for row in results.times) for name in names}
    lines = [
        [
            row["row"],
            str(row["units"]),
            f"{row['predicted_s']:,.1f}",
            f"{row['measured_s']:,.1f}",
            f"{row['measured_s'] / row['predicted_s']:.2f}",
            f"{row['wall_s']:,.1f}",
        ]
        for row in (*results.times, {"row": "all that trains", **totals})
    ]
    devices = ", ".join(sorted({row["devices"] for row in results.times}))
    caption = (
        f"Seconds of updates: predicted by python -m subjax.plan --measure on {devices}, and"
        " measured by timings.jsonl, where first calls, which compile, count at the pace of the"
        " others. Wall is all that the units took, with loading, compiling, probes and scores."
    )
    header = ["trained", "units", "predicted", "measured", "measured / predicted", "wall"]
    return [Table(header=header, lines=lines, strong=[len(lines) - 1], caption=caption)]


def _reproduction(results: Results) -> list[Listing | Table]:
    versions = [[name, version] for name, version in results.versions.items()]
    walls = [[stage, f"{wall_s:,.1f}"] for stage, wall_s in results.wall_s.items()]
    walls += [["all stages", f"{sum(results.wall_s.values()):,.1f}"]] if walls else []
    blocks: list[Listing | Table] = []
    if results.commands:
        blocks.append(Listing(lines=results.commands))
    if versions:
        blocks.append(Table(header=["made with", ""], lines=versions))
    if walls:
        blocks.append(Table(header=["stage", "seconds"], lines=walls, strong=[len(walls) - 1]))
    return blocks


def _cut(text: str) -> str:
    left = len(text) - MAX_CHARACTERS
    return text if left <= 0 else f"{text[:MAX_CHARACTERS]} … ({left:,} more characters)"


def _breakable(text: str) -> Markup:
    """Text with possible line breaks after underscores, for names in narrow columns."""
    return Markup(str(escape(_printable(text))).replace("_", "_<wbr>"))


def _printable(value: Any) -> Any:
    """Text with control characters and lone surrogates escaped, which HTML cannot contain."""
    if isinstance(value, Markup):
        return value
    text = re.sub(r"[\ud800-\udfff\x7f-\x9f]", "\ufffd", str(value))
    return re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable,
    )
    environment.filters["breakable"] = _breakable
    return environment.from_string(Path(__file__).with_name(TEMPLATE).read_text("utf-8"))
