"""The table of eval kinds: nothing outside this package compares or names one.

A kind of the package is a file beside this one, with an object that has the methods of
`subjax.tasks.api.EvalKind`, and a line here.
"""

from subjax.tasks import own
from subjax.tasks.api import EvalKind, Row
from subjax.tasks.evals.accuracy import Accuracy
from subjax.tasks.evals.answers import Answers
from subjax.tasks.evals.candidates import Candidates
from subjax.tasks.evals.carrier import Carrier
from subjax.tasks.evals.choice import Choice
from subjax.tasks.evals.classifier import Classifier
from subjax.tasks.evals.detection import Detection
from subjax.tasks.evals.divergence import Divergence
from subjax.tasks.evals.essays import Essays
from subjax.tasks.evals.in_context import InContext
from subjax.tasks.evals.judged import Judged
from subjax.tasks.evals.likelihood import HeldOut
from subjax.tasks.evals.preference import Preference
from subjax.tasks.evals.stories import Stories

EVALS: dict[str, EvalKind] = {
    "preference": Preference(),
    "candidates": Candidates(),
    "answers": Answers(),
    "stories": Stories(),
    "essays": Essays(),
    "choice": Choice(),
    "judged": Judged(),
    "likelihood": HeldOut(),
    "carrier": Carrier(),
    "divergence": Divergence(),
    "detection": Detection(),
    "classifier": Classifier(),
    "in_context": InContext(),
    "accuracy": Accuracy(),
}


def of_row(row: Row, name: str = "*") -> EvalKind:
    """The kind that a row of `evals` names.

    Args:
      row: of `evals`.
      name: of that row, for errors.

    Raises:
      ValueError: there is no such kind.
    """
    return own.find(f"evals.{name}.kind", row["kind"], EVALS, EvalKind)
