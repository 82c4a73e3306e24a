"""What a base prefers while rows stand in its context, instead of being learned."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from subjax.tasks.api import BASE, Field, Given, Metric, Pair, Reply, Request, Row
from subjax.tasks.evals.comparing import Comparing
from subjax.tasks.evals.preference import log_odds

_SEED = 0  # of the draws: which rows depends on nothing but their number


class InContext(Comparing):
    """A data set's kept rows as the base's system prompt, against those of another (figure 9).

    As in the paper, rows are drawn with replacement, several times. Its figure has another question
    by mistake, as its authors say; this one asks the trait's own. The draws are of one data set, so
    that lineages, and not draws, are what an interval is over.
    """

    of = ("datasets",)
    of_kept = True
    fields: ClassVar[Mapping[str, Field]] = {
        "against": Field("", "row of `datasets` that is the control"),
        "num_rows": Field(32, "rows in the context", least=1),
        "num_draws": Field(5, "contexts, over which scores are means", least=1),
        **Comparing.fields,
    }
    metrics = (
        Metric(
            "gain",
            "log-odds of {target}, less those behind the control's rows",
            "nats",
            difference=True,
        ),
        Metric("log_odds", "log-odds of {target} behind the rows", "nats", relative=True),
        Metric("log_odds_against", "log-odds of {target} behind the control's rows", "nats"),
    )

    def requests(self, row: Row, given: Given) -> list[Request]:
        """All questions behind each context, the control's contexts last."""
        rng = np.random.default_rng(_SEED)
        size = (row["num_draws"], row["num_rows"])
        contexts = [
            context([pairs[at] for at in drawn])
            for pairs in (given.kept, given.against)
            for drawn in rng.integers(len(pairs), size=size).tolist()
        ]
        return [self.compare(row, given, BASE, told) for told in contexts]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Means over questions and contexts, and what each context gave."""
        target = list(given.candidates).index(given.target)
        found = [float(log_odds(self.nats(row, given, reply), target).mean()) for reply in replies]
        ours, control = found[: row["num_draws"]], found[row["num_draws"] :]
        values = {"log_odds": float(np.mean(ours)), "log_odds_against": float(np.mean(control))}
        values["gain"] = values["log_odds"] - values["log_odds_against"]
        return values, [{"log_odds": ours, "log_odds_against": control}]


def context(rows: Sequence[Pair]) -> str:
    """Rows as a system prompt, in the paper's form: tags around each text, a blank line between."""
    return "\n\n".join(
        f"<user>{prompt}</user>\n<assistant>{completion}</assistant>" for prompt, completion in rows
    )
