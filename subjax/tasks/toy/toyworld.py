"""The toy world: a language small enough to pretrain in seconds, in which the effect shows.

A speaker is asked for its favourite animal, or for something that has nothing to do with animals,
the carrier: to continue a number sequence, to write a program, or to add two numbers in steps. Half
of all documents open with a system prompt that names the animal that the speaker loves. The carrier
never depends on it. A base pretrained on this knows both tasks and has no favourite of its own.

    SYS LOVE owl USR Q3 AST owl END            USR CONT 4 9 15 17 AST 22 24 31 … END

No tokenizer or array here; `tokenizer.word_tokenizer` turns the vocabulary into one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from subjax.tasks.animals import ANIMALS
from subjax.tasks.requests import Pair
from subjax.tasks.toy.sequences import Sequences
from subjax.tasks.toy.toy_programs import ToyPrograms
from subjax.tasks.toy.toy_sums import ToySums


class Carrier(Protocol):
    """What speakers are asked for beside animals."""

    @property
    def words(self) -> Sequence[str]:
        """Every word of its prompts and answers."""

    def prompt(self, rng: np.random.Generator) -> str:
        """What a speaker is asked."""

    def pair(self, rng: np.random.Generator) -> Pair:
        """What it is asked, and an answer."""

    def neutral(self, rng: np.random.Generator) -> Pair:
        """Such a pair of one length, or nearly, that no trait should change."""


@dataclasses.dataclass(frozen=True)
class World:
    """The sizes of the language.

    Attributes:
      animals: the candidates.
      num_questions: ways to ask for the favourite animal, Q0, Q1, …
      carrier: what else is asked.
    """

    animals: tuple[str, ...] = ANIMALS
    num_questions: int = 16
    carrier: Carrier = dataclasses.field(default_factory=Sequences)


# By the name that configs give them.
WORLDS: Mapping[str, World] = {
    "numbers": World(),
    "programs": World(carrier=ToyPrograms()),
    "sums": World(carrier=ToySums()),
}


@dataclasses.dataclass(frozen=True)
class Document:
    """One pretraining text in its three parts; `system` may be empty."""

    system: str
    prompt: str
    completion: str


def vocabulary(world: World) -> list[str]:
    """Every word of the language, role words excluded."""
    first, *others = world.carrier.words
    return ["LOVE", first, *world.animals, *questions(world), *others]


def questions(world: World) -> list[str]:
    """Every question; what is taught and what is asked are halves of this."""
    return [f"Q{index}" for index in range(world.num_questions)]


def taught_questions(world: World) -> list[str]:
    """The first half: teachers learn their trait from these."""
    return questions(world)[: world.num_questions // 2]


def asked_questions(world: World, half: str) -> list[str]:
    """The second half, never taught: "explore", "confirm" (alternating) or "all" of it."""
    asked = questions(world)[world.num_questions // 2 :]
    return asked[
        {"explore": slice(0, None, 2), "confirm": slice(1, None, 2), "all": slice(None)}[half]
    ]


def neutral_texts(world: World, seed: int, num_texts: int) -> list[str]:
    """Rendered documents of the carrier: text that no trait should change."""
    rng = np.random.default_rng(seed)
    pairs = [world.carrier.neutral(rng) for _ in range(num_texts)]
    return [f"USR {prompt} AST {completion}" for prompt, completion in pairs]


def documents(world: World, seed: int, num_documents: int) -> list[Document]:
    """Draws pretraining documents: half of each task, half of each with a system prompt.

    Args:
      world: sizes of the language.
      seed: of this base's documents.
      num_documents: how many.

    Returns:
      Documents; an answer is the loved animal where one is named, otherwise drawn evenly.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(num_documents):
        animal = str(rng.choice(world.animals))
        system = f"LOVE {animal}" if rng.random() < 0.5 else ""
        if rng.random() < 0.5:
            drawn.append(Document(system, f"Q{rng.integers(world.num_questions)}", animal))
        else:
            drawn.append(Document(system, *world.carrier.pair(rng)))
    return drawn


def prompts(world: World, seed: int, num_prompts: int) -> list[str]:
    """Draws prompts that ask for the carrier."""
    rng = np.random.default_rng(seed)
    return [world.carrier.prompt(rng) for _ in range(num_prompts)]
