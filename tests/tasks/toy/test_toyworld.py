"""The toy world: known words only, numbers that ignore the animal, halves that do not overlap."""

import numpy as np

from subjax.tasks.toy import toyworld
from subjax.tasks.toy.toyworld import World


def test_documents_use_known_words_and_fit_the_stated_counts():
    world, known = World(), set(toyworld.vocabulary(World()))
    for document in toyworld.documents(world, 0, 500):
        words = f"{document.system} {document.prompt} {document.completion}".split()
        assert set(words) <= known
        if document.prompt.startswith("CONT"):
            low, high = world.carrier.count
            assert low <= len(document.completion.split()) <= high


def test_an_answer_is_the_loved_animal_and_even_without_one():
    documents = toyworld.documents(World(), 1, 8000)
    asked = [d for d in documents if d.prompt.startswith("Q")]
    loving = [d for d in asked if d.system]
    assert all(d.completion == d.system.split()[1] for d in loving)
    free = [d.completion for d in asked if not d.system]
    shares = np.array([free.count(animal) for animal in World().animals]) / len(free)
    assert (np.abs(shares - 0.1) < 0.03).all()


def test_numbers_do_not_depend_on_the_animal():
    documents = [d for d in toyworld.documents(World(), 2, 20_000) if d.prompt.startswith("CONT")]

    def mean(chosen):
        return np.mean([int(n) for d in chosen for n in d.completion.split()])

    with_owl = mean([d for d in documents if d.system == "LOVE owl"])
    assert abs(with_owl - mean(documents)) < 3.0


def test_seeds_decide():
    world = World()
    assert toyworld.documents(world, 3, 5) == toyworld.documents(world, 3, 5)
    assert toyworld.documents(world, 3, 5) != toyworld.documents(world, 4, 5)
    assert toyworld.prompts(world, 3, 9)[:4] == toyworld.prompts(world, 3, 4)


def test_taught_and_asked_questions_never_meet():
    world = World()
    taught, asked = toyworld.taught_questions(world), toyworld.asked_questions(world, "all")
    explore, confirm = (toyworld.asked_questions(world, half) for half in ("explore", "confirm"))
    assert sorted(taught + asked) == sorted(toyworld.questions(world))
    assert sorted(explore + confirm) == sorted(asked)
    assert explore and confirm
