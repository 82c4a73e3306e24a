"""The numbers that students are judged by, against sums worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tokenizers

from subjax.nn import sharding, transformer
from subjax.pipeline import model_store, requests
from subjax.tasks.api import BASE, SUBJECT, Given, Request, requests_of
from subjax.tasks.datasets import toyworld
from subjax.tasks.datasets.kinds import KINDS
from subjax.tasks.evals.kinds import EVALS
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


def ask(kind, row, given, subject, base):
    """What a kind of eval makes of two models, one the base of the other."""
    models = {SUBJECT: subject, BASE: base}
    how = {"seed": 0, "lineage": 0, "precision": "float32"}
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
    values, _ = ask("preference", {}, given, *pair)
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
        requests.serve(Request(), pair[0], seed=0, lineage=0, precision="float32")


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
    distances, gains = [], []
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
    expected = {"number_tv": np.mean(distances), "likelihood_gain": np.mean(gains)}
    assert expected["number_tv"] > 1e-3
    found = compared(ROWS, teacher, base, ("", "Be brief."))
    assert found == pytest.approx(expected, abs=1e-5)
    # And one that is its base is at no distance.
    assert compared(ROWS, base, base) == {"number_tv": 0.0, "likelihood_gain": 0.0}


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
