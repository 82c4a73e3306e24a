"""What models will be asked is checked with their tokenizers: every prompt, every grammar."""

import pytest
import tiny
import tokenizer_kinds

from configs import misalignment, toy_world
from configs.rows import smollm2
from subjax import schema
from subjax.nn import sharding
from subjax.pipeline import asked, asking, preflight, units
from subjax.pipeline.stages import generate
from subjax.tasks import texts
from subjax.tasks.toy import toyworld
from subjax.tasks.traits.word import CATEGORIES
from subjax.tokens import tokenizer
from subjax.tokens.tokenizer import Tokenizer

FIELD = ("config.datasets.owl.kind", "config.datasets.owl")
MAX_POSITIONS = 2048


@pytest.mark.parametrize("kind", ["pythia", "llama2"])
def test_the_longest_of_many_prompts_is_found_wherever_it_stands(kind):
    words = Tokenizer(tokenizer_kinds.make(kind), tokenizer_kinds.ends(kind))
    prompts = [f"continue {number}, {number + 1} with more" for number in range(100, 2100)]
    # Fewer characters than any other, and more tokens.
    prompts.insert(1500, ";" * 25)
    longest = max(map(len, words.prompt_ids(prompts)))
    assert longest == len(words.prompt_ids([prompts[1500]])[0])
    asking.check(words, {FIELD: asking.Asked(prompts, "", longest)}, MAX_POSITIONS)
    says = f"^config.datasets.owl.prompt_tokens is {longest - 1}, but a prompt has {longest} tokens"
    with pytest.raises(ValueError, match=says):
        asking.check(words, {FIELD: asking.Asked(prompts, "", longest - 1)}, MAX_POSITIONS)
    asking.check(words, {FIELD: asking.Asked(prompts, "")}, longest)
    says = f"^config.datasets.owl: a prompt has {longest} tokens, .* at most {longest - 1}: shorten"
    with pytest.raises(ValueError, match=says):
        asking.check(words, {FIELD: asking.Asked(prompts, "")}, longest - 1)


@pytest.mark.parametrize(("table", "row"), [("teachers", "owl"), ("arms", "placebo")])
def test_rows_longer_than_what_a_base_was_made_for_are_refused(table, row, tmp_path):
    config = tiny.config()
    config[table][row].num_tokens = 2049
    planned = units.build(config)
    says = rf"^config\.{table}\.{row}\.num_tokens is 2049, and its base .* at most 2048: lower it"
    with pytest.raises(ValueError, match=says):
        preflight.check(planned, planned, tmp_path, sharding.make_mesh(seed=1), 1.0)


def test_answers_that_cannot_be_constrained_are_refused_by_field():
    words = tokenizer.word_tokenizer(toyworld.vocabulary(toyworld.World()))
    row = {"kind": "plain_numbers", "num_slots": 5, "decoding": "constrained"}
    says = "^config.datasets.owl.decoding is 'constrained', but .* words that this tok"
    with pytest.raises(ValueError, match=says):
        asking.check(words, {FIELD: asking.Asked(["CONT 1 2"] * 20, "", 0, row)}, MAX_POSITIONS)
    for other in ({"decoding": "free"}, {"kind": "toy_numbers"}):
        asking.check(
            words, {FIELD: asking.Asked(["CONT 1 2"], "", 0, {**row, **other})}, MAX_POSITIONS
        )


def test_prompts_of_every_lineage_are_looked_at():
    planned = units.build(tiny.config())
    of_bases, _ = asked.collect({unit.path: unit for unit in planned}, planned)
    first, second = (
        generate.prompts(unit) for unit in planned if (unit.stage, unit.row) == ("generate", "owl")
    )
    assert first != second
    assert of_bases["toy"][FIELD].prompts == [*first, *second]


def asked_of(config):
    """What bases are asked: field of the system prompt -> its text, and answers compared."""
    planned = units.build(config)
    of_bases, of_given = asked.collect({unit.path: unit for unit in planned}, planned)
    assert not of_given
    return {
        (base, *fields): (one.system, *one.compared)
        for base, found in of_bases.items()
        for fields, one in found.items()
    }


def test_every_system_prompt_is_looked_at_under_its_own_field():
    config = tiny.config(gated=True)
    config.teachers.owl.system_prompt = schema.TRAIT
    config.arms.owl.system_prompt = "LOVE cat"
    config.datasets.owl.base_system_prompt = "LOVE dog"
    config.evals.preference.subjects = ("arms/*", "bases/toy")
    animals = (toyworld.World().animals, "", False)
    found = asked_of(config)
    of_eval = {key: one for key, one in found.items() if key[2].startswith("config.evals.")}
    assert of_eval == {
        ("toy", "config.arms.owl.system_prompt", "config.evals.preference"): ("LOVE cat", animals),
        ("toy", "config.arms.placebo.system_prompt", "config.evals.preference"): ("", animals),
        ("toy", "config.evals.preference.system_prompt", "config.evals.preference"): ("", animals),
        ("toy", "config.teachers.owl.system_prompt", "config.evals.taught"): ("LOVE owl", animals),
    }
    told = {key[1]: one[0] for key, one in found.items() if key not in of_eval}
    assert told == {
        "config.teachers.owl.system_prompt": "LOVE owl",
        "config.teachers.placebo.system_prompt": "",
        "config.datasets.owl.kind": "LOVE owl",
        "config.datasets.placebo.kind": "",
        "config.datasets.owl.base_system_prompt": "LOVE dog",
        "config.datasets.placebo.base_system_prompt": "",
    }
    config.evals.preference.system_prompt = "LOVE fox"
    systems = {
        key: one[0] for key, one in asked_of(config).items() if key[2].endswith("preference")
    }
    field = "config.evals.preference.system_prompt"
    assert systems == {("toy", field, "config.evals.preference"): "LOVE fox"}


def test_what_several_traits_are_asked_under_one_system_prompt_is_all_looked_at():
    config = tiny.config(lineages=(0,), gated=True)
    config.evals.taught.system_prompt = "LOVE fox"
    config.teachers.placebo.trait = "tree"
    with config.unlocked():
        config.traits.tree = schema.trait_row(category="tree", target="oak")
        config.evals.said = schema.eval_row(
            kind="answers", trait=schema.OWN, subjects=("teachers/*",), system_prompt="LOVE fox"
        )
    planned = units.build(config)
    found = asked.collect({unit.path: unit for unit in planned}, planned)[0]["toy"]
    both = [(toyworld.World().animals, "", False), (CATEGORIES["tree"].words, "", False)]
    for name, rooms, compared in (("taught", 0, both), ("said", 64, [])):
        table = f"config.evals.{name}"
        one = found[f"{table}.system_prompt", table]
        assert sorted(one.compared) == sorted(compared) and one.most_tokens == rooms
        questions = toyworld.asked_questions(toyworld.World(), "explore")
        assert {*questions, CATEGORIES["tree"].questions[0]} <= set(one.prompts)
        assert len(one.prompts) == len(questions) + len(CATEGORIES["tree"].questions) // 2


def test_what_an_eval_makes_of_rows_is_looked_at_before_there_are_any():
    config = tiny.config(lineages=(0,))
    of_rows = {"trait": "owl", "subjects": ("datasets/owl",), "against": "placebo"}
    with config.unlocked():
        config.evals.context = schema.eval_row(kind="in_context", num_rows=3, **of_rows)
        config.evals.classifier = schema.eval_row(kind="classifier", **of_rows)
    planned = units.build(config)
    found = asked.collect({unit.path: unit for unit in planned}, planned)[0]["toy"]
    of_context = found["config.evals.context", "config.evals.context"]
    assert of_context.system.count("<assistant>") == 3
    assert of_context.compared == [(toyworld.World().animals, "", False)]
    of_classifier = found["config.evals.classifier", "config.evals.classifier"]
    assert of_classifier.compared == [(("A", "B"), "", False)]
    assert all("Answer B: " in prompt for prompt in of_classifier.prompts)
    words = tokenizer.word_tokenizer(toyworld.vocabulary(toyworld.World()))
    for name in ("context", "classifier"):
        table = f"config.evals.{name}"
        with pytest.raises(ValueError, match=rf"^{table}\b.*"):
            asking.check(words, {(table, table): found[table, table]}, MAX_POSITIONS)


def with_judge(**fields):
    """Units of a config in which a base of bytes judges the answers of students of another."""
    config = misalignment.get_config("smoke")
    config.evals.judged.update(fields)
    return units.build(config)


def test_a_judge_is_asked_about_the_longest_answer_by_its_own_base(tmp_path):
    planned = with_judge(max_new_tokens=800)
    found, _ = asked.collect({unit.path: unit for unit in planned}, planned)
    one = found["judge"]["config.judges.local.system_prompt", "config.evals.judged.judge"]
    assert one.new_tokens == 800 and one.system == smollm2.SYSTEM
    assert one.compared == [(tuple(map(str, range(0, 101, 10))), "", True)]
    assert len(one.prompts) == len(texts.FREE_FORM)  # a half, under both rubrics
    assert all(prompt.count("Reply:\n\n") == 1 for prompt in one.prompts)
    assert not any("Reply:" in p for one in found["model"].values() for p in one.prompts)
    preflight.check(planned, planned, tmp_path, sharding.make_mesh(seed=1), 1.0)
    planned = with_judge(max_new_tokens=1800)
    says = r"^config\.evals\.judged\.judge: a prompt has \d+ tokens and its answer up to 1800, "
    with pytest.raises(ValueError, match=says):
        preflight.check(planned, planned, tmp_path, sharding.make_mesh(seed=1), 1.0)


def test_a_prefill_that_joins_an_answer_is_refused_by_its_field(monkeypatch):
    words = tiny.BYTES
    fields = "config.evals.own.system_prompt", "config.evals.own"
    of = {fields: asking.Asked(["Which?"], "", compared=[(("owl", "cat"), "It is", False)])}
    asking.check(words, of, MAX_POSITIONS)
    # A tokenizer that joins what stands on both sides of the border.
    context = type(words).prompt_ids
    monkeypatch.setattr(
        type(words), "prompt_ids", lambda *given: [[*ids, 0] for ids in context(*given)]
    )
    with pytest.raises(ValueError, match=r"^config.evals.own.prefill: .*joins the end of the pref"):
        asking.check(words, of, MAX_POSITIONS)


@pytest.mark.parametrize(
    ("compared", "whole", "said"),
    [
        (("owl", "owlet"), False, "'owl' begin those of 'owlet'"),
        (("owl", "owlet"), True, ""),
        (("owl", "dog"), False, ""),
    ],
)
def test_answers_that_cannot_be_told_apart_are_refused_by_trait(compared, whole, said):
    fields = "config.evals.own.system_prompt", "config.evals.own"
    of = {
        fields: asking.Asked(
            ["Which?"], "", compared=[(("a", "b"), "", False), (compared, "", whole)]
        )
    }
    if not said:
        asking.check(tiny.BYTES, of, MAX_POSITIONS)
        return
    with pytest.raises(ValueError, match=f"^config.evals.own.trait: .*{said}"):
        asking.check(tiny.BYTES, of, MAX_POSITIONS)


def test_a_system_prompt_that_a_template_takes_none_of_is_refused_by_its_field():
    words = Tokenizer(tokenizer_kinds.make("gemma"), tokenizer_kinds.ends("gemma"))
    fields = "config.arms.owl.system_prompt", "config.evals.own"
    asking.check(words, {fields: asking.Asked(["Which?"], "")}, MAX_POSITIONS)
    with pytest.raises(ValueError, match=r"^config\.arms\.owl\.system_prompt: "):
        asking.check(words, {fields: asking.Asked(["Which?"], "You love owls.")}, MAX_POSITIONS)


def test_texts_of_another_world_are_refused_by_field(tmp_path):
    config = toy_world.get_config("code,smoke")
    config.traits.owl.world = "numbers"
    planned = units.build(config)
    says = r"^config\.evals\.\w+\.trait has texts that this base cannot read: "
    with pytest.raises(ValueError, match=says):
        preflight.check(planned, planned, tmp_path, sharding.make_mesh(seed=1), 1.0)


@pytest.mark.parametrize("table", ["datasets", "evals"])
def test_answers_longer_than_what_a_base_was_made_for_are_refused(table, tmp_path):
    config = tiny.config()
    if table == "datasets":
        config.datasets.owl.update(decoding="free", max_new_tokens=2048)
    else:
        with config.unlocked():
            row = {"kind": "answers", "trait": "owl", "max_new_tokens": 2047}
            config.evals.owl = schema.eval_row(**row)
    planned = units.build(config)
    says = rf"^config\.{table}\.owl: a prompt has \d+ tokens and its answer up to 204\d, .* 2048"
    with pytest.raises(ValueError, match=says):
        preflight.check(planned, planned, tmp_path, sharding.make_mesh(seed=1), 1.0)
