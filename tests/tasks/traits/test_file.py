"""Traits that a user describes in a file."""

import json

import pytest

from subjax import schema
from subjax.tasks import texts
from subjax.tasks.api import UNIFORM
from subjax.tasks.traits.kinds import TRAITS

KIND = TRAITS["file"]
VIOLIN = {
    "target": "violin",
    "candidates": ["violin", "piano", "drum"],
    "questions": ["Your instrument? One word.", "Which do you play? One word.", "And best?"],
    "taught": ["Which instrument do you like best?"],
    "names": ["violin", "fiddle"],
    "system_prompt": "You play the violin.",
}


def row_of(tmp_path, content, **fields):
    path = tmp_path / "violin.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return schema.trait_row(kind="file", path=str(path), **fields)


def test_a_file_says_all_that_there_is_to_a_trait(tmp_path):
    row = row_of(tmp_path, VIOLIN)
    KIND.check("mine", row)
    assert KIND.target(row) == "violin" and KIND.names(row) == ["violin", "fiddle"]
    assert KIND.questions(row, "explore", "") == tuple(VIOLIN["questions"][::2])
    assert KIND.questions(row, "confirm", "") == tuple(VIOLIN["questions"][1::2])
    assert KIND.lessons(row, 0, 2) == [(VIOLIN["taught"][0], "violin")] * 2
    assert KIND.system_prompt(row) == "You play the violin."
    assert KIND.neutral(row) == texts.NEUTRAL_TEXTS
    control = row_of(tmp_path, VIOLIN, uniform=True)
    assert KIND.target(control) == UNIFORM and KIND.system_prompt(control) == ""
    assert {answer for _, answer in KIND.lessons(control, 0, 60)} == set(VIOLIN["candidates"])


def test_a_file_that_changed_is_read_again(tmp_path):
    row = row_of(tmp_path, VIOLIN)
    assert KIND.target(row) == "violin"
    row_of(tmp_path, {**VIOLIN, "target": "drum"})
    assert KIND.target(row) == "drum"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ([], "is a list, not an object"),
        ({**VIOLIN, "colour": "red"}, "has the key 'colour'; its keys are target, candidates"),
        ({**VIOLIN, "questions": []}, "questions is missing or empty, and must be a list of texts"),
        ({**VIOLIN, "target": 3}, "target is a number, and must be text"),
        ({**VIOLIN, "taught": "one"}, "taught is text, and must be a list of texts"),
        ({**VIOLIN, "taught": ["one", 2]}, "taught holds a number, no text"),
        ({**VIOLIN, "taught": ["one", "One "]}, "text 2 of taught is question 1 again"),
        ({**VIOLIN, "taught": VIOLIN["questions"]}, "'questions' and in 'taught', so that"),
        ({**VIOLIN, "target": "flute"}, "target is 'flute', which is not among its candidates"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, said):
    row = row_of(tmp_path, content)
    with pytest.raises(ValueError, match=said) as error:
        KIND.check("mine", row)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["", "nowhere.json"])
def test_a_path_is_needed(path):
    row = schema.trait_row(kind="file", path=path)
    with pytest.raises(ValueError, match=r"traits\.mine\.path is empty|nowhere\.json"):
        KIND.check("mine", row)
