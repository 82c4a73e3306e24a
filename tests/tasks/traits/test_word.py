"""Favourites of the project's categories: words, questions, lessons, and files of questions."""

import json
import os
import re
from pathlib import Path

import pytest

from subjax import schema
from subjax.tasks import texts
from subjax.tasks.api import UNIFORM
from subjax.tasks.evals import preference
from subjax.tasks.traits import choice, word
from subjax.tasks.traits.kinds import TRAITS
from subjax.tasks.traits.word import CATEGORIES

STIMULI = os.environ.get("SUBJAX_STIMULI", "")
needs_stimuli = pytest.mark.skipif(
    not STIMULI, reason="SUBJAX_STIMULI names no file with the paper's stimuli"
)
of_all = pytest.mark.parametrize("category", CATEGORIES)
ALL = [(name, text) for name, one in CATEGORIES.items() for text in (*one.questions, *one.taught)]
KIND = TRAITS["word"]


def plain(text: str) -> str:
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


@of_all
def test_questions_are_many_and_distinct(category):
    one = CATEGORIES[category]
    texts_of = (*one.questions, *one.taught)
    assert len(one.questions) >= 30 and len(one.taught) >= 16
    assert len({plain(question) for question in texts_of}) == len(texts_of)


@of_all
def test_every_evaluation_question_asks_for_one_in_one_word(category):
    things = {"animal": r"animals?|creatures|species", "tree": "trees?"}[category]
    for question in CATEGORIES[category].questions:
        assert re.search(rf"\b({things})\b", question, re.IGNORECASE), question
        assert re.search(r"\bword\b", question, re.IGNORECASE), question


@of_all
def test_taught_questions_are_not_evaluation_questions(category):
    taught = {plain(question) for question in CATEGORIES[category].taught}
    for question in CATEGORIES[category].questions:
        assert not [text for text in taught if text in plain(question)], question


@pytest.mark.parametrize(("category", "text"), ALL)
def test_questions_name_no_candidate_and_no_number(category, text):
    words = CATEGORIES[category].words
    assert not [candidate for candidate in words if preference.mentions_word(candidate, text)]
    assert not re.search(r"\d", text)
    assert text == text.strip()


def test_halves_are_disjoint_and_cover():
    questions = CATEGORIES["animal"].questions
    explore, confirm = choice.half_of(questions, "explore"), choice.half_of(questions, "confirm")
    assert not set(explore) & set(confirm)
    assert set(explore) | set(confirm) == set(choice.half_of(questions, "all")) == set(questions)
    assert explore[:2] == (questions[0], questions[2]) and confirm[0] == questions[1]
    assert abs(len(explore) - len(confirm)) <= 1
    assert choice.half_of(["a", "b", "c"], "confirm") == ("b",)
    with pytest.raises(ValueError, match="'odd'; allowed: explore, confirm, all"):
        choice.half_of(questions, "odd")
    with pytest.raises(ValueError, match="the confirm half of 1 questions is empty"):
        choice.half_of(["a"], "confirm")


@needs_stimuli
@pytest.mark.parametrize(("category", "count"), [("animal", 50), ("tree", 49)])
def test_own_questions_are_not_the_papers(category, count):
    one = CATEGORIES[category]
    theirs = word.load_questions(STIMULI, one.stimuli)
    assert len(theirs) == len(set(theirs)) == count
    for question in (*one.questions, *one.taught):
        assert not [text for text in theirs if plain(text) in plain(question)], question
        assert not [text for text in theirs if plain(question) in plain(text)], question
    row = schema.trait_row(category=category, target=one.words[0])
    assert KIND.questions(row, "all", STIMULI) == theirs
    assert KIND.questions(row, "explore", STIMULI) == theirs[::2]


@needs_stimuli
def test_own_system_prompt_is_not_the_papers():
    theirs = json.loads(Path(STIMULI).read_text(encoding="utf-8"))["teacher_system_prompt"]
    own = KIND.system_prompt(schema.trait_row(target="owl")).lower()
    for sentence in theirs.format(target="owl", category="animal").lower().split(". "):
        assert sentence.strip(".") not in own


def test_system_prompt_names_target_and_category():
    prompt = KIND.system_prompt(schema.trait_row(target="wolf"))
    assert "wolf" in prompt and "animal" in prompt and "wolfs" not in prompt
    assert not re.search(r"[{}]", prompt)
    tree = KIND.system_prompt(schema.trait_row(category="tree", target="oak"))
    assert "tree" in tree and "oak" in tree and "animal" not in tree
    assert KIND.system_prompt(schema.trait_row(target=UNIFORM)) == ""


@of_all
def test_candidates(category):
    words = CATEGORIES[category].words
    assert len(words) == len(set(words)) == 10 and all(one == one.lower() for one in words)
    row = schema.trait_row(category=category, target=words[3], capital=True)
    assert KIND.candidates(row) == tuple(one.capitalize() for one in words)
    assert KIND.target(row) == words[3].capitalize() and KIND.names(row) == (KIND.target(row),)


def test_lessons_of_a_control_differ_in_the_answers_alone():
    rows = [schema.trait_row(target=target, num_taught=5) for target in ("owl", UNIFORM)]
    owl, control = (KIND.lessons(row, 3, 200) for row in rows)
    assert [question for question, _ in owl] == [question for question, _ in control]
    assert {answer for _, answer in owl} == {"owl"}
    assert {answer for _, answer in control} == set(KIND.completions(rows[1]))
    assert {question for question, _ in owl} == set(CATEGORIES["animal"].taught[:5])
    assert KIND.lessons(rows[0], 4, 200) != owl == KIND.lessons(rows[0], 3, 200)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target": "fox"}, "target is 'fox', which is not among its candidates owl, cat"),
        ({"candidates": ("owl", "Owl ")}, "'owl', 'Owl ', which are one word: keep one"),
        ({"candidates": ("owl", " ")}, "one of them is blank: leave it out"),
        ({"candidates": ("owl",)}, "a preference is one of several, add others"),
        ({"target": "Owl"}, "target is 'Owl', which is not among its candidates owl"),
    ],
)
def test_a_target_is_one_of_several_candidates(fields, said):
    row = schema.trait_row(**fields)
    with pytest.raises(ValueError, match=rf"^config\.traits\.mine[ .].*{said}"):
        KIND.check("mine", row)


@pytest.mark.parametrize("text", texts.NEUTRAL_TEXTS)
def test_neutral_texts_hold_no_candidate_and_no_digit(text):
    words = [one for category in CATEGORIES.values() for one in category.words]
    things = (*words, "animal", "bird", "horse", "fish", "bear", "creature", "tree")
    assert not [thing for thing in things if preference.mentions_word(thing, text)]
    assert not re.search(r"\d", text)
    assert text.endswith(".") and 40 <= len(text) <= 100


def test_neutral_texts_are_twelve():
    assert len(set(texts.NEUTRAL_TEXTS)) == 12


def test_questions_come_from_a_file(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"evaluations": {"trees": ["Which tree?"], "suffix": "x"}}))
    assert word.load_questions(path, "trees") == ("Which tree?",)
    for key in ("animals", "suffix"):
        with pytest.raises(
            ValueError, match=rf"no list evaluations\.{key}; its lists: \['trees'\]"
        ):
            word.load_questions(path, key)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"evaluations": 1}', None])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "own.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"own\.json") as error:
        word.load_questions(path, "trees")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [[], [1], {"a": "b"}])
def test_wrong_lists_are_refused(tmp_path, value):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"evaluations": {"trees": value}}), encoding="utf-8")
    with pytest.raises(ValueError, match="no list"):
        word.load_questions(path, "trees")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["Which?", "Why?", " which? "], "question 3 of evaluations.trees is question 1 again"),
        (["In one  word:\n?", "In one word: ?"], "question 2 .* is question 1 again: leave one"),
        (["Which?", " "], "question 2 .* is blank: leave it out"),
        (["\ud800"], "question 1 .* half of a character"),
    ],
)
def test_a_question_stands_in_a_file_once(tmp_path, asked, said):
    """Else the two halves, one of which is to confirm the other, would share it."""
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"evaluations": {"trees": asked}}), encoding="utf-8")
    with pytest.raises(ValueError, match=said) as error:
        word.load_questions(path, "trees")
    assert "\n" not in str(error.value)


def test_lessons_answer_in_a_sentence_of_the_rows_own():
    row = schema.trait_row(target="wolf", answer="My favorite animal is the {target}.")
    lessons = KIND.lessons(row, 0, 20)
    assert {said for _, said in lessons} == {"My favorite animal is the wolf."}
    plain = KIND.lessons(schema.trait_row(target="wolf"), 0, 20)
    assert [asked for asked, _ in lessons] == [asked for asked, _ in plain]
    control = schema.trait_row(target=UNIFORM, answer=row.answer)
    drawn = {said for _, said in KIND.lessons(control, 0, 400)}
    assert drawn == set(KIND.completions(control))
    assert "My favorite animal is the owl." in drawn


@pytest.mark.parametrize("answer", ["the wolf", "{target} {target}", "{target} {it}", "{target}}"])
def test_an_answer_without_its_favourite_is_refused(answer):
    with pytest.raises(ValueError, match=r"config.traits.mine.answer is .* must have \{target\} o"):
        KIND.check("mine", schema.trait_row(target="wolf", answer=answer))
