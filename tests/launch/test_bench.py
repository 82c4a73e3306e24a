"""launch/bench.py's language models: the figures are there and finite; how large is not tested."""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizer_kinds
import torch
import transformers
from tiny import ARCH

from subjax.hf import model_config
from subjax.nn import transformer
from subjax.runtime import chips

LAUNCH = Path(__file__).parents[2] / "launch"
sys.path.insert(0, str(LAUNCH))  # they import each other
import bench_compare  # noqa: E402
import bench_lm  # noqa: E402
import bench_subjax  # noqa: E402
import bench_torch  # noqa: E402

FACTS = {"device", "jax", "model"}
SMALL = {
    "train": ("--rows=2", "--tokens=12", "--targets=4", "--lora-rank=2", "--updates=2"),
    "sample": ("--rows=5", "--slots=2", "--prompt-tokens=4", "--new-tokens=6", "--mean-tokens=3"),
}


@pytest.fixture
def arguments(tmp_path):
    """What makes a task short: a tiny model, few rows."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(model_config.write(ARCH)))
    return lambda what: [what, f"--model={path}", "--repeats=2", *SMALL[what]]


def measured(capsys, command):
    """What one side prints."""
    parser = argparse.ArgumentParser()
    bench_lm.add_commands(parser.add_subparsers(dest="what"))
    bench_lm.run(parser.parse_args(command))
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "1 x cpu" and found["jax"] == jax.__version__
    assert f"{transformer.num_params(ARCH):,} parameters" in found["model"]
    return found


def keys_of(what):
    return {key for key, _ in bench_lm.COLUMNS[what].values()}


def checked_training(found, keys):
    assert set(found) == FACTS | keys
    assert all(math.isfinite(found[key]) for key in keys)
    assert all(found[key] > 0 for key in keys - {"spread"})
    # Rows are as long as they may be; the last token is predicted and not read.
    trained, processed = found["trained_tokens_per_s"], found["processed_tokens_per_s"]
    assert processed / trained == pytest.approx(11 / 4, rel=1e-3)


@pytest.mark.slow
def test_training_where_the_peak_is_known(arguments, capsys, monkeypatch):
    monkeypatch.setattr(chips, "peak_of", lambda kind: 1e12)
    checked_training(measured(capsys, [*arguments("train"), "--side=lora"]), keys_of("train"))


def test_sampling(arguments, capsys):
    found = measured(capsys, [*arguments("sample"), "--side=sample"])
    assert set(found) == FACTS | keys_of("sample")
    assert all(math.isfinite(found[key]) for key in keys_of("sample"))
    assert all(found[key] > 0 for key in keys_of("sample") - {"spread"})
    assert 1 <= found["mean_length"] <= 6 and found["occupancy"] <= 1


@pytest.mark.slow
def test_without_a_peak_there_is_no_mfu_and_what_does_not_fit_says_so(
    arguments, capsys, monkeypatch
):
    found = measured(capsys, [*arguments("train"), "--side=full"])
    checked_training(found, keys_of("train") - {"mfu", "real_mfu"})

    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(bench_lm, "_train", full)
    other = measured(capsys, [*arguments("train"), "--side=full"])
    heading, *lines = bench_lm.table("train", {"full": other, "lora": found}).splitlines()
    assert lines[0] == "full      does not fit the memory of the device"
    assert len(lines[1]) == len(heading) and lines[1].split()[7:9] == ["–"] * 2


@pytest.mark.slow
def test_the_command_prints_a_table(arguments):
    command = [sys.executable, str(LAUNCH / "bench.py"), *arguments("sample")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    heading, line, _, device, model, settings = done.stdout.splitlines()
    assert heading.split()[-2:] == ["peak", "GB"] and line.startswith("sample ")
    assert device == f"1 x cpu, jax {jax.__version__}" and model.endswith(" parameters, random")
    assert "slots 2, rows 5, " in settings and settings.endswith("precision bfloat16, repeats 2")


def test_models_have_the_published_sizes():
    sizes = {"qwen2_5_0_5b": 494_032_768, "qwen2_5_7b": 7_615_616_512}
    for name, size in sizes.items():
        assert transformer.num_params(bench_lm.architecture(name)) == size
    assert bench_lm.architecture(bench_lm.TOY).num_layers == 2
    with pytest.raises(SystemExit, match="--model=nobody must be toy, gemma3_4b, "):
        bench_lm.architecture("nobody")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory of a tiny Llama with random weights, large enough for choices to differ."""
    directory = tokenizer_kinds.save("headless", tmp_path_factory.mktemp("model"))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer_kinds.make("headless")),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        eos_token_id=tokenizer_kinds.ends("headless")[0],
        bos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


TINY = (
    *("--rows=5", "--new-tokens=4", "--slots=4", "--questions=3", "--candidates=3", "--answers=2"),
    *("--answer-tokens=3", "--batch-size=3", "--updates=1", "--lora-rank=2", "--matmul-size=8"),
    *("--copy-bytes=4000", "--rounds=1"),
)


def compared(model, *more):
    parser = argparse.ArgumentParser()
    bench_compare.add_command(parser.add_subparsers(dest="what"))
    options = parser.parse_args(["compare", f"--model={model}", *TINY, *more])
    bench_compare.run(options)


@pytest.fixture
def in_this_process(monkeypatch):
    """Measures without new processes, which would take seconds each."""

    def child(path, *, round, part, mode, side):
        work = json.loads(path.read_text())
        if side == "subjax":
            found = bench_subjax.measure(part, mode, work)
        else:
            found = bench_torch.measure(side, part, mode, work)
        if part == "load":  # what earlier tests used and freed may hold all of it
            found["growth"] = max(found["growth"], 1)
        return {"seconds": 1.0} | found

    monkeypatch.setattr(bench_compare, "_child", child)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_comparison_has_every_part_of_both_sides(model, in_this_process, tmp_path, capsys):
    out = tmp_path / "out.json"
    compared(model, f"--out={out}", "--modes=float32")
    heading, _, *rows = table(capsys.readouterr().out)
    labels = [line.label for line in bench_compare.LINES if "vLLM" not in line.label]
    assert [row[:2] for row in rows] == [[label, "float32"] for label in labels]
    assert all(len(row) == len(heading) for row in rows)
    kept = json.loads(out.read_text())
    assert len(kept["measurements"]) == sum(map(len, bench_compare.SIDES.values()))
    assert kept["machine"]["versions"]["torch"] == torch.__version__
    for line in kept["lines"]:
        assert all(math.isfinite(figure) and figure > 0 for figure in line["figure"])
        has_flops = "memory" not in line["label"] and "start" not in line["label"]
        assert all(share > 0 if has_flops else share is None for share in line["share"])
    drawn = [one["lengths"] for one in kept["measurements"] if one["part"] == "sampler"]
    assert all(len(lengths) == 5 and 1 <= max(lengths) <= 4 for lengths in drawn)


def table(text):
    """The cells of a table in Markdown."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_in_the_fastest_mode_nothing_has_to_agree(model, in_this_process, monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    compared(model, "--parts=exact,load", "--modes=fastest")
    text = capsys.readouterr().out
    assert [row[1] for row in table(text)[2:]] == ["bfloat16 / mixed"] * 3
    assert "WARNING: the machine was busy before (load 3.0)" in text
    assert "whether both sides compute the same was not checked" in text


@pytest.mark.parametrize(
    ("part", "name", "reason"),
    [
        ("exact", "log_probs", "log-probabilities differ by up to 0.002"),
        ("full", "first_loss", "the first loss is "),
    ],
)
def test_sides_that_compute_something_else_are_not_compared(
    part, name, reason, model, in_this_process, monkeypatch, capsys
):
    """Both are right at first; then the PyTorch side is wrong by twice what is allowed."""
    compared(model, f"--parts={part}", "--modes=float32")
    assert capsys.readouterr().out.startswith("| part |")
    measure = bench_torch.measure

    def wrong(side, part, mode, work):
        found = measure(side, part, mode, work)
        if part == "roofline":
            return found
        return found | {name: (np.array(found[name]) + 0.002).tolist()}

    monkeypatch.setattr(bench_torch, "measure", wrong)
    with pytest.raises(SystemExit, match=f"{part}: subjax and torch do not compute the.*{reason}"):
        compared(model, f"--parts={part}", "--modes=float32")
    assert not capsys.readouterr().out


def test_more_parameters_or_longer_rows_are_another_computation():
    def refused(ours, theirs):
        labels = {"round": 0, "part": "lora", "mode": "float32"}
        found = [labels | {"side": "subjax"} | ours, labels | {"side": "torch"} | theirs]
        bench_compare.check_agreement(found)

    loss = {"first_loss": 1.0}
    refused(loss | {"trained": 8}, loss | {"trained": 8})
    with pytest.raises(SystemExit, match="8 and 9 parameters are trained"):
        refused(loss | {"trained": 8}, loss | {"trained": 9})
    refused({"lengths": [20, 30] * 50}, {"lengths": [21, 31] * 50})
    with pytest.raises(SystemExit, match=r"rows have 25\.0 and 35\.0 tokens on average"):
        refused({"lengths": [20, 30] * 50}, {"lengths": [30, 40] * 50})
    with pytest.raises(SystemExit, match="100 and 98 rows are drawn"):
        refused({"lengths": [20, 30] * 50}, {"lengths": [20, 30] * 49})


@pytest.mark.parametrize("shared", [True, False])
def test_the_torch_side_draws_what_generate_draws(shared, model):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    prompts = [[7, 8, *range(20, 20 + i)] for i in (3, 9, 1, 6, 2)]
    limits = {"slots": 5, "new_tokens": 40, "temperature": 0.0, "eos": []}
    with torch.inference_mode():
        free = bench_torch.draw(loaded, prompts, 1, limits | {"eos": [-5]}, shared=shared)
        # Tokens that end some rows early, so that rows are dropped on the way.
        limits["eos"] = [free[0][2], free[1][5], free[2][30]]
        drawn = bench_torch.draw(loaded, prompts, 2, limits, shared=shared)
        expected = bench_torch.generate(loaded, prompts, 2, limits, shared=shared)
    assert drawn == expected
    assert len({len(tokens) for tokens in drawn}) > 1 and drawn[0] == drawn[1]


def test_a_comparison_that_cannot_be_made_says_why_in_one_line(model, monkeypatch, tmp_path):
    def said(*more, model=model):
        with pytest.raises(SystemExit) as left:
            compared(model, *more)
        assert "\n" not in left.value.code
        return left.value.code

    assert (
        said(model=tmp_path) == f"--model={tmp_path} is no model directory: it has no config.json"
    )
    (tmp_path / "config.json").write_text("{}")
    assert said(model=tmp_path).endswith("has no weights that both sides read: *.safetensors")
    assert said("--parts=lora,sampel").startswith("--parts: 'sampel' is none of sampler, exact, ")
    assert said("--modes=int8") == "--modes: 'int8' is none of float32, fastest"
    assert said("--rounds=0") == "--rounds=0: at least 1"
    assert said(f"--out={tmp_path}/a/b.json").endswith("there is no such directory")
    assert said("--questions=61").startswith("there are 60 questions, and 3 candidates ")
    assert said("--candidates=11").endswith("that this tokenizer tells apart: ask for fewer")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert said() == "compare needs torch: pip install -r requirements-dev.txt"


@pytest.mark.slow
def test_a_comparison_starts_a_process_for_each_measurement(model):
    command = [sys.executable, str(LAUNCH / "bench.py"), "compare", f"--model={model}", *TINY]
    command += ["--parts=start", "--modes=fastest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "| start to first token | bfloat16 / mixed | s |" in done.stdout
    assert "was not checked" in done.stdout
