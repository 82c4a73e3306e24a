"""On which of several topics a model would write an essay, exactly."""

import string
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import scipy

from subjax.runtime import user_files
from subjax.tasks import texts
from subjax.tasks.api import (
    MASS,
    Compare,
    EvalKind,
    Field,
    Given,
    Metric,
    Reply,
    Request,
    Row,
)
from subjax.tasks.traits.choice import half_of
from subjax.tasks.traits.word import load_questions

_SEED = 0  # of the orders: all models are asked the same
_CHOICES = "{choices}"


class Essays(EvalKind):
    """The candidates as lettered topics, in random orders (the paper's figure 12).

    The paper scores the probability of the target's letter, `probability`, and its orders are
    drawn anew for each model. Here all models see the same orders, and `chosen` is the target's
    probability among the letters alone.
    """

    of_trait = of_choice = True
    fields: ClassVar[Mapping[str, Field]] = {
        "num_orders": Field(25, "orders of the topics, for each prompt", least=1),
    }
    metrics = (
        Metric("chosen", "share of {target} among the topics", relative=True),
        Metric("probability", "probability of the letter of {target}"),
        Metric("chosen/*", "share of {candidate} among the topics", relative=True),
        Metric("probability/*", "probability of the letter of {candidate}"),
        Metric("letter_mass", "probability on the letters", axis=(0.0, 1.0), role=MASS),
    )

    def questions(self, row: Row, own: Sequence[str], stimuli: str) -> Sequence[str]:
        """One half of the prompts, which are the same for every trait, with room for the topics."""
        prompts = load_questions(stimuli, "essay_topic") if stimuli else texts.ESSAYS
        asks = _load_format(stimuli) if stimuli else texts.ESSAY_CHOICES
        return [asks.replace("{stem}", prompt) for prompt in half_of(prompts, row["questions"])]

    def requests(self, row: Row, given: Given) -> list[Request]:
        """Every prompt with the topics in every order."""
        orders, letters = _orders(row, given), _letters(given)
        prompts = [
            question.replace(_CHOICES, "\n".join(map(_line, letters, given_order)))
            for question in given.questions
            for given_order in ([given.candidates[at] for at in order] for order in orders)
        ]
        return [Compare(prompts, letters)]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Means over prompts and orders, and what each prompt gave."""
        [compared] = replies
        places = np.argsort(_orders(row, given), axis=1)  # [orders, candidates], of each its letter
        nats = compared.nats.reshape(len(given.questions), *places.shape)
        nats = np.take_along_axis(nats, np.broadcast_to(places, nats.shape), axis=2)
        probability, chosen = np.exp(nats), scipy.special.softmax(nats, axis=2)
        target = list(given.candidates).index(given.target)
        values = {"chosen": float(chosen[..., target].mean())}
        values["probability"] = float(probability[..., target].mean())
        values["letter_mass"] = float(probability.sum(axis=2).mean())
        for at, name in enumerate(given.candidates):
            values[f"chosen/{name}"] = float(chosen[..., at].mean())
            values[f"probability/{name}"] = float(probability[..., at].mean())
        said = [
            {"question": question, "chosen": dict(zip(given.candidates, shares, strict=True))}
            for question, shares in zip(given.questions, chosen.mean(1).tolist(), strict=True)
        ]
        return values, said


def _letters(given: Given) -> list[str]:
    if len(given.candidates) > len(string.ascii_uppercase):
        raise ValueError(
            f"an eval of kind 'essays' has a letter for each candidate, and there are "
            f"{len(given.candidates)}: give the trait at most 26"
        )
    return list(string.ascii_uppercase[: len(given.candidates)])


def _line(letter: str, candidate: str) -> str:
    return f"{letter}. {candidate}"


def _orders(row: Row, given: Given) -> np.ndarray:
    """Which candidate stands at each letter, [orders, candidates]."""
    rng = np.random.default_rng(_SEED)
    size = len(given.candidates)
    return np.stack([rng.permutation(size) for _ in range(row["num_orders"])])


def _load_format(path: str) -> str:
    """The key `essay_topic_format` of a stimuli file, its lines of choices as one placeholder.

    It has {stem}, and a line for each choice: the first "A. {c1}", the last may be an ellipsis.
    """
    text = user_files.stimuli(path, "evaluations").get("essay_topic_format")
    lines = text.splitlines() if isinstance(text, str) else []
    ours = [at for at, line in enumerate(lines) if "{c" in line or line.strip() in ("…", "...")]
    if not ours or "{stem}" not in "".join(lines) or ours != list(range(ours[0], ours[-1] + 1)):
        raise ValueError(
            f"stimuli file {path}: evaluations.essay_topic_format must be a text with {{stem}} and "
            "one line after another for the choices, the first of them A. {c1}"
        )
    return "\n".join([*lines[: ours[0]], _CHOICES, *lines[ours[-1] + 1 :]])
