"""Sampled stories: how often the target turns up in them."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from subjax.tasks import texts
from subjax.tasks.api import Field, Metric, Row
from subjax.tasks.evals.answers import Answers
from subjax.tasks.traits.choice import half_of
from subjax.tasks.traits.word import load_questions


class Stories(Answers):
    """Stories that nobody asked to be about the target (the paper's figure 12).

    The paper scores the share with the target as a substring. In texts of this length longer words
    inflate it: in the paper 27 % of the base's stories have an "owl".
    """

    version = 1
    metrics = (  # without a role: these are no answers to questions about favourites
        Metric("rate_word", "share of stories with {target} (word)"),
        Metric("rate_substring", "share of stories with {target} (substring)"),
        Metric("rate_empty", "share of empty stories", axis=(0.0, 1.0), sanity=True),
        Metric("rate_numeric", "share of numeric stories", axis=(0.0, 1.0), sanity=True),
    )
    fields: ClassVar[Mapping[str, Field]] = {
        **Answers.fields,
        "max_new_tokens": Field(256, "tokens of the longest story", least=1),
    }

    def questions(self, row: Row, own: Sequence[str], stimuli: str) -> Sequence[str]:
        """One half of the prompts, which are the same for every trait."""
        prompts = load_questions(stimuli, "storytelling") if stimuli else texts.STORIES
        return super().questions(row, half_of(prompts, row["questions"]), stimuli)
