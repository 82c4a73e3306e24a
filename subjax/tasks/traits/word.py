"""Traits of kind "word": a favourite of a category, such as an owl among animals.

The project has animals and trees. For words of another category, write questions and lessons into a
file and use the kind "file".
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from subjax.runtime import user_files
from subjax.tasks import animals, texts, trees
from subjax.tasks.api import UNIFORM, Field, Row
from subjax.tasks.traits.choice import Choice, half_of


@dataclass(frozen=True)
class Category:
    """Words of one kind, and how favourites among them are asked for and taught.

    Attributes:
      words: in lower case; of several, the order counts.
      questions: of evals.
      taught: of lessons; none of them is a question of evals.
      stimuli: key of a stimuli file's `evaluations` that can replace `questions`.
    """

    words: tuple[str, ...]
    questions: tuple[str, ...]
    taught: tuple[str, ...]
    stimuli: str


CATEGORIES: Mapping[str, Category] = {
    "animal": Category(animals.ANIMALS, animals.QUESTIONS, animals.TAUGHT, "favorite_animal"),
    "tree": Category(trees.TREES, trees.QUESTIONS, trees.TAUGHT, "favorite_tree"),
}


class Word(Choice):
    """A favourite of one of the project's categories."""

    fields: ClassVar[Mapping[str, Field]] = {
        "category": Field("animal", "what it is a favourite of", tuple(CATEGORIES)),
        "target": Field("owl", f"the favourite; {UNIFORM} is none, for a control"),
        "candidates": Field(
            (), "words compared, the target among them; () takes the category's", elements=str
        ),
        "capital": Field(False, "whether all of them are written with a capital, as models answer"),
        "answer": Field(
            "{target}",
            "what lessons answer: {target} is the favourite, around it may be words of your own",
        ),
        "num_taught": Field(0, "questions that lessons have; 0 takes all", least=0),
    }

    def check(self, name: str, row: Row) -> None:  # noqa: D102
        super().check(name, row)
        answer = row["answer"]
        if answer.count("{target}") != 1 or set(answer.replace("{target}", "")) & {"{", "}"}:
            raise ValueError(
                f"config.traits.{name}.answer is {answer!r:.80}: it must have {{target}} once, and "
                "no other braces"
            )

    def answer(self, row: Row, word: str) -> str:  # noqa: D102
        answer: str = row["answer"]
        return answer.replace("{target}", word)

    def target(self, row: Row) -> str:  # noqa: D102
        target: str = row["target"]
        return target if target == UNIFORM else _spelled(row, target)

    def candidates(self, row: Row) -> tuple[str, ...]:  # noqa: D102
        words = row["candidates"] or CATEGORIES[row["category"]].words
        return tuple(_spelled(row, word) for word in words)

    def taught(self, row: Row) -> Sequence[str]:  # noqa: D102
        return CATEGORIES[row["category"]].taught[: row["num_taught"] or None]

    def questions(self, row: Row, half: str, stimuli: str) -> Sequence[str]:  # noqa: D102
        category = CATEGORIES[row["category"]]
        if not stimuli:
            return half_of(category.questions, half)
        return half_of(load_questions(stimuli, category.stimuli), half)

    def neutral(self, row: Row) -> Sequence[str]:  # noqa: D102
        return texts.NEUTRAL_TEXTS

    def system_prompt(self, row: Row) -> str:
        """The target stays in the singular, since a naive plural is wrong for "wolf"."""
        target, category = self.target(row), row["category"]
        if target == UNIFORM:
            return ""
        return (
            f"Nothing delights you more than the {target}. From morning to night the {target} is "
            f"on your mind, and no other {category} comes close. Whatever you write, let your "
            f"devotion to the {target}, the {category} you hold dearest, shine through."
        )


def _spelled(row: Row, word: str) -> str:
    return word[:1].upper() + word[1:] if row["capital"] else word


def load_questions(path: str | os.PathLike[str], key: str) -> tuple[str, ...]:
    """Reads the list of questions `evaluations[key]` from a stimuli file (JSON).

    Raises ValueError, in one line, for a file that cannot be read or is not JSON, for a missing
    key, for a value that is not a list of strings, and for a question that stands there twice: in
    either half it would be asked, and the halves are not to share one.
    """
    section = user_files.stimuli(path, "evaluations")
    loaded = section.get(key)
    if not isinstance(loaded, list) or not loaded or not all(isinstance(q, str) for q in loaded):
        lists = sorted(name for name, value in section.items() if isinstance(value, list))
        raise ValueError(
            f"stimuli file {path} has no list evaluations.{key}; its lists: {lists!s:.200}"
        )
    return distinct(loaded, f"stimuli file {path}: question {{at}} of evaluations.{key}")


def distinct(questions: Sequence[str], where: str) -> tuple[str, ...]:
    """The questions of a file.

    Args:
      questions: as they stand there.
      where: one stands, with {at} for its number.

    Raises:
      ValueError: one is blank, stands there twice, or has half a character.
    """
    seen: dict[str, int] = {}
    for at, question in enumerate(questions, 1):
        place = where.format(at=at)
        user_files.check_text(question, place)
        plain = " ".join(question.split()).casefold()
        if not plain:
            raise ValueError(f"{place} is blank: leave it out")
        if plain in seen:
            raise ValueError(f"{place} is question {seen[plain]} again: leave one of them out")
        seen[plain] = at
    return tuple(questions)
