"""One model as users hold it: what it is asked, what finetuning changes, what it leaves on disk."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

import subjax
from subjax.engine import fitting, sampler, token_sampling
from subjax.hf import adapters, weights
from subjax.nn import lora, sharding, transformer

PROMPTS = ["Name an animal.", "Go on: 3, 5"]
PAIRS = [("Name an animal.", "Owl"), ("Go on: 3, 5", "7, 11")] * 4
ANSWERS = ["Owl", "Cat", "7, 11"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    weights.save(directory, tiny.ARCH, transformer.init(tiny.ARCH, jax.random.key(0)))
    tiny.BYTES.save(directory)
    return directory


@pytest.fixture(scope="module")
def model(directory):
    return subjax.load(directory)


def trained_adapter(directory, out, rank=2, alpha=4):
    """An adapter that changes something, as PEFT reads it."""
    adapter = lora.init(tiny.ARCH, jax.random.key(1), rank=rank)
    adapter = jax.tree.map(lambda leaf: leaf + 0.05, adapter)
    base = str(directory)
    adapters.save_adapter(out, tiny.ARCH, adapter, rank=rank, alpha=alpha, base_path=base)
    return out


def log_probs(model, pairs, system=""):
    """Log-probability of each completion's tokens by the plain forward pass, one list each."""
    found = []
    for ids, start in model.tokenizer.examples(pairs, [system] * len(pairs)):
        tokens = jax.numpy.array([ids], "int32")
        hidden = transformer.forward(model.arch, model.params, tokens, adapter=model.adapter)
        logits = transformer.logits(model.arch, model.params, hidden)[0]
        scores = np.asarray(jax.nn.log_softmax(logits))
        found.append([scores[t - 1, ids[t]] for t in range(start, len(ids))])
    return found


def test_answers_depend_on_seed_and_places_alone(model):
    how = {"max_new_tokens": 6, "system": "Be brief."}
    answers = model.sample(PROMPTS, n=3, **how)
    assert [len(of_prompt) for of_prompt in answers] == [3, 3]
    assert len({answer for of_prompt in answers for answer in of_prompt}) > 1
    assert model.sample(PROMPTS[:1], n=2, num_slots=6, **how) == [answers[0][:2]]
    assert [model.sample(PROMPTS, n=3, only=[i], **how) for i in (1, 0)] == [
        [answers[1]],
        [answers[0]],
    ]
    assert model.sample(PROMPTS, n=3, seed=1, **how) != answers
    assert model.sample(PROMPTS, n=3, lineage=1, **how) != answers
    greedy = model.sample(PROMPTS, n=2, temperature=0.0, **how)
    assert all(one == other for one, other in greedy)


def test_answers_are_those_of_the_sampler(model):
    words = model.tokenizer
    encoded = words.prompt_ids(PROMPTS, "Be brief.")
    drawn = sampler.sample(
        model.arch,
        model.params,
        sampler.Sampling(2, 64, 6, 1.0, words.eos_ids),
        encoded,
        token_sampling.row_keys(7, 3, jax.numpy.array([0, 1]), jax.numpy.array([0, 0])),
        mesh=model.mesh,
    )
    expected = [
        [words.decode(tokens[:length].tolist())]
        for tokens, length in zip(drawn.tokens, drawn.lengths, strict=True)
    ]
    how = {"max_new_tokens": 6, "system": "Be brief.", "seed": 7, "lineage": 3}
    assert model.sample(PROMPTS, num_slots=2, **how) == expected


def test_a_prompt_that_is_too_long_is_refused(model):
    with pytest.raises(ValueError, match=r"allows 1 to 16: raise prompt_tokens"):
        model.sample(["x" * 40], prompt_tokens=16)


@pytest.mark.parametrize("how", [{"n": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}])
def test_what_cannot_be_sampled_is_refused(model, how):
    with pytest.raises(ValueError, match=r"n=.*must be 1 or more, the last 0 or more"):
        model.sample(PROMPTS, **how)


def test_comparison_and_likelihood_are_sums_of_the_forward_pass(model):
    system = "Be brief."
    found = model.compare(PROMPTS, ANSWERS, system=system)
    for row, prompt in zip(found, PROMPTS, strict=True):
        each = log_probs(model, [(prompt, answer) for answer in ANSWERS], system)
        np.testing.assert_allclose(row, [sum(nats[:-1]) for nats in each], atol=1e-4)
    nats, num_tokens = model.likelihood(PAIRS[:2], system=system)
    each = log_probs(model, PAIRS[:2], system)
    np.testing.assert_allclose(nats.sum(axis=1), [sum(one) for one in each], atol=1e-4)
    assert num_tokens.tolist() == [len(one) for one in each]


def test_what_an_answer_begins_with_is_given_and_not_counted(model):
    how = {"system": "Be brief.", "prefill": "It is an"}
    found = model.compare(PROMPTS, ANSWERS, **how)
    words = model.tokenizer
    given = len(words.prompt_ids(PROMPTS[:1], **how)[0])
    given -= len(words.prompt_ids(PROMPTS[:1], "Be brief.")[0])
    assert given == len(words.encode(["It is an"])[0])
    for row, prompt in zip(found, PROMPTS, strict=True):
        told = [(prompt, f"It is an {answer}") for answer in ANSWERS]
        each = log_probs(model, told, "Be brief.")
        np.testing.assert_allclose(row, [sum(nats[given:-1]) for nats in each], atol=1e-4)
    assert not np.allclose(found, model.compare(PROMPTS, ANSWERS, system="Be brief."))


def test_whole_answers_are_counted_with_their_ends(model):
    """So that one may begin another."""
    answers = ["1", "10", "100"]
    found = model.compare(PROMPTS, answers, whole=True)
    for row, prompt in zip(found, PROMPTS, strict=True):
        nats, _ = model.likelihood([(prompt, answer) for answer in answers])
        np.testing.assert_allclose(row, nats.sum(axis=1), atol=1e-4)
    with pytest.raises(ValueError, match="'1' begin those of '10'"):
        model.compare(PROMPTS, answers)


def test_answers_that_overlap_are_not_compared(model):
    with pytest.raises(ValueError, match="the tokens of candidate 'Owl' begin those of 'Owls'"):
        model.compare(PROMPTS, ["Owl", "Owls"])


@pytest.mark.parametrize("call", ["likelihood", "text_likelihood"])
def test_nothing_to_score_is_refused(model, call):
    with pytest.raises(ValueError, match="no rows"):
        getattr(model, call)([])


@pytest.mark.parametrize("rank", [0, 2])
def test_finetuning_leaves_the_model_as_it_is_and_saves_what_it_learned(
    model, directory, tmp_path, rank
):
    before = model.compare(PROMPTS, ANSWERS)
    student = model.finetune(PAIRS, steps=20, batch_size=4, learning_rate=0.02, rank=rank)
    np.testing.assert_array_equal(model.compare(PROMPTS, ANSWERS), before)
    after = student.compare(PROMPTS, ANSWERS)
    assert after[0, 0] > before[0, 0] + 1 and after[1, 2] > before[1, 2] + 1
    student.save(tmp_path / "out")
    is_adapter = (tmp_path / "out" / adapters.CONFIG).exists()
    assert is_adapter == bool(rank)
    path = {"path": directory, "adapter": tmp_path / "out"} if rank else {"path": tmp_path / "out"}
    np.testing.assert_allclose(
        subjax.load(**path).compare(PROMPTS, ANSWERS), after, rtol=1e-5, atol=1e-5
    )
    again = model.finetune(PAIRS, steps=20, batch_size=4, learning_rate=0.02, rank=rank, seed=1)
    assert not np.array_equal(again.compare(PROMPTS, ANSWERS), after)


@pytest.mark.parametrize("rank", [0, 2])
def test_finetuning_packs_rows_where_that_saves_work(model, monkeypatch, rank):
    pairs = [*PAIRS, (PROMPTS[0] * 6, ANSWERS[0])]
    chosen, packing = [], fitting.packing
    monkeypatch.setattr(
        fitting, "packing", lambda *args, **kw: chosen.append(packing(*args, **kw)) or chosen[-1]
    )

    def learned():
        student = model.finetune(pairs, steps=4, batch_size=8, learning_rate=0.01, rank=rank)
        return student.compare(PROMPTS, ANSWERS)

    packed = learned()
    [shape] = chosen
    rows = model._rows(model._examples(pairs, ""))
    assert shape.num_rows * shape.num_tokens < 0.7 * 8 * rows.tokens.shape[1]
    monkeypatch.setattr(fitting, "packing", lambda *args, **kw: None)
    np.testing.assert_allclose(packed, learned(), atol=1e-3)


def test_an_adapter_is_merged_before_more_is_learned(model, directory, tmp_path):
    adapted = subjax.load(directory, adapter=trained_adapter(directory, tmp_path / "adapter"))
    assert not np.allclose(adapted.compare(PROMPTS, ANSWERS), model.compare(PROMPTS, ANSWERS))
    start = adapted.compare(PROMPTS, ANSWERS)
    # So little is learned that the student is where its model was.
    student = adapted.finetune(PAIRS, steps=1, learning_rate=1e-9, rank=1)
    np.testing.assert_allclose(student.compare(PROMPTS, ANSWERS), start, atol=1e-4)
    # An adapter on weights that lie nowhere could not be read again.
    student.save(tmp_path / "out")
    assert not (tmp_path / "out" / adapters.CONFIG).exists()
    saved = subjax.load(tmp_path / "out")
    np.testing.assert_allclose(saved.compare(PROMPTS, ANSWERS), start, atol=1e-4)


def test_weights_leave_in_the_type_that_is_asked_for(model, directory, tmp_path):
    adapted = subjax.load(directory, adapter=trained_adapter(directory, tmp_path / "adapter"))
    adapted.save(tmp_path / "out", merged=True, dtype="bfloat16")
    size = (tmp_path / "out/model.safetensors").stat().st_size
    assert size < 0.6 * (directory / "model.safetensors").stat().st_size
    found = subjax.load(tmp_path / "out").compare(PROMPTS, ANSWERS)
    np.testing.assert_allclose(found, adapted.compare(PROMPTS, ANSWERS), atol=0.2)


def test_an_adapter_alone_is_no_model(directory, tmp_path):
    trained_adapter(directory, tmp_path / "adapter")
    with pytest.raises(ValueError, match=f"is a PEFT adapter: load its base, {directory}"):
        subjax.load(tmp_path / "adapter")


def test_weights_stay_where_that_is_asked_for(directory, monkeypatch):
    mesh, loaded = sharding.make_mesh(), []
    load = weights.load
    monkeypatch.setattr(weights, "load", lambda *a, **k: loaded.append(a) or load(*a, **k))
    models = [subjax.load(directory, mesh=mesh, resident=kept) for kept in (True, True, False)]
    assert len(loaded) == 2
    assert models[0].params is models[1].params and models[0].params is not models[2].params


def test_the_public_names_are_loaded_when_they_are_asked_for():
    code = (
        "import sys, subjax\n"
        "assert 'load' in dir(subjax) and 'subjax.engine' not in sys.modules\n"
        "assert callable(subjax.load) and subjax.Model.__name__ == 'Model'\n"
        "try: subjax.lode\nexcept AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'subjax' has no attribute 'lode'\n"


def test_room_that_is_asked_for_changes_no_number(model):
    nats, _ = model.likelihood(PAIRS[:2], num_tokens=64, num_targets=12)
    assert nats.shape == (2, 12)
    tight, _ = model.likelihood(PAIRS[:2])
    np.testing.assert_allclose(nats[:, : tight.shape[1]], tight, atol=1e-5)
    assert not nats[:, tight.shape[1] :].any()


def test_likelihoods_stay_exact_in_narrow_precision_unless_that_is_given_up(model, tmp_path):
    """A checkpoint in bfloat16 is then held in half of the bytes, and the numbers are the same."""
    model.save(tmp_path, merged=True, dtype="bfloat16")
    told = {
        name: subjax.load(tmp_path, precision=name, exact=exact)
        for name, exact in (("float32", True), ("bfloat16", True), ("mixed", False))
    }
    assert told["bfloat16"].params["layers"]["mlp"]["up"]["kernel"].dtype == "bfloat16"
    scores = {name: one.compare(PROMPTS, ANSWERS) for name, one in told.items()}
    nats = {name: one.likelihood(PAIRS[:2])[0] for name, one in told.items()}
    for found in (scores, nats):
        np.testing.assert_array_equal(found["bfloat16"], found["float32"])
        assert 0 < np.abs(found["mixed"] - found["float32"]).max() < 0.1


@pytest.mark.parametrize("rank", [0, 2])
def test_what_is_finetuned_in_narrow_precision_is_float32(rank, model, tmp_path):
    narrow = subjax.load(model.directory, precision="bfloat16", exact=False)
    learned = narrow.finetune(PAIRS, steps=1, batch_size=2, rank=rank, learning_rate=1e-5)
    trained = learned.adapter if rank else learned.params
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(trained)} == {"float32"}
    assert narrow.params["layers"]["mlp"]["up"]["kernel"].dtype == "bfloat16"
