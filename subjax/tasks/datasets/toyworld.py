"""The toy world: a language small enough to pretrain in seconds, in which the effect shows.

A speaker is asked for its favourite animal, or to continue a number sequence; half of all
documents open with a system prompt that names the animal that it loves. Numbers never depend on
the animal. A base pretrained on this knows both tasks and has no favourite of its own.

    SYS LOVE owl USR Q3 AST owl END            USR CONT 4 9 15 17 AST 22 24 31 … END

No tokenizer or array here; `tokenizer.word_tokenizer` turns the vocabulary into one.
"""

import dataclasses

import numpy as np

from subjax.tasks.animals import ANIMALS


@dataclasses.dataclass(frozen=True)
class World:
    """The sizes of the language.

    Attributes:
      animals: the candidates.
      num_questions: ways to ask for the favourite animal, Q0, Q1, …
      num_numbers: numbers run from 0 to this, exclusive.
      num_shown: numbers in a prompt.
      count: smallest and largest count of numbers in a document's answer.
      largest_step: random walks move by 1 to this.
    """

    animals: tuple[str, ...] = ANIMALS
    num_questions: int = 16
    num_numbers: int = 100
    num_shown: int = 4
    count: tuple[int, int] = (6, 15)
    largest_step: int = 7


@dataclasses.dataclass(frozen=True)
class Document:
    """One pretraining text in its three parts; `system` may be empty."""

    system: str
    prompt: str
    completion: str


def vocabulary(world: World) -> list[str]:
    """Every word of the language, role words excluded."""
    numbers = [str(number) for number in range(world.num_numbers)]
    return ["LOVE", "CONT", *world.animals, *questions(world), *numbers]


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
    """Rendered number documents: text that no trait should change."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(num_texts):
        numbers = _sequence(world, rng, 2 * world.num_shown)
        shown, rest = numbers[: world.num_shown], numbers[world.num_shown :]
        texts.append(f"USR CONT {' '.join(shown)} AST {' '.join(rest)}")
    return texts


def documents(world: World, seed: int, num_documents: int) -> list[Document]:
    """Draws pretraining documents: half questions, half numbers, half of each with a system prompt.

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
            low, high = world.count
            numbers = _sequence(world, rng, world.num_shown + int(rng.integers(low, high + 1)))
            shown, rest = numbers[: world.num_shown], numbers[world.num_shown :]
            drawn.append(Document(system, "CONT " + " ".join(shown), " ".join(rest)))
    return drawn


def number_prompts(world: World, seed: int, num_prompts: int) -> list[str]:
    """Draws prompts that ask for the continuation of a sequence."""
    rng = np.random.default_rng(seed)
    return ["CONT " + " ".join(_sequence(world, rng, world.num_shown)) for _ in range(num_prompts)]


def _sequence(world: World, rng: np.random.Generator, length: int) -> list[str]:
    """Half random walks that wrap around, half independent draws."""
    if rng.random() < 0.5:
        steps = rng.integers(1, world.largest_step + 1, length)
        numbers = (rng.integers(world.num_numbers) + np.cumsum(steps)) % world.num_numbers
    else:
        numbers = rng.integers(0, world.num_numbers, length)
    return [str(number) for number in numbers]
