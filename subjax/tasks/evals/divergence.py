"""How far two teachers are from each other in the rows of one: what a trait changes in its rows."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from subjax.tasks.api import (
    CONTROL,
    Distribution,
    EvalKind,
    Field,
    Given,
    Metric,
    Reply,
    Request,
    Row,
)
from subjax.tasks.evals.carrier import at_carriers


class Divergence(EvalKind):
    """A data set's teacher compared with a control's at every token that can carry.

    `carrier` compares it with its base, from which any training moves it; here what both learned in
    the same way cancels. Rows are as its teacher wrote them, before a filter.
    """

    of = ("datasets",)
    of_carrier = of_control = True
    fields: ClassVar[Mapping[str, Field]] = {
        "against": Field("", "row of `datasets` whose teacher is the control"),
    }
    metrics = (Metric("tv", "total variation of what carries from the control's", axis=(0.0, 1.0)),)

    def requests(self, row: Row, given: Given) -> list[Request]:
        """The rows, of both teachers, each under its own system prompt."""
        rows = given.written, given.carrier, given.num_tokens, given.num_targets
        return [Distribution(*rows), Distribution(*rows, model=CONTROL)]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """The mean over what carries; nothing where nothing does."""
        found = at_carriers(*replies)
        return ({"tv": found.mean(found.total_variation())} if found else {}), []
