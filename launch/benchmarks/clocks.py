"""The steps of the part `pipeline` of `bench.py compare`, which both sides have."""

import itertools
import time
from typing import Any

STEPS = ("load", "rows", "keep", "finetune", "answers")


class Clock:
    """Seconds of steps that follow each other."""

    def __init__(self) -> None:
        self._ends = {"": time.perf_counter()}

    def ends(self, step: str) -> None:
        """Ends a step and begins the next."""
        self._ends[step] = time.perf_counter()

    def found(self) -> dict[str, Any]:
        """Seconds in all and of each step."""
        ends = list(self._ends.values())
        steps = [end - begin for begin, end in itertools.pairwise(ends)]
        return {"seconds": sum(steps), "steps": dict(zip(STEPS, steps, strict=True))}


def batch_of(num_kept: int, work: dict[str, Any]) -> int:
    """Rows of an update; an epoch has full batches alone. Ends the program if no row was kept."""
    if not num_kept:
        raise SystemExit(
            f"none of {work['pipeline_rows']} rows ended and was a list of numbers, so the "
            "pipeline has nothing to train on: take a larger model or more --new-tokens"
        )
    return min(num_kept, work["batch_size"])
