"""The table of `bench.py compare`: its lines, their numbers, and whether both sides agree.

It measures nothing: `comparison.py` does, and hands every measurement over as a dict. It ends
the program where the two sides have computed different things.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import inputs

MODES = {"float32": "float32", "fastest": "bfloat16 / mixed"}
TOLERANCE = 1e-3

Found = Mapping[str, Any]


class Line(NamedTuple):
    """A line of the table.

    Attributes:
      label: what is compared.
      part: a key of `SIDES`.
      ours: the side in subjax's column.
      theirs: the side in the other column.
      unit: of the figure.
      figure: of a measurement.
      is_rate: whether more is better.
    """

    label: str
    part: str
    ours: str
    theirs: str
    unit: str
    figure: Callable[[dict[str, Any], Found], float]
    is_rate: bool = False


def _seconds(work: dict[str, Any], found: Found) -> float:
    return found["seconds"]


def _per_1000(work: dict[str, Any], found: Found) -> float:
    return 1000 * found["seconds"] / sum(found["lengths"])


def _real_tokens(work: dict[str, Any], found: Found) -> float:
    return sum(len(ids) for ids, _ in inputs.timed_rows(work)) / found["seconds"]


def _growth(work: dict[str, Any], found: Found) -> float:
    return found["growth"] / work["file_bytes"]


CHECK, SFT = "check: PyTorch side, in subjax's column, against", "TRL's SFTTrainer"
NEW, REAL = "s per 1,000 new tokens", "real tokens/s"
LINES = (
    Line("sampler, prefix shared on both sides", "sampler", "subjax", "torch", NEW, _per_1000),
    Line("sampler, not shared by PyTorch", "sampler", "subjax", "torch_unshared", NEW, _per_1000),
    Line("sampler against `generate`", "sampler", "subjax", "torch_generate", NEW, _per_1000),
    Line("sampler against vLLM", "sampler", "subjax", "vllm", NEW, _per_1000),
    Line("exact preference", "exact", "subjax", "torch", "s", _seconds),
    Line("sampled preference", "sampled", "subjax", "torch", NEW, _per_1000),
    Line("LoRA updates", "lora", "subjax", "torch", REAL, _real_tokens, True),
    Line("full finetuning updates", "full", "subjax", "torch", REAL, _real_tokens, True),
    Line("pipeline, rows of its own", "pipeline", "subjax", "torch", "s", _seconds),
    Line("load, time", "load", "subjax", "torch", "s", _seconds),
    Line("load, memory", "load", "subjax", "torch", "x bytes of the files", _growth),
    Line("start to first token", "start", "subjax", "torch", "s", _seconds),
    # 1 or more is as it should be.
    Line(f"{CHECK} `generate`", "sampler", "torch", "torch_generate", NEW, _per_1000),
    Line(f"{CHECK} {SFT}, LoRA", "lora", "torch", "trl", REAL, _real_tokens, True),
    Line(f"{CHECK} {SFT}, full", "full", "torch", "trl", REAL, _real_tokens, True),
)


def check_agreement(found: Sequence[Found]) -> None:
    """Ends the program with one line if the last measurement disagrees with the side before it.

    A benchmark of two different computations says nothing. Only float32 is compared.
    """
    last = found[-1]
    if last["mode"] != "float32" or last["side"] == "subjax" or last["part"] == "growth":
        return
    same = ("round", "part", "mode")
    [ours] = [
        one
        for one in found
        if one["side"] == "subjax" and all(one[name] == last[name] for name in same)
    ]
    if reason := _disagreement(ours, last):
        raise SystemExit(
            f"{last['part']}: subjax and {last['side']} do not compute the same, so there is "
            f"nothing to compare: {reason}"
        )


def _disagreement(ours: Found, theirs: Found) -> str:
    if "log_probs" in ours:
        difference = np.abs(np.array(ours["log_probs"]) - np.array(theirs["log_probs"])).max()
        if not difference <= TOLERANCE:
            return f"log-probabilities differ by up to {difference:.2g} nats"
    if "first_loss" in ours:
        losses = ours["first_loss"], theirs["first_loss"]
        if not abs(losses[0] - losses[1]) <= TOLERANCE:
            return f"the first loss is {losses[0]:.5f} and {losses[1]:.5f}"
        if ours["trained"] != theirs["trained"]:
            return f"{ours['trained']:,} and {theirs['trained']:,} parameters are trained"
    if "lengths" in ours:
        lengths = [np.array(side["lengths"], float) for side in (ours, theirs)]
        if len(lengths[0]) != len(lengths[1]):
            return f"{len(lengths[0])} and {len(lengths[1])} rows are drawn"
        means = [length.mean() for length in lengths]
        # Lengths are drawn: six standard errors, and room for samples too small to have one.
        error = np.sqrt(sum((length.var() + 1) / len(length) for length in lengths))
        if abs(means[0] - means[1]) > 6 * error:
            return f"rows have {means[0]:.1f} and {means[1]:.1f} tokens on average"
    return ""


def table_lines(work: dict[str, Any], found: Sequence[Found]) -> list[dict[str, Any]]:
    """Every line of the table in each mode, as numbers; lines without measurements are left out."""
    arch, limits = inputs.architecture(work), limits_of(found)
    made = []
    for mode in MODES:
        for line in LINES:
            sides = [
                [one for one in found if (one["part"], one["mode"], one["side"]) == key]
                for key in ((line.part, mode, side) for side in (line.theirs, line.ours))
            ]
            if all(sides):
                made.append(_numbers(line, mode, work, arch, limits, sides))
    return made


def _numbers(
    line: Line,
    mode: str,
    work: dict[str, Any],
    arch: Any,
    limits: Mapping[str, float],
    sides: Sequence[Sequence[Found]],
) -> dict[str, Any]:
    """A line: pairs are of PyTorch and of subjax, in this order."""
    figures = [[line.figure(work, one) for one in side] for side in sides]
    theirs, ours = medians = [float(np.median(side)) for side in figures]
    pairs: dict[str, list[Any]] = {
        "figure": medians,
        "spread": [(max(f) - min(f)) / m for f, m in zip(figures, medians, strict=True)],
        "first_call_s": [_median(side, "first_call_s") for side in sides],
        "peak_bytes": [_median(side, "peak_bytes") for side in sides],
        "tokens_per_row": [_median(_tokens_per_row(side), "tokens") for side in sides],
        "share": [
            _median(_shares(line, mode, work, arch, limits, side), "share") for side in sides
        ],
    }
    times = ours / theirs if line.is_rate else theirs / ours
    return {"label": line.label, "mode": mode, "unit": line.unit, "times": times, **pairs}


def _median(side: Sequence[Found], name: str) -> float | None:
    return float(np.median([one[name] for one in side])) if name in side[0] else None


def _tokens_per_row(side: Sequence[Found]) -> list[dict[str, float]]:
    return [{"tokens": np.mean(one["lengths"])} if "lengths" in one else {} for one in side]


def limits_of(found: Sequence[Found]) -> dict[str, float]:
    """The most that either library reached in the roofline, of all rounds."""
    rooflines = [one for one in found if one["part"] == "roofline"]
    most = {name: max(one[name] for one in rooflines) for name in ("float32", "bfloat16", "copy")}
    return {"fastest": max(most["float32"], most["bfloat16"]), **most}


def _shares(
    line: Line,
    mode: str,
    work: dict[str, Any],
    arch: Any,
    limits: Mapping[str, float],
    side: Sequence[Found],
) -> list[dict[str, float]]:
    """Share of the machine's limit, where there is one."""
    if line.figure is _growth or line.part in ("start", "pipeline"):
        return [{} for _ in side]
    if line.part == "load":
        return [{"share": work["file_bytes"] / one["seconds"] / limits["copy"]} for one in side]
    return [
        {"share": inputs.flops(line.part, arch, work, one) / one["seconds"] / limits[mode]}
        for one in side
    ]


def markdown(lines: Sequence[Found]) -> str:
    """The table; columns with two figures have PyTorch's first."""
    columns = (
        *("part", "mode", "unit", "PyTorch", "subjax", "subjax is better by", "spread"),
        *("first call s", "peak GB", "tokens a row", "share of the machine"),
    )
    rows = [columns, tuple("---" if i < 3 else "---:" for i in range(len(columns)))]
    for line in lines:
        theirs, ours = line["figure"]
        rows.append(
            (
                *(line["label"], MODES[line["mode"]], line["unit"]),
                *(f"{theirs:.3g}", f"{ours:.3g}", f"{line['times']:.2f} x"),
                _pair(line["spread"], ".0%"),
                _pair(line["first_call_s"], ".3g"),
                _pair([peak and peak / 1e9 for peak in line["peak_bytes"]], ".2f"),
                _pair(line["tokens_per_row"], ".1f"),
                _pair(line["share"], ".0%"),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _pair(values: Sequence[float | None], form: str) -> str:
    return " / ".join("–" if value is None else format(value, form) for value in values)


def pipeline_notes(found: Sequence[Found]) -> Iterator[str]:
    """What each side's pipeline had to do, in its first round, and how long each step took."""
    for one in found:
        if one["part"] == "pipeline" and not one["round"]:
            steps = ", ".join(f"{step} {seconds:.3g}" for step, seconds in one["steps"].items())
            yield (
                f"pipeline, {'PyTorch' if one['side'] == 'torch' else one['side']}, "
                f"{MODES[one['mode']]}: {len(one['lengths'])} rows of its own with "
                f"{sum(one['lengths'])} new tokens, {one['kept']} kept with {one['kept_tokens']} "
                f"tokens, answers of {one['answer_tokens']} tokens; seconds: {steps}"
            )
