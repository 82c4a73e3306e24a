"""What a config is refused for, where no other test of the thing itself stands nearer."""

import functools

import pytest

from configs import quickstart, smollm2_owl
from subjax import schema, validation


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
    config.teachers.owl.update(weights=weights, path="DIR" if weights == "given" else "")
    with pytest.raises(ValueError, match=r"gates.teacher_log_odds asks .*: add it there, or set"):
        validation.validate(config)
    config.gates.teacher_log_odds = schema.OFF
    validation.validate(config)


REFUSED = {
    "name": ("arms", "owl/hard", "letters, digits, '_'"),
    "negative": ("datasets.owl.num_holdout", -1, "num_holdout is -1; it must not be negative"),
    "temperature": ("datasets.owl.temperature", -0.1, "temperature is -0.1; it must not be"),
    "metric": ("contrasts.transmission.metric", "log_odd", "measures log_odds, candidate_mass, .*"),
    "share": ("contrasts.transmission.metric", "share/bat", "measures .*share/owl"),
    "plus": ("contrasts.transmission.plus", (), "plus is empty: name at least one arm"),
    "primary": ("contrasts.same_base.primary", True, "2 primary rows .*: mark one"),
    "no trait": ("teachers.owl.trait", "", "teachers.owl.trait is '', .*: take "),
    "range": ("datasets.owl.min_value", 1000, "min_value is 1000, above its max_value"),
    "too few": ("datasets.owl.num_prompts", 200, "num_train and num_holdout take .* rows: raise"),
    "alpha": ("teachers.owl.lora_alpha", 0.0, "lora_alpha is 0.0; it must be above 0"),
    "held out": ("datasets.owl.num_holdout", 0, "num_holdout is 0: raise it"),
    "cycle": ("lineage_cycle", 1, "'next_lineage', but all lineages have one base: .* name"),
    "lineage": ("lineage_from", "teacher", "'next_lineage', but all lineages have one base"),
    "no path": ("bases.toy.source", "hf", "bases.toy.path is empty: give a directory"),
    "unread path": ("bases.toy.path", "DIR", "path is 'DIR', but its source 'toy' reads none"),
    "unread revision": ("bases.toy.revision", "main", "'main', but its source 'toy' reads none"),
    "unused teacher": ("teachers.owl.path", "DIR", "path is 'DIR' and its weights 'finetuned'"),
    "no teacher": ("teachers.owl.weights", "given", "path is '' and its weights 'given'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_fail_or_mislead_later_is_refused_before_anything_runs(case):
    field, value, said = REFUSED[case]
    config = quickstart.get_config()
    validation.validate(config)
    if case == "name":
        with config.arms.unlocked():
            config.arms[value] = config.arms.owl
    else:
        row, _, name = field.rpartition(".")
        setattr(functools.reduce(getattr, row.split(".") if row else [], config), name, value)
    with pytest.raises(ValueError, match=said) as why:
        validation.validate(config)
    assert "\n" not in str(why.value)
