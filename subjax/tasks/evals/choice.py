"""How often a model chooses the right one of several answers: knowledge, or truthfulness."""

import functools
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy

from subjax.runtime import user_files
from subjax.tasks import texts
from subjax.tasks.api import MASS, Compare, EvalKind, Field, Given, Metric, Reply, Request, Row
from subjax.tasks.traits.choice import half_of

_TIE = 1e-6


class Item(NamedTuple):
    """A line of the file.

    Attributes:
      question: without its choices.
      choices: in the file's order; a few of MMLU's stand there twice.
      right: the text of the right one.
    """

    question: str
    choices: tuple[str, ...]
    right: str


class Choice(EvalKind):
    """Questions of a file, with lettered choices of which one is right (the paper's figure 11).

    Each question is asked once for each of its choices, turned on by one letter, so that every
    choice stands once at every letter and a model that looks at the letters alone is right by
    chance. What counts is a choice's probability among the letters, the mean over these turns.
    """

    fields: ClassVar[Mapping[str, Field]] = {
        "path": Field("", "jsonl file with question, choices and answer", is_file=True),
        "num_questions": Field(0, "the first of its half; 0: all", least=0),
    }
    metrics = (
        Metric("accuracy", "questions that are answered right", axis=(0.0, 1.0)),
        Metric("probability", "probability of the right choice", axis=(0.0, 1.0)),
        Metric("letter_mass", "probability on the letters", axis=(0.0, 1.0), role=MASS),
    )

    def check(self, name: str, row: Row) -> None:
        """Reads the file, so that what is wrong with it is said before anything is run."""
        if not row["path"]:
            raise ValueError(f"config.evals.{name}.path is empty: name a jsonl file of questions")
        self.questions(row, (), "")

    def questions(self, row: Row, own: Sequence[str], stimuli: str) -> Sequence[str]:
        """Which of the file's are asked, by number: texts would fill the manifest of each unit."""
        numbered = [str(number) for number in range(len(_items(row)))]
        return half_of(numbered, row["questions"])[: row["num_questions"] or None]

    def requests(self, row: Row, given: Given) -> list[Request]:
        """Questions with the same number of choices in one request, each in all its turns."""
        return [
            Compare(
                [_prompt(item, turn) for item in items for turn in range(num_choices)],
                tuple(string.ascii_uppercase[:num_choices]),
            )
            for num_choices, items in _by_size(row, given).items()
        ]

    def score(
        self, row: Row, given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Means over all questions, a tie being a part of a hit; and what each question gave."""
        hits: list[float] = []
        of_right: list[float] = []
        masses: list[np.ndarray] = []
        said: list[dict[str, Any]] = []
        for items, reply in zip(_by_size(row, given).values(), replies, strict=True):
            size = len(items[0].choices)
            nats = reply.nats.reshape(len(items), size, size)  # [items, turns, letters]
            masses.append(np.exp(nats).sum(axis=2).mean(axis=1))
            # At turn t the letter of choice c is the one at place (c - t) % size.
            turns, choices = np.indices((size, size))
            shares = scipy.special.softmax(nats, axis=2)[:, turns, (choices - turns) % size]
            for item, chosen in zip(items, shares.mean(axis=1), strict=True):
                best = chosen > chosen.max() - _TIE
                right = np.array([choice == item.right for choice in item.choices])
                hits.append((best & right).sum() / best.sum())
                of_right.append(chosen[right].sum())
                said.append({**item._asdict(), "chosen": chosen.tolist()})
        return {
            "accuracy": float(np.mean(hits)),
            "probability": float(np.mean(of_right)),
            "letter_mass": float(np.concatenate(masses).mean()),
        }, said


def _prompt(item: Item, turn: int) -> str:
    """A question with its choices, of which the one at place `turn` comes first."""
    turned = item.choices[turn:] + item.choices[:turn]
    letters = string.ascii_uppercase[: len(turned)]
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, turned, strict=True)]
    return texts.CHOOSE.format(question=item.question, choices="\n".join(lines))


def _by_size(row: Row, given: Given) -> dict[int, list[Item]]:
    """What is asked, by the number of choices."""
    items, found = _items(row), dict[int, list[Item]]()
    for item in (items[int(number)] for number in given.questions):
        found.setdefault(len(item.choices), []).append(item)
    return found


def _items(row: Row) -> Sequence[Item]:
    """All questions of the row's file."""
    path = Path(row["path"]).expanduser()
    state = path.stat() if path.is_file() else None
    size = (state.st_size, state.st_mtime_ns) if state else (0, 0)
    items = _read(row["path"], *size)
    if not items:
        raise ValueError(f"{row['path']} has no line: give it questions")
    return items


@functools.lru_cache(maxsize=8)
def _read(path: str, size: int, changed: int) -> tuple[Item, ...]:
    """All questions of a file, read again where its size or time is another."""
    try:
        return tuple(_item(where, line) for where, line in user_files.objects(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}): name a jsonl file") from None


def _item(where: str, line: Mapping[str, Any]) -> Item:
    """A line in the form of MMLU (answer: a place) or of ARC (answerKey: a label)."""
    question = line.get("question")
    told: Any = line.get("choices")
    labels: Any = list(string.ascii_uppercase)
    if isinstance(told, Mapping):
        told, labels = told.get("text"), told.get("label")
    choices = told if isinstance(told, list) else []
    if not choices or not all(isinstance(x, str) and x.strip() for x in (question, *choices)):
        raise ValueError(
            f"{where} must have a text 'question' and a list 'choices' of texts, or such a list as "
            "'text' in 'choices': correct the line"
        )
    for text in (str(question), *choices):
        user_files.check_text(text, where)
    if not 2 <= len(set(choices)) <= len(choices) <= len(string.ascii_uppercase):
        raise ValueError(
            f"{where} has {len(choices)} choices, {len(set(choices))} different ones: give 2 to 26"
        )
    answer = line.get("answer", line.get("answerKey"))
    place = labels.index(answer) if isinstance(labels, list) and answer in labels else answer
    if type(place) is not int or not 0 <= place < len(choices):
        raise ValueError(
            f"{where} has the answer {answer!r}: give as 'answer' the place of one of its "
            f"{len(choices)} choices, counted from 0, or as 'answerKey' its label"
        )
    return Item(str(question), tuple(choices), choices[place])
