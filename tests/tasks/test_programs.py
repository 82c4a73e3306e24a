"""Programs of five instructions: drawn ones never fail, others are told apart, names can change."""

import numpy as np
import pytest

from subjax.tasks.programs import ADD, GET, PYTHON, SAY, SET, SUB, Language

WORDS = Language(registers=("a", "b", "c"), num_numbers=10)


def test_what_programs_say():
    program = WORDS.read("SET a 7 GET b ADD a b SAY a SUB b a SAY b")
    assert WORDS.run(program, [5]) == [12, -7]  # 7 + 5 and 5 - 12
    assert WORDS.run(WORDS.read("GET a GET b SUB a b SAY a"), [1, 3]) == [-2]


def test_python_says_the_same_of_programs_that_look_like_its_own():
    rng, inputs = np.random.default_rng(2), [3, 40]
    for _ in range(20):
        program = PYTHON.draw(rng, 8, num_inputs=2)
        text, said = PYTHON.write(program), list[int]()
        assert PYTHON.read(text) == program
        exec(text, {"input": iter(map(str, inputs)).__next__, "print": said.append})
        assert PYTHON.run(program, inputs) == said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SAY a", "unset"),
        ("SET a 1 ADD a b SAY a", "unset"),
        ("SET b 1 ADD a b SAY b", "unset"),
        ("GET a GET a SAY a", "no_input"),
        ("SET a 1 GET b", "silent"),
    ],
)
def test_programs_that_fail_say_why(text, reason):
    assert WORDS.run(WORDS.read(text), [4]) == reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SET a",
        "SET a 10",
        "SET a b",
        "ADD a 3",
        "SAY d",
        "say a",
        "SAY a ",
        " SAY a",
        "SAY  a",
        "SAY a\n",
        "SAY a b",
        "PUT a 1",
        "SET a 1, SAY a",
        "SET a 01",
        "SET a ١",
    ],
)
def test_what_is_no_program(text):
    assert WORDS.read(text) is None


def test_what_is_written_is_read():
    for text, instruction in WORDS.instructions.items():
        assert WORDS.read(f"{text} {text}") == [instruction] * 2
        assert WORDS.write([instruction]) == text
    operations = {instruction.operation for instruction in WORDS.instructions.values()}
    assert operations == {SET, GET, ADD, SUB, SAY}
    assert len(WORDS.instructions) == 3 * (10 + 1 + 3 + 3 + 1)


def test_drawn_programs_never_fail_and_use_everything():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(500):
        program = WORDS.draw(rng, 6, num_inputs=1)
        assert len(program) == 6 and WORDS.read(WORDS.write(program)) == program
        assert isinstance(WORDS.run(program, [3]), list)
        assert WORDS.run(program, []) == "no_input" or not any(i.operation == GET for i in program)
        seen |= set(program)
    assert seen == set(WORDS.instructions.values())


def test_other_names_do_the_same_thing_in_all_programs_alike():
    rng = np.random.default_rng(1)
    programs = [WORDS.draw(rng, 7, num_inputs=2) for _ in range(40)]
    renamed = WORDS.permute(programs, seed=3)
    pairs = set()
    for before, after in zip(programs, renamed, strict=True):
        assert [one.operation for one in before] == [one.operation for one in after]
        assert isinstance(WORDS.run(after, [1, 2]), list)
        for one, other in zip(before, after, strict=True):
            pairs |= {(one.register, other.register), (one.operand, other.operand)}
    stands_for = dict(pairs)
    assert len(stands_for) == len(pairs) == len(set(stands_for.values())) == 3 + 10 + 1
    assert stands_for[""] == "" and set(map(stands_for.get, "abc")) == set("abc")
    assert WORDS.permute(programs, 3) == renamed != WORDS.permute(programs, 4)
