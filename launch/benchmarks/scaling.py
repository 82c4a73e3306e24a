"""How time and peak memory of subjax grow with sizes: the part `growth` of `bench.py compare`.

A size is a quarter of what is asked for, a half and all of it, each measured in its own process. No
row of the sampler ends early here, so work is proportional to rows and to new tokens. Where rows
are fixed they are a quarter of `--rows`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TIMES = (1, 2, 4)
LABELS = {
    "rows": "sampler, rows",
    "new_tokens": "sampler, new tokens",
    "batch_size": "LoRA, rows of an update",
}
SIDES = tuple(f"{size}_{times}" for size in LABELS for times in TIMES)

Found = Mapping[str, Any]


def sized(work: dict[str, Any], side: str) -> tuple[str, dict[str, Any]]:
    """The part that a side of `growth` measures, and its work."""
    size, _, times = side.rpartition("_")
    all_rows = len(work["prompts"])  # work has the rows of trainings as `rows`
    of_all = all_rows if size == "rows" else work[size]
    grown = of_all // TIMES[-1] * int(times)
    if size == "batch_size":
        return "lora", work | {size: grown}
    rows = grown if size == "rows" else all_rows // TIMES[-1]
    more = {size: grown} if size == "new_tokens" else {}
    return "sampler", work | more | {"prompts": work["prompts"][:rows], "eos": [-1]}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size: 1 where time is proportional to size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def lines(modes: Sequence[str], found: Sequence[Found]) -> list[dict[str, Any]]:
    """A line for each size in each mode, of medians over rounds; incomplete ones are left out."""
    made = []
    for mode in modes:
        for size, label in LABELS.items():
            of_times = [
                [one for one in found if (one["part"], one["mode"], one["side"]) == key]
                for key in (("growth", mode, f"{size}_{times}") for times in TIMES)
            ]
            if not all(of_times):
                continue
            seconds, peaks = (
                [float(np.median([one[name] for one in side])) for side in of_times]
                for name in ("seconds", "peak_bytes")
            )
            line = {"label": label, "mode": mode, "seconds": seconds, "peak_bytes": peaks}
            line |= {"exponent": exponent(TIMES, seconds), "memory": peaks[-1] / peaks[0]}
            made.append(line)
    return made


def markdown(lines: Sequence[Found], modes: Mapping[str, str]) -> str:
    """The table; columns with three figures have those of a quarter, of a half and of all."""
    columns = (
        *("growth of subjax with", "mode", "s at 1 / 2 / 4 times", "exponent of time"),
        *("peak GB", "peak at 4 times, in that at 1"),
    )
    rows = [columns, ("---", "---", *["---:"] * 4)]
    for line in lines:
        seconds = " / ".join(f"{figure:.3g}" for figure in line["seconds"])
        peaks = " / ".join(f"{figure / 1e9:.2f}" for figure in line["peak_bytes"])
        own = (line["label"], modes[line["mode"]], seconds, f"{line['exponent']:.2f}")
        rows.append((*own, peaks, f"{line['memory']:.2f} x"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
