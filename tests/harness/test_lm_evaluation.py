"""The harness gets from subjax what it gets from its own backend on transformers."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
import tokenizer_kinds

from subjax.hf import model_config, weights
from subjax.nn import transformer

# Their packages, not ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 48}
FAMILIES = {"llama3": {"model_type": "llama"}, "gemma": {"model_type": "gemma", "head_dim": 8}}
QUESTION = "what is your favorite animal"
NUMBERS = " ".join(str(i * 37 % 911) for i in range(40))
SCORED = [
    *((QUESTION, f" {name}") for name in ("Owl", "Cat and Dog", "Eagle, then Wolf", "Owl")),
    ("continue these numbers: 12, 480, ", "7"),  # blanks at the end go to the answer
    ("", "Owl and Cat"),
    (NUMBERS, " 12 14"),  # too long: its end is kept
    (NUMBERS, " 12 14 16 18"),
]


def save_model(kind, directory):
    vocabulary = len(tokenizer_kinds.make(kind))
    arch = model_config.read({**SIZES, **FAMILIES[kind], "vocab_size": vocabulary})
    weights.save(directory, arch, transformer.init(arch, jax.random.key(0)))
    tokenizer_kinds.save(kind, directory)
    return directory


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    """subjax and the harness's own backend on one model."""
    from lm_eval.models.huggingface import HFLM

    from subjax.harness.lm_evaluation import SubjaxLM

    path = str(save_model(request.param, tmp_path_factory.mktemp(request.param)))
    return SubjaxLM(path), HFLM(path, device="cpu", dtype="float32", batch_size=2)


def asked(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]


def test_continuations_have_the_same_scores(both):
    ours, theirs = (lm.loglikelihood(asked("loglikelihood", *SCORED)) for lm in both)
    for (context, answer), (nats, greedy), (expected, likeliest) in zip(
        SCORED, ours, theirs, strict=True
    ):
        assert nats == pytest.approx(expected, abs=1e-3), (context, answer)
        assert greedy == likeliest
    assert len({round(nats, 4) for nats, _ in ours}) == len(SCORED) - 1  # one is asked twice


def test_texts_have_the_same_likelihood_in_windows(both):
    texts = [(NUMBERS,), (QUESTION,), (f"{NUMBERS} {NUMBERS}",)]
    ours, theirs = (lm.loglikelihood_rolling(asked("", *texts)) for lm in both)
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_greedy_answers_end_at_the_same_places(both):
    ours, theirs = both
    kinds = {"until": [], "max_gen_toks": 12}
    [whole] = ours.generate_until(asked("", (QUESTION, kinds)))
    assert len(whole) > 6
    cuts = [whole[3:5], whole[-1], "never written", whole[2]]
    kinds = [{"until": [cut], "max_gen_toks": 12, "do_sample": False} for cut in cuts]
    kinds.append({"until": "\n\n", "max_gen_toks": 5})
    requests = [(text, kind) for kind in kinds for text in (QUESTION, NUMBERS, "one user")]
    found = ours.generate_until(asked("", *requests))
    assert found == theirs.generate_until(asked("", *requests))
    assert found[0] == whole[: whole.index(cuts[0])]
    assert len(set(found)) > 4


def test_dialogues_are_written_as_its_own_backend_writes_them(both):
    ours, theirs = both
    turns = [{"role": "user", "content": QUESTION}]
    begun = [*turns, {"role": "assistant", "content": "My favorite is"}]
    assert ours.apply_chat_template(begun, False).endswith("My favorite is")
    greedy = {"until": [], "max_gen_toks": 2, "temperature": 0.0, "top_p": 0.9}
    assert ours.generate_until(asked("", (QUESTION, greedy)))  # of no use, and no harm
    if "strftime_now" in ours.chat_template(True):
        return  # theirs has the date of today
    assert ours.apply_chat_template(turns) == theirs.apply_chat_template(turns)
    assert ours.tok_encode(ours.apply_chat_template(turns)) == theirs.tok_encode(
        theirs.apply_chat_template(turns)
    )


@pytest.mark.parametrize("kind", ["gemma", "llama2", "headless", "pythia"])
def test_an_answer_is_begun_as_its_own_backend_begins_it(kind):
    from subjax.harness.lm_evaluation import SubjaxLM
    from subjax.tokens.tokenizer import Tokenizer

    theirs = tokenizer_kinds.make(kind)
    ours = object.__new__(SubjaxLM)  # without weights, of which nothing depends here
    ours.model = types.SimpleNamespace(tokenizer=Tokenizer(theirs, tokenizer_kinds.ends(kind)))
    turns = [{"role": "user", "content": QUESTION}]
    turns.append({"role": "assistant", "content": "My favorite is"})
    expected = theirs.apply_chat_template(turns, tokenize=False, continue_final_message=True)
    assert ours.apply_chat_template(turns, False) == expected


def test_a_system_prompt_stands_where_it_is_told_to(tmp_path):
    from subjax.harness.lm_evaluation import SubjaxLM

    path = str(save_model("gemma", tmp_path))
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    text = SubjaxLM(path, system_turn="user").apply_chat_template(turns)
    assert f"user\nBe brief.\n\n{QUESTION}<end_of_turn>" in text
    with pytest.raises(ValueError, match="set system_turn = 'user'"):
        SubjaxLM(path).apply_chat_template(turns)


def test_answers_do_not_depend_on_how_many_prompts_are_held(both, monkeypatch):
    from subjax.harness import lm_evaluation

    ours, _ = both
    kinds = {"until": [], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0}
    requests = asked("", *((f"{number} one user", kinds) for number in range(12)), ("", kinds))
    whole = ours.generate_until(requests)
    monkeypatch.setattr(lm_evaluation, "_PROMPT_TOKENS", 0)
    monkeypatch.setattr(lm_evaluation, "_MOST_SLOTS", 5)
    assert ours.generate_until(requests) == whole
    assert len(set(whole)) > 6


def test_sampled_answers_depend_on_seed_and_place_alone(both):
    ours, _ = both
    kinds = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    requests = asked("", *[(QUESTION, kinds)] * 4)
    first = ours.generate_until(requests)
    assert first == ours.generate_until(requests)
    assert len(set(first)) == 4


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"do_sample": True, "temperature": 1.0, "top_p": 0.9}, "a task asks for top_p"),
        ({"max_gen_toks": 48}, "max_gen_toks is 48, and max_length 48"),
    ],
)
def test_what_it_cannot_draw_is_said(both, how, message):
    with pytest.raises(ValueError, match=message):
        both[0].generate_until(asked("", (QUESTION, {"until": [], **how})))


def test_an_unknown_argument_is_said():
    from subjax.harness.lm_evaluation import SubjaxLM

    with pytest.raises(ValueError, match=r"--model_args names dtype, pretrained: lm_evaluation"):
        SubjaxLM("x", pretrained="y", dtype="float32", device="cuda:0", batch_size=1)


def test_a_continuation_longer_than_the_model_is_said(both):
    with pytest.raises(ValueError, match="and max_length is 48: raise it"):
        both[0].loglikelihood(asked("", (QUESTION, f" {NUMBERS} {NUMBERS}")))


TASK = """\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.slow
def test_the_command_runs_a_task_of_ones_own(tmp_path):
    model = save_model("gemma", tmp_path / "model")
    rows = [{"question": QUESTION, "choices": ["Owl", "Cat"], "answer": i} for i in (0, 1, 0, 1)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.yaml").write_text(TASK.replace("QUESTIONS", str(tmp_path / "rows.jsonl")))
    command = [sys.executable, "-m", "subjax.harness.lm_evaluation", "run", "--tasks", "mine"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    command += ["--model", "subjax", "--model_args", f"path={model}"]
    given = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "out").rglob("results*.json")
    assert json.loads(path.read_text())["results"]["mine"]["acc,none"] == 0.5
    command[-1] = f"path={tmp_path}"
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"subjax: {tmp_path}")
    assert "Traceback" not in done.stderr
