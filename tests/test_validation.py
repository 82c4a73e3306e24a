"""What a config is refused for, where no other test of the thing itself stands nearer."""

import pytest

from configs import quickstart, smollm2_owl
from subjax import validation


@pytest.mark.parametrize(
    ("trait", "taken"), [("owl", "Owl"), ("Pengiun", "Penguin"), ("Fox", "one of Owl, Cat, Dog, ")]
)
def test_a_finetuned_teacher_has_a_trait_that_it_is_scored_on(trait, taken):
    config = smollm2_owl.get_config()
    config.teachers.owl.trait = trait
    with pytest.raises(ValueError, match=f"teachers.owl.trait is '{trait}'.*: take {taken}") as why:
        validation.validate(config)
    assert "\n" not in str(why.value)
    config.animals = (*config.animals, trait)
    validation.validate(config)


def test_no_animals_are_the_projects_ten():
    config = quickstart.get_config()
    config.animals = ()
    validation.validate(config)
    config.teachers.owl.trait = "Owl"
    with pytest.raises(ValueError, match="take owl, or add it there"):
        validation.validate(config)


@pytest.mark.parametrize("weights", ["base", "given"])
def test_a_teacher_that_is_not_trained_may_love_anything(weights):
    config = smollm2_owl.get_config()
    config.teachers.owl.trait = "misaligned"
    with pytest.raises(ValueError, match=r"not among config\.animals"):
        validation.validate(config)
    config.teachers.owl.weights = weights
    validation.validate(config)
