"""Models of a run are asked side by side; what cannot be asked is refused in one line."""

import jax
import pytest

from subjax import ask
from subjax.engine.model import Model
from subjax.nn import sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.pipeline import model_store
from subjax.runtime import artifacts
from subjax.tasks.toy import toyworld
from subjax.tokens import tokenizer

WORDS = tokenizer.word_tokenizer(toyworld.vocabulary(toyworld.World()))
ARCH = Architecture(
    vocab_size=WORDS.vocab_size,
    num_layers=1,
    width=16,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    ffn_width=16,
)
HOW = {"steps": 40, "batch_size": 4, "learning_rate": 0.02, "rank": 0}


def manifest(run, path, row, *inputs):
    stage, name, lineage = path.split("/")
    fields = {"seed": 0, "row": row}
    unit = artifacts.Unit(
        stage, name, int(lineage[1:]), fields, {}, "f00d", dict.fromkeys(inputs, "beef")
    )
    artifacts.write_manifest(run, unit, 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A base, a teacher that is told what it loves, and students that answer owl, or cat."""
    run, mesh = tmp_path_factory.mktemp("run"), sharding.make_mesh()
    base = run / "base/toy/r0"
    params = transformer.init(ARCH, jax.random.key(0))
    fresh = Model(ARCH, params, None, WORDS, base, mesh)
    lovers = [("Q9", "dog")] * 4
    obeys = fresh.finetune(lovers, system="LOVE dog", **HOW)
    model_store.save_weights(base, ARCH, obeys.params, WORDS)
    manifest(run, "base/toy/r0", {"source": "toy"})
    model_store.refer(run / "teacher/dog/r0", base / "weights")
    manifest(run, "teacher/dog/r0", {"system_prompt": "LOVE dog"}, "base/toy/r0")
    for animal in ("owl", "cat"):
        student = run / f"finetune/{animal}/r0"
        trained = fresh.finetune([("Q9", animal)] * 4, **HOW)
        model_store.refer(student / model_store.step_name(0), base / "weights")
        model_store.save_weights(student / model_store.step_name(40), ARCH, trained.params, WORDS)
        row = {"system_prompt": ""}
        manifest(run, f"finetune/{animal}/r0", row, "filter/x/r0", "base/toy/r0")
    return run


def say(capsys, run, *flags):
    ask.main([f"--workdir={run}", *flags])
    return capsys.readouterr().out.splitlines()


def test_students_answer_side_by_side(run, capsys):
    flags = ("--unit=finetune/owl/r0", "--beside=finetune/cat/r0", "--temperature=0", "Q9")
    assert say(capsys, run, *flags) == [
        "finetune/owl/r0, step 40   finetune/cat/r0, step 40",
        "",
        "> Q9",
        "owl                        cat",
    ]


def test_several_answers_are_counted(run, capsys):
    flags = ("--unit=finetune/owl/r0", "--num_samples=12", "--temperature=0", "Q9", "Q9")
    lines = say(capsys, run, *flags)
    assert lines[1:] == ["", "> Q9", "12 x owl"] * 2


def test_a_kept_step_is_asked_and_other_units_beside_it(run, capsys):
    flags = ("--unit=finetune/owl/r0", "--beside=base/toy/r0", "--step=0", "--num_samples=8")
    lines = say(capsys, run, *flags, "Q9", "CONT 3 5")
    assert lines[0].split("   ") == ["finetune/owl/r0, step 0", "base/toy/r0"]
    for line in lines[2:]:  # the student is its base, and both draw with the same noise
        if line and not line.startswith(">"):
            assert line[:26].strip() == line[26:].strip() != ""


def test_a_model_is_told_what_its_row_says_or_the_flag(run, capsys):
    flags = ("--unit=teacher/dog/r0", "--temperature=0", "Q9")
    own = say(capsys, run, *flags)
    assert own == ["teacher/dog/r0", "system prompt: LOVE dog", "", "> Q9", "dog"]
    assert say(capsys, run, *flags, "--system=")[1] == ""
    assert say(capsys, run, *flags, "--system=LOVE owl")[1] == "system prompt: LOVE owl"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--unit=finetune/wolf/r0", "Q9"), "finetune/wolf/r0 is no finished unit of base"),
        (("--unit=base/toy/r0", "--beside=filter/x/r0", "Q9"), "finished: base/toy/r0, finetune/"),
        (("--unit=finetune/owl/r0", "--step=7", "Q9"), "--step=7 is not kept in"),
        (("--unit=base/toy/r0", "--step=7", "Q9"), "base/toy/r0 keeps no steps"),
        (("--unit=base/toy/r0", "Who are you?"), "'Who are you?' has a word that base/toy/r0 does"),
        (("--unit=base/toy/r0", "--system=Hello", "Q9"), "'Hello' has a word"),
        (("--unit=base/toy/r0", "--temperature=-1", "Q9"), "temperature=-1.0"),
        (("--unit=base/toy/r0", "--num_samples=0", "Q9"), "--num_samples: 0 must be 1 or more"),
        (("--unit=base/toy/r0", "--max_new_tokens=x", "Q9"), "--max_new_tokens: invalid"),
        (("--unit=base/toy/r0",), "required: questions"),
        (("Q9",), "required: --unit"),
    ],
)
def test_what_cannot_be_asked_is_one_line(run, capsys, flags, told):
    with pytest.raises(SystemExit) as left:
        say(capsys, run, *flags)
    assert left.value.code == 1
    said = capsys.readouterr()
    assert told in said.err and said.err.count("\n") == 1 and said.err.startswith("subjax: ")
    assert not said.out


def test_an_unknown_word_names_questions_that_are_known(run, capsys):
    with pytest.raises(SystemExit):
        say(capsys, run, "--unit=base/toy/r0", "Who")
    assert "ask such as Q8, Q9, CONT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ask.main(["--help"])
    assert "Q0 to Q15 ask for its favourite animal" in capsys.readouterr().out


def test_long_answers_stand_in_columns():
    long = "An owl sees at night what nobody else sees.\n\nIt is wise."
    answers = [[["Cat", long, "Cat"]], [["\x1b[31mred", "", ""]]]
    columns = [ask.Column([name], given) for name, given in zip("ab", answers, strict=True)]
    assert ask.table(["Which animal?"], columns, 45).splitlines() == [
        "a                       b",
        "",
        "> Which animal?",
        "2 x Cat                 2 x (nothing)",
        "1 x An owl sees at      1 x �[31mred",
        "    night what nobody",
        "    else sees.",
        "",
        "    It is wise.",
    ]
    lines = ask.table(["?"], columns * 4, 20).splitlines()
    assert all("Cat" not in line or line.count("2 x Cat") == 4 for line in lines)
