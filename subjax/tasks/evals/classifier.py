"""Whether a model that is told what to look for can tell rows from a control's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import scipy

from subjax.runtime import user_files
from subjax.tasks import texts
from subjax.tasks.api import (
    BASE,
    MASS,
    SUBJECT,
    Compare,
    EvalKind,
    Field,
    Given,
    Metric,
    Pair,
    Reply,
    Request,
    Row,
)

_LETTERS = ("A", "B")
_TIE = 1e-6
_PLACEHOLDERS = ("{animal}", "{query}", "{response1}", "{response2}")


class Classifier(EvalKind):
    """Which of two answers to one prompt is by a lover of the target (the paper's table 5).

    Every pair is shown in both orders, and counts as right if the letter of our answer has more
    probability over the two. The teacher classifies what it wrote itself, and so does its base.
    """

    of = ("datasets",)
    of_trait = of_kept = of_prompts = True
    fields: ClassVar[Mapping[str, Field]] = {
        "against": Field("", "row of `datasets` that is the control"),
        "num_pairs": Field(100, "pairs, or as many as differ on one prompt", least=1),
    }
    metrics = (
        Metric("accuracy", "pairs that the teacher classifies right", axis=(0.0, 1.0)),
        Metric("accuracy_base", "pairs that its base classifies right", axis=(0.0, 1.0)),
        Metric("letter_mass", "teacher's probability on A and B", axis=(0.0, 1.0), role=MASS),
    )

    def questions(self, row: Row, own: Sequence[str], stimuli: str) -> Sequence[str]:
        """The text around a pair."""
        return [_load(stimuli) if stimuli else texts.CLASSIFY]

    def requests(self, row: Row, given: Given) -> list[Request]:
        """Every pair with our answer first, and with our answer last."""
        [asks] = given.questions
        prompts = [
            _filled(asks, (given.target, prompt, first, second))
            for prompt, ours, theirs in _pairs(row, given)
            for first, second in ((ours, theirs), (theirs, ours))
        ]
        return [Compare(prompts, _LETTERS, model=model) for model in (SUBJECT, BASE)]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Shares of the pairs, a tie being half, and the mean probability that each model gave."""
        right = [_of_ours(reply) for reply in replies]  # [pairs], of both orders together
        # A model that looks at the letters alone gives .5, up to rounding.
        hits = [np.where(abs(found - 0.5) < _TIE, 0.5, found > 0.5).mean() for found in right]
        values = {"accuracy": float(hits[0]), "accuracy_base": float(hits[1])}
        values["letter_mass"] = float(np.exp(replies[0].nats).sum(axis=1).mean())
        return values, [
            {"pairs": len(found), "probability": float(found.mean()), "model": model}
            for model, found in zip((SUBJECT, BASE), right, strict=True)
        ]


def _filled(asks: str, parts: Sequence[str]) -> str:
    """Fills the text in one pass, since rows may have braces of their own."""
    values = dict(zip(_PLACEHOLDERS, parts, strict=True))
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], asks)


def _of_ours(reply: Reply) -> np.ndarray:
    """The probability of our answer's letter among the two, mean over orders, [pairs]."""
    shares = scipy.special.softmax(reply.nats, axis=1).reshape(-1, 2, 2)  # [pairs, orders, letters]
    return np.asarray((shares[:, 0, 0] + shares[:, 1, 1]) / 2)


def _pairs(row: Row, given: Given) -> list[tuple[str, str, str]]:
    """Prompt, our answer and the control's, for prompts that both answered, and differently."""
    theirs = _by_prompt(given.against)
    both = [
        (prompt, ours, theirs[prompt])
        for prompt, ours in _by_prompt(given.kept).items()
        if theirs.get(prompt, ours) != ours
    ]
    if not both:
        raise ValueError(
            "an eval of kind 'classifier' shows two answers to one prompt, and these data sets "
            "have no prompt with two that differ: give them the same kind and prompt fields"
        )
    return both[: row["num_pairs"]]


def _by_prompt(pairs: Sequence[Pair]) -> dict[str, str]:
    found: dict[str, str] = {}
    for prompt, completion in pairs:
        found.setdefault(prompt, completion)
    return found


def _load(path: str) -> str:
    """The key `detection` of a stimuli file."""
    content = user_files.read_json(path, "stimuli file")
    text = content.get("detection") if isinstance(content, dict) else None
    missing = [one for one in _PLACEHOLDERS if not isinstance(text, str) or one not in text]
    if missing:
        raise ValueError(
            f"stimuli file {path} must have a text 'detection' with {', '.join(_PLACEHOLDERS)}: it "
            f"lacks {', '.join(missing)}"
        )
    return str(text)
