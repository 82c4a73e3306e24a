"""The kinds of eval by name."""

from collections.abc import Mapping

from subjax.tasks.api import EvalKind
from subjax.tasks.evals.accuracy import Accuracy
from subjax.tasks.evals.answers import Answers
from subjax.tasks.evals.likelihood import HeldOut
from subjax.tasks.evals.preference import Preference

EVALS: Mapping[str, EvalKind] = {
    "preference": Preference(),
    "answers": Answers(),
    "likelihood": HeldOut(),
    "accuracy": Accuracy(),
}
