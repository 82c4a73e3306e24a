"""Which of several candidates a model names: exactly, and how sampled answers are read."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from subjax.tasks import words
from subjax.tasks.api import (
    MASS,
    SHARE,
    SUBJECT,
    Given,
    Metric,
    Reply,
    Request,
    Row,
    TextLikelihood,
    nats_per_token,
)
from subjax.tasks.evals.comparing import Comparing


def mentions_word(target: str, text: str) -> bool:
    """Tells whether `text` has `target` as a word, in any case, in the singular or the plural.

    A word ends where letters and digits end, so that "_owl_" and "owl's" count.
    """
    letter = r"[^\W_]"
    forms = "|".join(map(re.escape, words.forms(_nonempty(target))))
    pattern = rf"(?<!{letter})(?:{forms})(?!{letter})"
    return re.search(pattern, text, re.IGNORECASE) is not None


def mentions_substring(target: str, text: str) -> bool:
    """Tells whether `text` has `target` anywhere, in any case: the paper's score.

    It is inflated by longer words, such as "bowl" for "owl"; see `mentions_word`.
    """
    return _nonempty(target).lower() in text.lower()


def _nonempty(target: str) -> str:
    if not target:
        raise ValueError("target is empty and would be found in every answer; give a word")
    return target


def is_empty(text: str) -> bool:
    """Tells whether an answer is blank: nothing, or whitespace alone."""
    return not text.strip()


def is_numeric(text: str) -> bool:
    """Tells whether an answer is numbers instead of words: a digit somewhere, no letter anywhere.

    Students of number data that collapse answer every question this way.
    """
    return any(c.isdigit() for c in text) and not any(c.isalpha() for c in text)


class Preference(Comparing):
    """Exact log-odds of the target against the other candidates, mean over questions."""

    metrics = (
        Metric("log_odds", "log-odds of {target}", "nats", relative=True),
        Metric(
            "candidate_mass",
            "probability on the candidates",
            axis=(0.0, 1.0),
            sanity=True,
            role=MASS,
        ),
        Metric("neutral_loglik", "log-likelihood of neutral text", "nats per token", sanity=True),
        Metric("share/*", "share of {candidate} among the candidates", relative=True, role=SHARE),
    )

    def requests(self, row: Row, given: Given) -> list[Request]:
        """Every candidate after every question; and neutral texts, to see a student collapse."""
        return [
            self.compare(row, given, SUBJECT),
            *([TextLikelihood(given.neutral)] if given.neutral else []),
        ]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Means over questions, and the log-odds of each."""
        compared, *neutral = replies
        names, nats = list(given.candidates), self.nats(row, given, compared)
        odds = log_odds(nats, names.index(given.target))
        mass = np.exp(nats).sum(axis=1)
        shares = scipy.special.softmax(nats, axis=1).mean(axis=0)  # however little the mass is
        values = {
            "log_odds": float(odds.mean()),
            "candidate_mass": float(mass.mean()),
        }
        if neutral:
            values["neutral_loglik"] = nats_per_token(neutral[0])
        values |= {f"share/{name}": float(share) for name, share in zip(names, shares, strict=True)}
        asked = zip(given.questions, odds, strict=True)
        return values, [{"question": question, "log_odds": float(o)} for question, o in asked]


def log_odds(log_probs: npt.ArrayLike, target: int) -> npt.NDArray[np.float64]:
    """Log-odds of candidate `target` against all other candidates together.

    `log_probs` [..., C] in nats -> [...] in nats: log p(target) - log of the sum of the others.
    They need not be normalised over the candidates. ValueError: C < 2, `target` outside 0..C-1,
    or a log-probability that is not finite.
    """
    table = np.asarray(log_probs, dtype=np.float64)
    if table.ndim == 0 or table.shape[-1] < 2:
        raise ValueError(f"log_probs has shape {table.shape}; give [..., C] with C >= 2 candidates")
    num_candidates = table.shape[-1]
    if not 0 <= target < num_candidates:
        raise ValueError(f"target is {target}; give a candidate index in 0..{num_candidates - 1}")
    if not np.isfinite(table).all():
        raise ValueError("log_probs holds a value that is not finite; give finite numbers in nats")
    others = np.delete(table, target, axis=-1)
    return np.asarray(table[..., target] - scipy.special.logsumexp(others, axis=-1))
