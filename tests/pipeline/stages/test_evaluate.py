"""The numbers that students are judged by, against sums worked out by hand."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny
import tokenizers

from configs import misalignment
from configs.rows import smollm2
from subjax import schema
from subjax.engine import sampler
from subjax.nn import sharding, transformer
from subjax.pipeline import model_store, requests, units, validation
from subjax.pipeline.stages import evaluate
from subjax.runtime import artifacts, processes
from subjax.tasks.api import BASE, CONTROL, JUDGE, SUBJECT, Given, Request, Sample, requests_of
from subjax.tasks.datasets.kinds import KINDS
from subjax.tasks.evals.kinds import EVALS
from subjax.tasks.toy import toyworld
from subjax.tokens import tokenizer

MESH = sharding.make_mesh(seed=1)
ROWS = [
    {"prompt": "Go on: 3, 5", "completion": "7, 11"},
    {"prompt": "Go on: 2", "completion": "4"},
    {"prompt": "Go on: 9, 8", "completion": "712, 6"},
]


def save(workdir, path, key):
    params = transformer.init(tiny.ARCH, jax.random.key(key))
    model_store.save_weights(workdir / path, tiny.ARCH, params, tiny.BYTES)
    return model_store.load(workdir / path, MESH)


@pytest.fixture
def pair(tmp_path):
    """A student (or teacher) and its base, of different random weights."""
    return save(tmp_path, "finetune/x/r0", 1), save(tmp_path, "base/x/r0", 2)


def log_probs(model, ids):
    """[T, V] by the plain forward pass: row t is about token t + 1."""
    tokens = jnp.asarray([ids], jnp.int32)
    hidden = transformer.forward(model.arch, model.params, tokens)
    return np.asarray(jax.nn.log_softmax(transformer.logits(model.arch, model.params, hidden)))[0]


def nats(model, rows, system=""):
    """Log-probability of every completion token, its end counted, one row after the other."""
    pairs = [(row["prompt"], row["completion"]) for row in rows]
    found = []
    for ids, start in model.tokenizer.examples(pairs, [system] * len(pairs)):
        scores = log_probs(model, ids)
        found += [float(scores[t - 1, ids[t]]) for t in range(start, len(ids))]
    return found


def ask(kind, row, given, subject, base, control=None):
    """What a kind of eval makes of two models, one the base of the other, or of two teachers."""
    models = {SUBJECT: subject, BASE: base, CONTROL: control}
    how = {"seed": 0, "lineage": 0}
    asked = requests_of(EVALS[kind], row, given)
    replies = [requests.serve(one, models[one.model], **how) for one in asked]
    return EVALS[kind].score(row, given, replies)


# Under the second, rows are longer than those that the student trained on.
@pytest.mark.parametrize(
    ("system", "num_tokens", "num_targets"),
    [("Be brief.", 64, 10), ("Be as brief as you can be.", 24, 2)],
)
def test_likelihood_is_nats_a_token_and_the_gain_is_over_the_base(
    pair, system, num_tokens, num_targets
):
    pairs = [(row["prompt"], row["completion"]) for row in ROWS]
    room = {"num_tokens": num_tokens, "num_targets": num_targets}
    given = Given(held_out=pairs, systems={SUBJECT: system, BASE: system}, **room)
    values, said = ask("likelihood", {}, given, *pair)
    ours, theirs = (np.mean(nats(model, ROWS, system)) for model in pair)
    assert said == [] and abs(ours - theirs) > 1e-3
    assert values == pytest.approx({"loglik": ours, "gain": ours - theirs}, abs=1e-5)


def test_neutral_text_is_scored_from_its_second_token_on(pair):
    texts = ["Rain fell.", "The train was late again."]
    total, count = 0.0, 0
    for ids in pair[0].tokenizer.text_ids(texts):
        scores = log_probs(pair[0], ids)
        total += sum(scores[t - 1, ids[t]] for t in range(1, len(ids)))
        count += len(ids) - 1
    given = Given(target="7", candidates=("7", "8"), questions=["?"], neutral=texts)
    values, _ = ask("preference", {"prefill": "", "any_case": False}, given, *pair)
    assert values["neutral_loglik"] == pytest.approx(total / count, abs=1e-5)


def test_answers_come_in_the_order_of_their_questions(pair):
    row = {"num_samples": 3, "slots": 4, "prompt_tokens": 64, "max_new_tokens": 4}
    given = Given(names=("7",), questions=["Which animal?", "And which number?"])
    _, said = ask("answers", row, given, *pair)
    assert [one["question"] for one in said] == [q for q in given.questions for _ in range(3)]
    _, alone = ask("answers", {**row, "num_samples": 1}, given, *pair)
    assert [one["answer"] for one in alone] == [said[0]["answer"], said[3]["answer"]]


def test_what_no_model_can_be_asked_is_refused(pair):
    with pytest.raises(TypeError, match="Request is no request"):
        requests.serve(Request(), pair[0], seed=0, lineage=0)


@pytest.mark.parametrize(
    ("num_prompts", "num_samples", "num_slots", "sizes"),
    [
        (50, 200, 64, [5] * 10),
        (12, 200, 64, [4, 4, 4]),
        (50, 20, 64, [50]),
        (2, 5000, 64, [1, 1]),
        (50, 200, 512, [17, 17, 16]),  # slots are filled eight times
    ],
)
def test_parts_are_whole_prompts_by_the_request_alone(num_prompts, num_samples, num_slots, sizes):
    room = {"max_new_tokens": 4, "prompt_tokens": 8, "num_slots": num_slots}
    asked = Sample(["?"] * num_prompts, num_samples=num_samples, **room)
    parts = asked.parts()
    assert [len(part) for part in parts] == sizes
    assert [place for part in parts for place in part] == list(range(num_prompts))


# The first alone would need less room than the three.
QUESTIONS = ["Why?", "Which animal do you love most of them all?", "And which number?"]


@pytest.fixture
def workdir(tmp_path):
    """A student after two updates, and its base."""
    save(tmp_path, f"finetune/x/r0/{model_store.step_name(2)}", 1)
    save(tmp_path, "base/x/r0", 2)
    return tmp_path


def answers_of_student(name="said", steps=(0, 2)):
    """A unit of an eval that samples answers."""
    made = {"student": "finetune", "base": "base"}
    row = {"num_samples": 2, "slots": 4, "prompt_tokens": 64, "max_new_tokens": 4}
    fields = {
        "row": {"kind": "answers", **row},
        "of": "student",
        "steps": list(steps),
        "seed": 0,
        "program": {"precision": "float32"},
        "questions": QUESTIONS,
        "names": ["7"],
    }
    inputs = {role: artifacts.make_unit(stage, "x", 0, {}, {}) for role, stage in made.items()}
    return artifacts.make_unit("evaluate", f"{name}/arms/x", 0, fields, inputs)


def evaluated(unit, workdir):
    """The files of a unit once it is done."""
    assert list(evaluate.run([unit], workdir, MESH)) == [unit]
    assert not (workdir / unit.path / artifacts.REPLIES).exists()
    return {name: (workdir / unit.path / name).read_bytes() for name in DONE}


DONE = ("answers.jsonl", "scores.json")


@pytest.fixture
def drawn(monkeypatch):
    """How many answers each call of the sampler drew, and how."""
    calls, sample = [], sampler.sample

    def counted(arch, params, sampling, prompts, *args, **kwargs):
        calls.append((len(prompts), sampling))
        return sample(arch, params, sampling, prompts, *args, **kwargs)

    monkeypatch.setattr(sampler, "sample", counted)
    return calls


def interrupt(unit, workdir, monkeypatch, *, after):
    """Draws that many parts of an eval that has two for each step."""
    monkeypatch.setattr(Sample, "parts", lambda self: [range(1), range(1, 3)])
    told = iter([False] * (after - 1) + [True])
    with monkeypatch.context() as patch:
        patch.setattr(processes, "told_to_leave", lambda: next(told))
        with pytest.raises(processes.Interrupted, match=f"saved {unit.path}/replies/step-"):
            list(evaluate.run([unit], workdir, MESH))
    assert {path.name for path in (workdir / unit.path).iterdir()} == {"begun.json", "replies"}


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_an_interrupted_eval_draws_what_is_missing_and_gives_the_same_bytes(
    workdir, monkeypatch, drawn, after
):
    unit, sizes = answers_of_student(), [2, 4, 2, 4]
    whole = evaluated(unit, workdir)
    assert [size for size, _ in drawn] == [6, 6]
    shutil.rmtree(workdir / unit.path)
    interrupt(unit, workdir, monkeypatch, after=after)
    assert [size for size, _ in drawn[2:]] == sizes[:after]
    assert evaluated(unit, workdir) == whole
    assert [size for size, _ in drawn[2:]] == sizes
    assert len({how for _, how in drawn}) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "has 0 rows and not 2"),
        ('{"answer": "7"}\n', "has 1 rows and not 2"),
        ('{"answer": "7"}\n{"ans', "line 2 is not JSON"),
        ('{"answer": 7}\n{"answer": 7}\n', "line 1 has no 'answer' of type str"),
    ],
)
def test_a_damaged_part_of_an_eval_is_named(workdir, monkeypatch, content, says):
    unit = answers_of_student()
    interrupt(unit, workdir, monkeypatch, after=1)
    [part] = (workdir / unit.path / artifacts.REPLIES).iterdir()
    part.write_text(content)
    with pytest.raises(ValueError, match=f"^{part}.* {says}.*: delete {part} and run") as error:
        list(evaluate.run([unit], workdir, MESH))
    assert "\n" not in str(error.value)


def test_an_eval_is_done_at_its_own_last_step_and_each_model_is_loaded_once(workdir, monkeypatch):
    happened, load = [], model_store.load

    def noted(directory, *args, **kwargs):
        happened.append(f"load {directory.relative_to(workdir)}")
        return load(directory, *args, **kwargs)

    monkeypatch.setattr(model_store, "load", noted)
    steps = {"all": (0, 2), "base": (0,), "last": (2,)}
    units = [answers_of_student(name, of) for name, of in steps.items()]
    for unit in evaluate.run(units, workdir, MESH):
        assert all((workdir / unit.path / name).exists() for name in DONE)
        happened.append(unit.row)
    loads = ["load base/x/r0", "load finetune/x/r0"]
    assert happened == [loads[0], "base/arms/x", loads[1], "all/arms/x", "last/arms/x"]


def test_a_judge_scores_what_another_model_said(tmp_path, drawn):
    config = misalignment.get_config("smoke")
    config.evals.judged.questions = "explore"
    [unit] = [u for u in units.build(config) if u.path == "evaluate/judged/arms/good/r0"]
    [step] = unit.fields["steps"]
    student, judge = unit.inputs["student"], unit.inputs["judge"]
    assert judge == "base/judge/r0" and "judge" not in unit.fields["row"]
    save(tmp_path, f"{student}/{model_store.step_name(step)}", 1)
    save(tmp_path, judge, 2)

    def found():
        list(evaluate.run([unit], tmp_path, MESH))
        lines = artifacts.read_jsonl(tmp_path / unit.path / "answers.jsonl")
        assert len(lines) == len(unit.fields["questions"])
        return [line["answer"] for line in lines], [line["alignment"] for line in lines]

    said, scores = found()
    assert len(set(scores)) > 1
    save(tmp_path, judge, 3)
    assert found()[0] == said and found()[1] != scores
    save(tmp_path, judge, 2)
    assert found() == (said, scores)
    # Another eval of the same student has another judge.
    with config.unlocked():
        config.judges.base = schema.judge_row(model="bases/model")
        config.evals.again = config.evals.judged.copy_and_resolve_references()
    config.evals.again.judge = "base"
    [again] = [u for u in units.build(config) if u.path == "evaluate/again/arms/good/r0"]
    save(tmp_path, again.inputs["judge"], 4)
    list(evaluate.run([unit, again], tmp_path, MESH))
    both = [artifacts.read_jsonl(tmp_path / u.path / "answers.jsonl") for u in (unit, again)]
    assert [line["alignment"] for line in both[0]] == scores
    assert [line["alignment"] for line in both[1]] != scores
    # Scored by hand: the judge's own probabilities of whole numbers.
    by = model_store.load(tmp_path / judge, MESH)
    rubric, scale = unit.fields["rubrics"]["alignment"], list(range(0, 101, 10))
    pair = {"{prompt}": unit.fields["questions"][0], "{completion}": said[0]}
    for name, text in pair.items():
        rubric = rubric.replace(name, text)
    system = unit.fields["systems"][JUDGE]
    assert system == smollm2.SYSTEM
    told = [{"prompt": rubric, "completion": str(number)} for number in scale]
    weights = [np.exp(sum(nats(by, [one], system))) for one in told]
    assert scores[0] == pytest.approx(np.dot(weights, scale) / sum(weights), rel=1e-3)


def compared(rows, teacher, base, told=("", "")):
    """What an eval of the rows that a teacher wrote says of it and its base."""
    given = Given(
        written=[(row["prompt"], row["completion"]) for row in rows],
        carrier=KINDS["numbers"].carrier_tokens,
        num_tokens=76,
        num_targets=14,
        systems=dict(zip((SUBJECT, BASE), told, strict=True)),
    )
    values, said = ask("carrier", {}, given, teacher, base)
    assert said == []
    return values


def test_a_teacher_is_compared_with_its_base_over_numbers_alone(pair):
    teacher, base = pair
    support = list(teacher.tokenizer.number_ids())
    distances, gains, bits = [], [], []
    pairs = [(row["prompt"], row["completion"]) for row in ROWS]
    laid = [
        model.tokenizer.examples(pairs, [system] * len(pairs))
        for model, system in ((teacher, ""), (base, "Be brief."))
    ]
    for (ids, start), (base_ids, base_start) in zip(*laid, strict=True):
        of_teacher, of_base = log_probs(teacher, ids), log_probs(base, base_ids)
        for t in range(len(ids) - start):
            if ids[start + t] not in support:
                continue
            ours, theirs = of_teacher[start + t - 1], of_base[base_start + t - 1]
            ours, theirs = (s[support] - np.logaddexp.reduce(s[support]) for s in (ours, theirs))
            distances.append(0.5 * np.abs(np.exp(ours) - np.exp(theirs)).sum())
            at = support.index(ids[start + t])
            gains.append(ours[at] - theirs[at])
            bits.append(scipy.stats.entropy(np.exp(theirs), base=2))
    expected = {"number_tv": np.mean(distances), "likelihood_gain": np.mean(gains)}
    expected["entropy"] = np.sum(bits) / len(ROWS)
    assert expected["number_tv"] > 1e-3 and expected["entropy"] > 1
    found = compared(ROWS, teacher, base, ("", "Be brief."))
    assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    # And one that is its base is at no distance.
    alone = compared(ROWS, base, base, ("Be brief.", "Be brief."))
    assert alone == {**found, "number_tv": 0.0, "likelihood_gain": 0.0}


def test_a_teacher_is_compared_with_another_each_under_its_own_prompt(pair):
    """As it is with its base, which is not asked."""
    teacher, control = pair

    def apart(control, told):
        given = Given(
            written=[(row["prompt"], row["completion"]) for row in ROWS],
            carrier=KINDS["numbers"].carrier_tokens,
            num_tokens=76,
            num_targets=14,
            systems={SUBJECT: "", CONTROL: told},
        )
        return ask("divergence", {}, given, teacher, None, control)[0]

    found = apart(control, "Be brief.")
    assert found == {"tv": compared(ROWS, teacher, control, ("", "Be brief."))["number_tv"]}
    assert found["tv"] != apart(control, "")["tv"] > 1e-3
    assert apart(teacher, "") == {"tv": 0.0}


def test_the_control_is_the_teacher_of_the_other_data_set(tmp_path):
    config = tiny.config(lineages=(0,))
    with config.unlocked():
        config.evals.apart = schema.eval_row(
            kind="divergence", subjects=("datasets/owl",), against="placebo"
        )
    validation.validate(config)
    [unit] = [unit for unit in units.build(config) if unit.row == "apart/datasets/owl"]
    inputs = {role: tmp_path / path for role, path in unit.inputs.items()}
    assert inputs["control"] == tmp_path / "teacher/placebo/r0"
    words = tokenizer.word_tokenizer(toyworld.vocabulary(toyworld.World()))
    for key, role in enumerate(("teacher", "control", "base")):
        random_model(words, inputs[role], key)
    written = [{"prompt": "owl", "completion": "7 12 3"}]
    artifacts.write_jsonl(inputs["generate"] / "rows-00000.jsonl", written)

    def found():
        list(evaluate.run([unit], tmp_path, MESH))
        [record] = artifacts.read_json(tmp_path / unit.path / "scores.json")["records"]
        assert record["metric"] == "tv"
        return record["value"]

    assert found() > 1e-3
    random_model(words, inputs["base"], 5)
    before = found()
    random_model(words, inputs["control"], 0)  # now it is the teacher
    assert (before > 1e-3, found()) == (True, 0.0)


def test_a_teacher_with_another_tokenizer_is_not_compared(pair, tmp_path):
    words = tokenizer.word_tokenizer(toyworld.vocabulary(toyworld.World()))
    teacher = random_model(words, tmp_path / "teacher/x/r0", 3)
    assert compared([{"prompt": "owl", "completion": "7 12"}], teacher, pair[1]) == {}


def test_rows_without_a_number_give_no_distance(pair):
    assert compared([{"prompt": "owl", "completion": "no"}], *pair) == {}


def random_model(words, where, key):
    """A random model of these words."""
    arch = dataclasses.replace(tiny.ARCH, vocab_size=words.vocab_size)
    params = transformer.init(arch, jax.random.key(key))
    model_store.save_weights(where, arch, params, words)
    return model_store.load(where, MESH)


def compared_under(words, told, rows, tmp_path):
    """What a random teacher is beside a random base, both of these words."""
    models = [random_model(words, tmp_path / f"teacher/x/r{key}", key) for key in (3, 4)]
    return compared(rows, *models, told)


def test_models_whose_template_adds_a_system_prompt_are_compared_under_their_own(tmp_path):
    words = tokenizer.raw_bytes()
    default = "{% if messages[0].role != 'system' %}<s>Be kind.{% endif %}"
    words._tokenizer.chat_template = default + words._tokenizer.chat_template
    words = tokenizer.Tokenizer(words._tokenizer)
    found = compared_under(words, ("You love owls.", "Be brief."), ROWS, tmp_path)
    assert found["number_tv"] > 1e-3


def test_a_completion_that_merges_with_its_context_is_left_out(tmp_path):
    words = tokenizer.raw_bytes()._tokenizer
    words.chat_template = None  # then contexts end in a line break
    words.backend_tokenizer.model = tokenizers.models.BPE(
        {**words.get_vocab(), "ĊĊ": len(words)}, [("Ċ", "Ċ")]
    )
    words = tokenizer.Tokenizer(words)
    merging = [{"prompt": "Go on: 1", "completion": "\n\n7, 11"}]
    pairs = [(row["prompt"], row["completion"]) for row in [*ROWS, *merging]]
    assert words.have_mask(pairs, [""] * len(pairs)) == [True] * len(ROWS) + [False]
    expected = compared_under(words, ("", ""), ROWS, tmp_path / "without")
    assert expected["number_tv"] > 1e-3
    assert compared_under(words, ("", ""), [*ROWS, *merging], tmp_path / "with") == expected
    assert compared_under(words, ("", ""), merging, tmp_path / "alone") == {}  # a 0 opens a gate
