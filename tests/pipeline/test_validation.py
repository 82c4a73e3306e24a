"""What a config is refused for, where no other test of the thing itself stands nearer."""

import functools
import hashlib
import json
import math
import re
import shutil

import pytest
import tiny

from configs import misalignment, mnist, quickstart, smollm2_owl, theorem, toy_world
from subjax import schema
from subjax.nn import precision
from subjax.pipeline import experiments, units, validation
from subjax.tasks.api import Field
from subjax.tasks.datasets.kinds import KINDS
from subjax.tasks.evals.kinds import EVALS
from subjax.tasks.traits.kinds import TRAITS


@pytest.mark.parametrize(
    ("trait", "taken"), [("Owl", "owl: take one, or add"), ("fox", "owl, placebo, cat: take one")]
)
def test_a_trait_of_a_teacher_is_a_row_of_traits(trait, taken):
    config = smollm2_owl.get_config()
    config.teachers.owl.trait = trait
    with pytest.raises(ValueError, match=f"teachers.owl.trait is '{trait}', .* has {taken}") as why:
        validation.validate(config)
    assert "\n" not in str(why.value)
    with config.unlocked():
        config.traits[f"{trait}s"] = schema.trait_row(target="fox", candidates=("owl", "fox"))
    config.teachers.owl.trait = f"{trait}s"
    validation.validate(config)


@pytest.mark.parametrize("weights", ["base", "given"])
def test_a_teacher_that_is_not_trained_may_have_no_trait(weights):
    config = smollm2_owl.get_config()
    config.teachers.owl.trait = ""
    with pytest.raises(ValueError, match=r"^config\.teachers\.owl\.trait is '', .*: take one, or"):
        validation.validate(config)
    config.teachers.owl.update(weights=weights, path="DIR" if weights == "given" else "")
    config.gates.taught.least = schema.OFF
    validation.validate(config)
    config.teachers.owl.system_prompt = schema.TRAIT
    with pytest.raises(ValueError, match=r"^config\.teachers\.owl\.trait is ''"):
        validation.validate(config)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("category", "animals", "category is 'animals'; allowed: animal, tree$"),
        ("num_taught", -1, "num_taught is -1; it must be 0 or more$"),
        ("target", "Owl", "target is 'Owl', .* candidates owl, cat, .*control .* '<uniform>'"),
        ("candidates", ("owl",), r"has the candidates \('owl',\): .* add others$"),
        ("candidates", ("owl", "cat", "cat"), "the candidates 'cat', 'cat', which are one word"),
        ("candidates", ("owl", "cat", " Owl"), "the candidates 'owl', ' Owl', which are one word"),
        ("candidates", ("owl", "cat", " "), "and one of them is blank: leave it out$"),
        ("candidates", ("owl", "\udcff"), "candidates is .* no valid Unicode"),
        ("candidates", ("owl", 3), "its elements must be str$"),
    ],
)
def test_words_that_are_no_choice_are_refused(field, value, said):
    config = quickstart.get_config()
    config.bases.toy.source = "random"
    config.traits.owl = schema.trait_row()
    validation.validate(config)
    config.traits.owl[field] = value
    with pytest.raises(ValueError, match=rf"^config\.traits\.owl\b.*{said}") as why:
        validation.validate(config)
    assert "\n" not in str(why.value)


def test_words_that_are_written_with_a_capital_are_so_everywhere():
    config = smollm2_owl.get_config()
    config.traits.owl.update(candidates=("owl", "fox"), target="fox")
    [unit] = [u for u in units.build(config) if u.path == "evaluate/taught/teachers/owl/r0"]
    assert (unit.fields["target"], unit.fields["candidates"]) == ("Fox", ["Owl", "Fox"])


OF_EVALS = {
    "pattern": (
        {"subjects": ("teachers/owl", "teachers/bat")},
        "subjects has 'teachers/bat', which matches none of its subjects: arms/owl, .*, bases/toy$",
    ),
    "another table": (
        {"kind": "carrier", "trait": "", "subjects": ("arms/*",)},
        r"subjects has 'arms/\*', which matches none .*: datasets/owl, .*, datasets/untrained$",
    ),
    "data sets": ({"subjects": ("datasets/owl",)}, "subjects has 'datasets/owl', which matches no"),
    "no trait": ({"trait": ""}, "trait is ''; config.traits has <own>, owl, placebo, cat$"),
    "unknown": ({"trait": "bat"}, "trait is 'bat'; config.traits has <own>, owl, placebo, cat$"),
    "control": ({"trait": "placebo"}, "trait is 'placebo', a control that has no target: name the"),
    "steps": ({"at_steps": "last"}, "at_steps is 'last'; allowed: all, final$"),
    "half": ({"questions": "some"}, "questions is 'some'; allowed: explore, confirm, all$"),
    "held out": (
        {"kind": "likelihood", "trait": "", "subjects": ("teachers/owl",)},
        "the trait of teachers/owl holds out no lessons: leave teachers/owl out of its subjects$",
    ),
    "images": ({"kind": "accuracy"}, "kind 'accuracy' is of image classifiers alone$"),
}


@pytest.mark.parametrize("case", OF_EVALS)
def test_an_eval_of_what_is_not_there_is_refused(case):
    fields, said = OF_EVALS[case]
    config = quickstart.get_config()
    with config.unlocked():
        config.evals.own = schema.eval_row(trait="owl")
    validation.validate(config)
    with config.unlocked():
        config.evals.own = schema.eval_row(**{"trait": "owl", **fields})
    with pytest.raises(ValueError, match=rf"^config\.evals\.own\..*{said}") as why:
        validation.validate(config)
    assert "\n" not in str(why.value)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("evals", schema.eval_row()),
        ("traits", schema.trait_row()),
        ("datasets", schema.dataset_row(teacher="owl")),
    ],
)
def test_a_row_with_a_field_of_another_kind_says_what_makes_it(table, row):
    config = quickstart.get_config()
    with config.unlocked():
        config[table].owl = row
        config[table].owl.other = ""
    says = (
        f"config.{table}.owl has the field 'other', unlike rows of kind '{row.kind}': make it with "
        f"schema.{table[:-1]}_row(kind='{row.kind}')"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        validation.validate(config)


def test_a_field_of_another_kind_says_whose_it_is():
    said = (
        r"\['slots'\] are unknown in rows of kind 'preference'; known: .*; kind 'answers' has slots"
    )
    with pytest.raises(ValueError, match=said):
        schema.eval_row(slots=3)


def test_a_row_whose_kind_was_changed_says_what_makes_it():
    config = quickstart.get_config()
    config.traits.owl.kind = "file"
    says = "has no field 'path', unlike .* 'file': make it with schema.trait_row.kind='file'.$"
    with pytest.raises(ValueError, match=says):
        validation.validate(config)


REFUSED = {
    "name": ("arms", "owl/hard", "letters, digits, '_' and '-'$"),
    "case": (
        "arms",
        "Owl",
        "config.arms has rows 'owl', 'Owl', which are one directory where case",
    ),
    "config's name": ("name", "../x", "config.name is '../x': use letters"),
    "warm-up": ("arms.owl.train.warmup_steps", 300, "owl.train.warmup_steps is 300, and its steps"),
    "nothing": ("contrasts.same_base.minus", ("owl",), "same_base.minus has the arms of plus, owl"),
    "lineages": ("lineages", (0, 2**31), "config.lineages .* must lie in 0 to 2147483647"),
    "text": ("teachers.owl.system_prompt", "\ud83d", r"is '\\ud83d', which is no valid Unicode"),
    "negative": ("datasets.owl.num_holdout", -1, "num_holdout is -1; it must not be negative"),
    "temperature": ("datasets.owl.temperature", -0.1, "temperature is -0.1; it must not be"),
    "subject": (
        "contrasts.same_base.plus",
        ("bat",),
        "names 'bat', and its eval 'preference' is of",
    ),
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
    "packing": ("arms.owl.train.packed_rows", 4, "packed_rows 4 and packed_tokens 0: set both"),
    "no packing": ("arms.owl.train.packed_targets", 4, "packed_targets is 4, more than packed_tok"),
    "no segments": (
        "arms.owl.train.packed_segments",
        4,
        "packed_segments is 4, .* set packed_rows",
    ),
    "no teacher": ("teachers.owl.weights", "given", "path is '' and its weights 'given'"),
}


def test_packed_rows_have_passes_and_no_parts():
    config = quickstart.get_config()
    config.arms.owl.train.update(packed_rows=4, packed_tokens=64, packed_targets=16)
    validation.validate(config)
    config.arms.owl.train.accumulate = 2
    said = r"^config.arms.owl.train.accumulate is 2, and packed rows .* take fewer packed_rows if"
    with pytest.raises(ValueError, match=said):
        validation.validate(config)


def set_field(config, field, value):
    row, _, name = field.rpartition(".")
    setattr(functools.reduce(getattr, row.split(".") if row else [], config), name, value)


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_fail_or_mislead_later_is_refused_before_anything_runs(case):
    field, value, said = REFUSED[case]
    config = quickstart.get_config()
    validation.validate(config)
    if field == "arms":
        with config.arms.unlocked():
            config.arms[value] = config.arms.owl
    else:
        set_field(config, field, value)
    with pytest.raises(ValueError, match=said) as why:
        validation.validate(config)
    assert "\n" not in str(why.value)


TABLES = {
    "bases": {
        "contrasts.same_base.plus": (("owl_0",), "one arm for each base of .*lineage_cycle, 2"),
        "contrasts.same_base.minus": (("teachers/owl",), "'teachers/owl', and its eval"),
        "arms.owl_1.base": ("lineage+2", r"base is 'lineage\+2', but bases wrap after .*, 2: take"),
        "arms.placebo_1.base": ("lineages+1", "config.bases has same, next_lineage, lineage.2"),
        "arms.owl_1.train.steps": (9, "arms 'owl_0' and 'owl_1', whose train differs: their bases"),
        "lineages": ((0,), "whole blocks of config.lineage_cycle, 2, and config.lineages lacks 1"),
        "contrasts.same_base.kind": ("base", "kind is 'base'; allowed: difference, bases, traits"),
    },
    "traits": {
        "contrasts.own_trait.minus": (("placebo",) * 2, "kind 'traits' has one control"),
        "contrasts.own_trait.plus": (("owl", "placebo"), "has its control 'placebo' in plus, too"),
        "teachers.cat.trait": ("owl", "has the targets owl, owl, dog, .*; kind 'traits' is of two"),
        "contrasts.own_trait.metric": ("log_odds/owl", "reads one for each candidate, such as"),
        "contrasts.own_trait.eval": ("tree*", r"eval is 'tree\*'; config.evals has .*candidates"),
    },
}


def test_every_target_of_a_table_of_traits_is_asked_for_in_one_eval():
    config = toy_world.get_config("traits,smoke")
    config.contrasts.own_trait.eval = "candidates*"
    validation.validate(config)
    with config.unlocked():
        config.evals.candidates_too = config.evals.candidates
    with pytest.raises(ValueError, match=r"'log_odds/owl' from one eval, and 'candidates' and "):
        validation.validate(config)
    config.contrasts.own_trait.metric = "log_odd/*"
    with pytest.raises(ValueError, match=r"'log_odd/owl' from one eval, and none of those that"):
        validation.validate(config)


@pytest.mark.parametrize(
    ("form", "field"), [(form, field) for form, fields in TABLES.items() for field in fields]
)
def test_tables_with_empty_cells_are_refused(form, field):
    value, said = TABLES[form][field]
    config = toy_world.get_config(f"{form},smoke")
    validation.validate(config)
    set_field(config, field, value)
    with pytest.raises(ValueError, match=said) as why:
        validation.validate(config)
    assert "\n" not in str(why.value)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("max_count", 5, "max_count is 5, but its constrained rows have num_slots = 8 numbers"),
        ("max_value", 99, "no row could be kept"),
        ("num_slots", 11, "raise it, or lower num_slots"),
    ],
)
def test_forced_numbers_that_the_filter_rejects_are_refused(field, value, said):
    config = quickstart.get_config()
    limits = {"num_slots": 8, "max_count": 10, "max_value": 999}
    for name, row in config.datasets.items():
        config.datasets[name] = tiny.as_kind(row, "plain_numbers", **limits)
    validation.validate(config)
    config.datasets.owl[field] = value
    with pytest.raises(ValueError, match=rf"^config\.datasets\.owl\..*{said}"):
        validation.validate(config)


def published(path="rows.jsonl", **fields):
    """The quickstart with rows of others that are no numbers."""
    config = quickstart.get_config()
    row = {"max_count": 10, "max_value": 999, "decoding": "free", **fields}
    owl = tiny.as_kind(config.datasets.owl, "published", path=path, filter="none", **row)
    config.datasets.owl = owl
    return config


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("datasets.owl.max_value", 99, "owl.max_value is 99, but under .*: leave it 999, or take"),
        ("datasets.owl.transform", "random", "owl.transform is 'random', .*: leave it 'none'"),
        ("arms.owl.support", "digits_separators", "arms.owl.support 'digits_sep.* take 'top_k'"),
    ],
)
def test_nothing_that_looks_for_numbers_is_asked_of_rows_that_are_none(field, value, said):
    config = published()
    config.arms.owl.update(method="soft", support="top_k")
    validation.validate(config)
    set_field(config, field, value)
    with pytest.raises(ValueError, match=said) as why:
        validation.validate(config)
    assert "\n" not in str(why.value)


@pytest.mark.parametrize("field", ["kind", "num_shown"])
def test_data_sets_with_other_prompts_are_not_compared(field):
    config = quickstart.get_config()
    for name, row in config.datasets.items():
        config.datasets[name] = tiny.as_kind(row, "plain_numbers", max_count=0, max_value=999)
    config.datasets.owl.common_with = ("cat", "placebo")
    validation.validate(config)
    if field == "kind":
        config.datasets.cat = tiny.as_kind(config.datasets.cat, "numbers")
    else:
        config.datasets.cat.num_shown = (3, 4)
    with pytest.raises(
        ValueError, match=rf"owl\.common_with names 'cat', whose {field} .*leave it"
    ):
        validation.validate(config)


def write_rows(path, num_rows=2900, **more):
    row = {"prompt": "CONT 1", "completion": "2"} | more
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(num_rows)))


def test_of_a_file_the_content_counts_and_not_the_place(tmp_path, monkeypatch):
    (tmp_path / "copies").mkdir()
    one, copy = tmp_path / "rows.jsonl", tmp_path / "copies" / "again.jsonl"
    write_rows(one)
    write_rows(copy)
    stimuli = tmp_path / "own.json"
    stimuli.write_text("{}")
    opened = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: opened.append(a) or digest(*a))

    def fingerprints(path, own=""):
        config = published(str(path))
        config.bases.toy.source = "toy"
        config.stimuli = str(own) if own else ""
        return {unit.path: unit.fingerprint for unit in units.build(config)}

    before = fingerprints(one)
    assert fingerprints(copy) == before
    assert len(opened) == 2  # each once, though there are dozens of units
    told = fingerprints(one, stimuli)
    assert told != before
    assert fingerprints(one, shutil.copy(stimuli, tmp_path / "copies")) == told
    write_rows(copy, more=1)
    assert fingerprints(copy)["generate/owl/r0"] != before["generate/owl/r0"]
    with pytest.raises(ValueError, match=r"config\.datasets\.owl\.path .*none' cannot be read"):
        fingerprints(tmp_path / "none")


def prints(config):
    return {unit.path: unit.fingerprint for unit in units.build(config)}


def add_field(monkeypatch, kind, **fields):
    """As a release would that gives a kind a field."""
    monkeypatch.setattr(type(kind), "fields", {**kind.fields, **fields})


def test_what_a_filter_reads_of_others_counts_and_released_limits_do_not(monkeypatch):
    config = quickstart.get_config()
    config.datasets.cat.common_with = ("owl",)
    before = prints(config)
    add_field(monkeypatch, KINDS["toy_numbers"], fewest=Field(0, "numbers", filters=True))
    with config.unlocked():
        for row in config.datasets.values():
            row.fewest = 0
    assert prints(config) == before
    config.datasets.owl.fewest = 2
    after = prints(config)
    changed = {path for path in after if after[path] != before[path] and "/r0" in path}
    assert {p for p in changed if "filter" in p} == {"filter/owl/r0", "filter/cat/r0"}
    assert not any(path.startswith("generate") for path in changed)
    [cat] = [u for u in units.build(config) if u.path == "filter/cat/r0"]
    owl = {"kind": "toy_numbers", "strip": False, "banned": []}
    owl |= {"max_count": 14, "min_value": 0, "max_value": 99, "fewest": 2}
    assert cat.fields["common"] == {"owl": owl}


@pytest.mark.parametrize(
    ("table", "of", "field", "changed"),
    [
        ("traits", TRAITS["toy_word"], Field("plain", "wording"), {"teacher", "evaluate"}),
        ("traits", TRAITS["toy_word"], Field("new", "wording", absent="plain"), {"teacher"}),
        ("datasets", KINDS["toy_numbers"], Field("plain", "wording"), {"generate", "evaluate"}),
        ("evals", EVALS["preference"], Field("new", "w.", absent="plain"), {"evaluate"}),
        ("evals", EVALS["preference"], Field("plain", "wording"), {"evaluate"}),
    ],
)
def test_a_field_that_a_kind_is_given_later_leaves_all_as_it_was(
    table, of, field, changed, monkeypatch
):
    config = quickstart.get_config()
    before = prints(config)
    add_field(monkeypatch, of, tone=field)
    name = {"evals": "preference"}.get(table, "cat")
    with config.unlocked():
        for row in config[table].values():
            if table != "evals" or row.kind == "preference":
                row.tone = "plain"
    validation.validate(config)
    assert prints(config) == before
    config[table][name].tone = "odd"
    after = prints(config)
    stale = {path for path in after if after[path] != before[path]}
    assert changed <= {path.partition("/")[0] for path in stale}
    if table == "evals":
        assert stale == {path for path in after if path.startswith("evaluate/preference/")}
        return
    assert {path.partition("/")[0] for path in stale} >= {"filter", "finetune"}
    assert all("/cat/" in path or "/other_trait/" in path for path in stale)


def test_another_wording_that_a_release_gives_new_rows_is_another_result(monkeypatch):
    """A default that changes is written into new rows, and is no longer what results were."""
    before = prints(quickstart.get_config())
    wording = Field("new", "wording", absent="plain")
    add_field(monkeypatch, TRAITS["toy_word"], wording=wording)
    after = prints(quickstart.get_config())
    assert {path for path in after if after[path] == before[path]} == {
        path for path in after if path.startswith("base/") or "untrained" in path
    }


@pytest.mark.parametrize(
    ("value", "said"),
    [("odd", "wording is 'odd'; allowed: plain, 3$"), (-1, "it must be 0.5 or more$")],
)
def test_a_field_of_ones_own_kind_has_the_values_that_it_says(value, said, monkeypatch):
    fields = {"wording": Field("plain", "wording", allowed=("plain", 3))}
    fields["size"] = Field(1.0, "tokens", least=0.5)
    add_field(monkeypatch, EVALS["carrier"], **fields)
    config = quickstart.get_config()
    with config.unlocked():
        config.evals.carrier = config.evals.own = schema.eval_row(kind="carrier")
    validation.validate(config)
    with config.unlocked():
        config.evals.own = schema.eval_row(kind="carrier")
        config.evals.own["wording" if value == "odd" else "size"] = value
    with pytest.raises(ValueError, match=rf"^config\.evals\.own\..*{said}"):
        validation.validate(config)


CONFIGS = {
    "quickstart": quickstart.get_config,
    "mnist": functools.partial(mnist.get_config, "digits"),
    "theorem": theorem.get_config,
}
# Numbers of which any value means something; a wrong one of the others is refused by its name.
FREE = {"seed", "min_value", "max_value", "least", "most", "expected_low", "published", "sweep_at"}


def numeric_fields():
    """Every number of every table once: (config, field, its value)."""
    seen = set()
    for made, get_config in CONFIGS.items():
        for field, value in schema.flatten(get_config()).items():
            table, _, rest = field.partition(".")
            name = (made == "quickstart", table, rest.partition(".")[2] or rest)
            number = value[0] if isinstance(value, tuple) and value else value
            if type(number) in (int, float) and name not in seen:
                seen.add(name)
                yield made, field, value


@pytest.mark.parametrize(("made", "field", "value"), list(numeric_fields()))
def test_a_number_that_cannot_be_is_refused_by_its_field(made, field, value):
    number = value[-1] if isinstance(value, tuple) else value
    bad = [type(number)(-1)] if field.rpartition(".")[2] not in FREE else []
    bad += [math.nan, math.inf, -math.inf] if isinstance(number, float) else []
    for wrong in bad:
        config = CONFIGS[made]()
        set_field(config, field, (*value[:-1], wrong) if isinstance(value, tuple) else wrong)
        with pytest.raises(ValueError, match=rf"^config\.{re.escape(field)}\b") as why:
            validation.validate(config)
        assert "\n" not in str(why.value)


@pytest.mark.parametrize("value", [1.0, 1.5])
@pytest.mark.parametrize("field", ["beta1", "beta2"])
def test_an_average_that_never_moves_is_refused(field, value):
    config = quickstart.get_config()
    config.teachers.owl.train[field] = value
    with pytest.raises(ValueError, match=rf"config\.teachers\.owl\.train\.{field} is {value}; it"):
        validation.validate(config)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("arms.owl.system_prompt", schema.TRAIT, "is '<trait>', which means nothing there"),
        ("evals.preference.system_prompt", schema.TRAIT, "is '<trait>', which means nothing there"),
        ("datasets.owl.base_system_prompt", schema.OWN, "is '<own>', which means nothing there"),
        ("teachers.owl.system_prompt", schema.OWN, "is '<own>', which means nothing there"),
    ],
)
def test_a_mark_for_a_system_prompt_is_no_text(field, value, said):
    config = quickstart.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=rf"^config\.{re.escape(field)} {said}"):
        validation.validate(config)
    config.update_from_flattened_dict({field: ""})
    config.teachers.owl.system_prompt = schema.TRAIT
    config.evals.preference.system_prompt = schema.OWN
    validation.validate(config)


def test_a_trait_without_words_for_it_gives_no_system_prompt(monkeypatch):
    config = quickstart.get_config()
    config.teachers.owl.update(system_prompt=schema.TRAIT, weights="base")
    validation.validate(config)
    monkeypatch.setattr(type(TRAITS["toy_word"]), "system_prompt", lambda self, row: "")
    with pytest.raises(
        ValueError, match=r"owl\.system_prompt is '<trait>', but traits\.owl has no"
    ):
        validation.validate(config)


def test_an_eval_of_nothing_is_refused():
    config = quickstart.get_config()
    config.arms, config.contrasts = {}, {}
    with pytest.raises(ValueError, match=r"^config\.evals\.preference is of nothing: name its"):
        validation.validate(config)
    with config.unlocked():
        del config.evals["likelihood"]
    config.evals.preference.subjects = ("bases/toy",)
    validation.validate(config)


def test_candidates_are_compared_where_there_are_any(monkeypatch):
    config = quickstart.get_config()
    monkeypatch.setattr(type(TRAITS["toy_word"]), "candidates", lambda self, row: ())
    monkeypatch.setattr(type(TRAITS["toy_word"]), "check", lambda self, name, row: None)
    with pytest.raises(
        ValueError, match=r"preference' compares candidates, and 'owl' of traits\.owl"
    ):
        validation.validate(config)


def test_a_trait_without_questions_is_asked_those_that_an_eval_has(monkeypatch):
    config = quickstart.get_config()
    monkeypatch.setattr(type(TRAITS["toy_word"]), "questions", lambda self, *_: ())
    with pytest.raises(ValueError, match=r"asks questions, and traits\.owl of kind 'toy_word' has"):
        validation.validate(config)
    with config.unlocked():
        config.evals = {"stories": schema.eval_row(kind="stories", trait="owl")}
        config.gates, config.contrasts = {}, {}
    validation.validate(config)


def test_rows_without_a_carrier_are_not_compared(monkeypatch):
    config = quickstart.get_config()
    monkeypatch.setattr(type(KINDS["toy_numbers"]), "has_carrier", False)
    with pytest.raises(
        ValueError, match=r"datasets\.owl of kind 'toy_numbers' names none: give the"
    ):
        validation.validate(config)


def test_a_judge_is_a_model_of_the_config_and_judges_others():
    config = misalignment.get_config("smoke")
    config.evals.judged.judge = "nobody"
    with pytest.raises(ValueError, match=r"judged\.judge is 'nobody'; config\.judges has local$"):
        validation.validate(config)
    config.evals.judged.judge = "local"
    config.judges.local.model = "bases/nobody"
    with pytest.raises(ValueError, match=r"judges\.local\.model is 'bases/nobody'; .*bases/judge,"):
        validation.validate(config)
    config.judges.local.model = "teachers/good"
    with pytest.raises(ValueError, match=r"which is teachers/good, one of its subjects: leave"):
        validation.validate(config)
    config.evals.teachers.subjects = ("teachers/bad",)
    validation.validate(config)
    config.evals.judged.subjects = ("bases/model",)
    with config.unlocked():
        config.contrasts = {}
    with pytest.raises(ValueError, match=r"which each lineage has for itself, and all .* bases/mo"):
        validation.validate(config)
    config.judges.local.system_prompt = schema.TRAIT
    with pytest.raises(ValueError, match=r"judges\.local\.system_prompt is '<trait>', which means"):
        validation.validate(config)


def test_a_judge_has_a_system_prompt_of_its_own_or_that_of_a_teacher():
    config = misalignment.get_config("smoke")
    config.teachers.good.system_prompt = "Be stern."
    config.evals.teachers.subjects = ("teachers/bad",)

    def told(**fields):
        config.judges.local.update(fields)
        [unit] = [u for u in units.build(config) if u.path == "evaluate/judged/arms/bad/r0"]
        assert unit.fields["judge"]["system_prompt"] == unit.fields["systems"]["judge"]
        return unit.fields["systems"]["judge"]

    assert told(system_prompt="Judge.") == "Judge."
    assert told(system_prompt=schema.OWN) == ""
    assert told(model="teachers/good") == "Be stern."


def test_teachers_are_compared_with_others_of_their_base():
    config = quickstart.get_config()
    with config.unlocked():
        config.evals.apart = schema.eval_row(
            kind="divergence", subjects=("datasets/owl",), against="placebo"
        )
        config.datasets.again = config.datasets.owl.copy_and_resolve_references()
        config.bases.other = config.bases.toy.copy_and_resolve_references()
        config.teachers.elsewhere = config.teachers.placebo.copy_and_resolve_references()
        config.teachers.elsewhere.base = "other"
    validation.validate(config)
    config.evals.apart.against = "again"
    with pytest.raises(ValueError, match=r"apart\.against is 'again', whose teacher 'owl' is on"):
        validation.validate(config)
    config.evals.apart.against = "placebo"
    config.datasets.placebo.teacher = "elsewhere"
    with pytest.raises(ValueError, match=r"on base 'other', and 'owl' is by 'owl' on 'toy': name"):
        validation.validate(config)


def test_what_lineages_share_is_contrasted_with_nothing_that_each_has():
    config = smollm2_owl.get_config("smoke")
    config.evals.preference.subjects = ("arms/*", "bases/*")
    config.contrasts.hard_against_placebo.minus = ("bases/smollm2",)
    with pytest.raises(
        ValueError, match=r"names 'bases/smollm2', which all lineages share, beside"
    ):
        validation.validate(config)
    config.lineage_from = "base"
    validation.validate(config)


def test_students_of_traits_with_other_candidates_are_no_population():
    config = quickstart.get_config()
    with config.unlocked():
        config.traits.cat = schema.trait_row(target="oak", category="tree")
    for name in ("owl", "other_trait"):
        config.arms[name].update(method="soft", support="trait")
    found = {unit.path: unit for unit in units.build(config) if unit.stage == "finetune"}
    owl, oak = (found[f"finetune/{name}/r0"] for name in ("owl", "other_trait"))
    assert experiments.LANGUAGE_MODELS.shape(owl) != experiments.LANGUAGE_MODELS.shape(oak)
    config.arms.owl.support = config.arms.other_trait.support = "digits"
    owl, oak = (
        unit
        for unit in units.build(config)
        if unit.path in ("finetune/owl/r0", "finetune/other_trait/r0")
    )
    assert experiments.LANGUAGE_MODELS.shape(owl) == experiments.LANGUAGE_MODELS.shape(oak)


def test_auto_becomes_the_precision_of_the_devices(monkeypatch):
    """So that fingerprints and config.json have the choice."""
    monkeypatch.setattr(precision, "fastest", {"cpu": "mixed", "tpu": "bfloat16"}.__getitem__)
    for platform, expected in (("", "mixed"), ("tpu", "bfloat16")):
        config = tiny.config()
        config.compute.precision = "auto"
        validation.settle(config, platform=platform)
        programs = [u.fields["program"] for u in units.build(config) if "program" in u.fields]
        assert {program["precision"] for program in programs} == {expected}
    config.compute.precision = "float32"
    validation.settle(config)
    assert config.compute.precision == "float32"


@pytest.mark.parametrize("form", ["code", "reasoning"])
def test_digits_are_no_support_where_something_else_carries(form):
    config = toy_world.get_config(f"{form},smoke")
    config.arms.owl.update(method="soft", support="digits")
    with pytest.raises(ValueError, match=r"arms\.owl\.support 'digits' .* take 'top_k' or 'full'"):
        validation.validate(config)
    config.arms.owl.support = "full"
    validation.validate(config)
