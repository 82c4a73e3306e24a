"""launch/bench.py's language models: the figures are there and finite; how large is not tested."""

import argparse
import importlib.util
import json
import math
import os
import shutil
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
from benchmarks import (  # noqa: E402
    comparison,
    comparison_table,
    harness,
    kept_figures,
    language_models,
    scaling,
    subjax_side,
    torch_sampling,
    torch_side,
)

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
    language_models.add_commands(parser.add_subparsers(dest="what"))
    language_models.run(parser.parse_args(command))
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "1 x cpu" and found["jax"] == jax.__version__
    assert f"{transformer.num_params(ARCH):,} parameters" in found["model"]
    return found


def keys_of(what):
    return {key for key, _ in language_models.COLUMNS[what].values()}


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

    monkeypatch.setattr(language_models, "_train", full)
    other = measured(capsys, [*arguments("train"), "--side=full"])
    heading, *lines = language_models.table("train", {"full": other, "lora": found}).splitlines()
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
        assert transformer.num_params(language_models.architecture(name)) == size
    assert language_models.architecture(language_models.TOY).num_layers == 2
    with pytest.raises(SystemExit, match="--model=nobody must be toy, gemma3_4b, "):
        language_models.architecture("nobody")


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
    comparison.add_command(parser.add_subparsers(dest="what"))
    options = parser.parse_args(["compare", f"--model={model}", *TINY, *more])
    comparison.run(options)


@pytest.fixture
def in_this_process(monkeypatch):
    """Measures without new processes, which would take seconds each."""

    def child(path, *, round, part, mode, side):
        work = json.loads(path.read_text())
        if side == "subjax":
            found = subjax_side.measure(part, mode, work)
        elif part == "growth":
            found = subjax_side.measure(part, mode, work, side)
        else:
            found = torch_side.measure(side, part, mode, work)
        if part == "load":  # what earlier tests used and freed may hold all of it
            found["growth"] = max(found["growth"], 1)
        return {"seconds": 1.0} | found

    monkeypatch.setattr(comparison, "_child", child)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_comparison_has_every_part_of_both_sides(model, in_this_process, tmp_path, capsys):
    out = tmp_path / "out.json"
    compared(model, f"--out={out}", "--modes=float32")
    heading, _, *rows = table(capsys.readouterr().out)
    of_parts = {
        part: sides for part, sides in comparison._sides().items() if part not in comparison.LONG
    }
    sides = {(part, side) for part, sides in of_parts.items() for side in sides}
    labels = [
        line.label
        for line in comparison_table.LINES
        if {(line.part, line.ours), (line.part, line.theirs)} <= sides
    ]
    assert [row[:2] for row in rows] == [[label, "float32"] for label in labels]
    assert all(len(row) == len(heading) for row in rows)
    kept = json.loads(out.read_text())
    assert len(kept["measurements"]) == len(sides)
    assert kept["machine"]["versions"]["torch"] == torch.__version__
    for line in kept["lines"]:
        assert all(math.isfinite(figure) and figure > 0 for figure in line["figure"])
        has_flops = "memory" not in line["label"] and "start" not in line["label"]
        assert all(share > 0 if has_flops else share is None for share in line["share"])
    drawn = [one["lengths"] for one in kept["measurements"] if one["part"] == "sampler"]
    assert all(len(lengths) == 5 and 1 <= max(lengths) <= 4 for lengths in drawn)


@pytest.fixture
def made_up(monkeypatch):
    """Measurements of no computation, which say which one they are; returns those made so far."""
    made, left = [], []

    def child(path, *, round, part, mode, side):
        if left and len(made) == left[0]:
            left.clear()
            raise KeyboardInterrupt
        made.append((round, part, mode, side))
        figure = float(len(made))
        if part == "roofline":
            return {"seconds": 1.0, "float32": figure, "bfloat16": 1.0, "copy": 1.0}
        loss = {"first_loss": 1.0, "trained": 8}
        return {"seconds": figure, "peak_bytes": 10**9, "log_probs": [[-1.0]], **loss}

    monkeypatch.setattr(comparison, "_child", child)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    return made, left


TWO_ROUNDS = ("--parts=exact,lora", "--modes=float32", "--rounds=2")


@pytest.mark.parametrize("stop", [1, 4, 11])
def test_a_comparison_that_was_stopped_goes_on_and_gives_the_same_table(
    stop, model, made_up, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(comparison, "OPTIONAL", {})
    made, left = made_up
    compared(model, *TWO_ROUNDS)
    whole, planned = capsys.readouterr().out, list(made)
    made.clear()
    left.append(stop)
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match="stopped: the same command goes on where it stopped"):
        compared(model, *TWO_ROUNDS, f"--out={out}")
    kept = json.loads(out.read_text())
    assert [kept_figures.key(one) for one in kept["measurements"]] == planned[:stop]
    compared(model, *TWO_ROUNDS, f"--out={out}")
    assert made == planned and capsys.readouterr().out == whole
    assert len(json.loads(out.read_text())["lines"]) == 2
    # Less is read from the file, which keeps the rest.
    compared(model, f"--out={out}", "--parts=exact", "--modes=float32")
    assert made == planned and len(table(capsys.readouterr().out)) == 3
    assert len(json.loads(out.read_text())["measurements"]) == len(planned) == 12


def test_a_file_of_another_configuration_is_refused_and_stays(
    model, made_up, tmp_path, monkeypatch
):
    out = tmp_path / "out.json"
    how = ("--parts=exact", "--modes=float32", f"--out={out}")
    compared(model, *how)
    kept, num_made = out.read_text(), len(made_up[0])

    def said(*more, model=model):
        with pytest.raises(SystemExit) as left:
            compared(model, *how, *more)
        assert "\n" not in left.value.code and len(made_up[0]) == num_made
        assert left.value.code.endswith("name another file as --out; this one stays as it is")
        return left.value.code

    assert "is of another configuration (sizes.slots is 4 there and 3 here)" in said("--slots=3")
    copied = shutil.copytree(model, tmp_path / "copied")
    assert "another configuration (model is " in said(model=copied)
    with monkeypatch.context() as patched:
        patched.setattr(kept_figures, "_code", lambda: "0")
        assert " there and 0 here)" in said()
    with monkeypatch.context() as patched:
        patched.setattr(os, "sched_getaffinity", lambda _: range(99))
        assert "machine.threads is" in said()
    assert out.read_text() == kept
    for damaged in (kept[:-9], "", "[]", "{}", '{"measurements": [{"round": 0}]}'):
        out.write_text(damaged)
        assert said().startswith(f"--out={out} is no complete file of compare: ")
        assert out.read_text() == damaged


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
    measure = torch_side.measure

    def wrong(side, part, mode, work):
        found = measure(side, part, mode, work)
        if part == "roofline":
            return found
        return found | {name: (np.array(found[name]) + 0.002).tolist()}

    monkeypatch.setattr(torch_side, "measure", wrong)
    with pytest.raises(SystemExit, match=f"{part}: subjax and torch do not compute the.*{reason}"):
        compared(model, f"--parts={part}", "--modes=float32")
    assert not capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_trl_computes_the_same_updates(model, in_this_process, capsys):
    compared(model, "--parts=lora,full", "--modes=float32", "--batch-size=4", "--updates=2")
    text = capsys.readouterr().out
    assert text.startswith("| part |")  # nothing before it, which would be read as a measurement
    labels = [row[0] for row in table(text)[2:]]
    assert [label for label in labels if "TRL" in label] == [
        f"check: PyTorch side, in subjax's column, against TRL's SFTTrainer, {what}"
        for what in ("LoRA", "full")
    ]


def test_what_is_not_installed_is_named_and_how_to_install_it(model, made_up, monkeypatch, capsys):
    find = importlib.util.find_spec
    has = {"trl": False, "vllm": True}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: has[name] if name in has else find(name)
    )
    assert comparison._sides()["full"] == ("subjax", "torch")
    compared(model, "--parts=full", "--modes=float32")
    said = capsys.readouterr().out
    assert "TRL is not installed: not compared; `pip install trl` adds it" in said
    has |= {"trl": True, "vllm": False}
    assert comparison._sides()["full"] == ("subjax", "torch", "trl")
    assert comparison._sides()["sampler"] == comparison.SIDES["sampler"]


@pytest.fixture(scope="module")
def writes_numbers(model, tmp_path_factory):
    """The tiny Llama, but every token is a digit or an end, with equal chances."""
    directory = shutil.copytree(model, tmp_path_factory.mktemp("numbers") / "model")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    words = transformers.AutoTokenizer.from_pretrained(model)
    written = words.convert_tokens_to_ids(["1", "2"]) + tokenizer_kinds.ends("headless")[:1]
    with torch.no_grad():
        loaded.get_input_embeddings().weight[:] = 1
        for layer in loaded.get_decoder().layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        loaded.get_output_embeddings().weight[:] = 0
        loaded.get_output_embeddings().weight[written] = 2
    loaded.save_pretrained(directory)
    return directory


def test_a_pipeline_of_each_side(writes_numbers, in_this_process, tmp_path, capsys):
    out = tmp_path / "out.json"
    sizes = ("--pipeline-rows=40", "--pipeline-questions=2", "--pipeline-answers=3")
    sizes += ("--new-tokens=3",)  # so that rows which are cut are numbers too
    compared(writes_numbers, "--parts=pipeline", "--modes=float32", *sizes, f"--out={out}")
    text = capsys.readouterr().out
    [row] = table(text)[2:]
    assert row[:3] == ["pipeline, rows of its own", "float32", "s"]
    sides = [one for one in json.loads(out.read_text())["measurements"] if "steps" in one]
    assert [one["side"] for one in sides] == ["subjax", "torch"]
    for one in sides:
        assert list(one["steps"]) == ["load", "rows", "keep", "finetune", "answers"]
        assert sum(one["steps"].values()) == pytest.approx(one["seconds"])
        assert min(one["steps"].values()) > 0
        # A row is kept if it begins with a digit and ends in time: with chances of 10 in 27, and
        # of 18 in 27 if it need not end.
        assert len(one["lengths"]) == 40 and 7 < one["kept"] < 22
        assert one["kept_tokens"] > 10 * one["kept"] and 6 <= one["answer_tokens"] <= 18
        rows = f"40 rows of its own with {sum(one['lengths'])} new tokens, {one['kept']} kept with "
        assert rows in text


def test_a_pipeline_without_rows_says_so(model, in_this_process):
    with pytest.raises(SystemExit, match="none of 2 rows ended and was a list of numbers"):
        compared(model, "--parts=pipeline", "--modes=float32", "--pipeline-rows=2")


def test_growth_is_the_slope_of_the_logarithms():
    assert scaling.exponent((1, 2, 4), (3, 6, 12)) == pytest.approx(1)
    assert scaling.exponent((1, 2, 4), (5, 20, 80)) == pytest.approx(2)
    assert scaling.exponent((1, 2, 4), (7, 7, 7)) == pytest.approx(0, abs=1e-9)
    # Of three points, the slope of the line through the outer two.
    assert scaling.exponent((1, 2, 4), (1, 9, 8)) == pytest.approx(1.5)
    found = [
        {"part": "growth", "mode": "float32", "side": f"rows_{times}", "round": i}
        | {"seconds": times**1.5 * (1, 10, 1)[i], "peak_bytes": 10**9 + times * 10**8}
        for times in (1, 2, 4)
        for i in range(3)
    ]
    [line] = scaling.lines(["float32", "fastest"], found)
    assert line["exponent"] == pytest.approx(1.5)  # of medians
    assert line["memory"] == pytest.approx(1.4 / 1.1)
    text = scaling.markdown([line], comparison_table.MODES)
    assert text.endswith("| 1 / 2.83 / 8 | 1.50 | 1.10 / 1.20 / 1.40 | 1.27 x |")


def test_growth_of_the_sampler_and_of_lora(writes_numbers, in_this_process, tmp_path, capsys):
    out = tmp_path / "out.json"
    sizes = ("--rows=8", "--new-tokens=4", "--batch-size=4")
    compared(writes_numbers, "--parts=growth", "--modes=float32", *sizes, f"--out={out}")
    kept = json.loads(out.read_text())
    drawn = {one["side"]: one["lengths"] for one in kept["measurements"] if "lengths" in one}
    assert drawn == {
        **{f"rows_{times}": [4] * 2 * times for times in (1, 2, 4)},
        **{f"new_tokens_{times}": [times] * 2 for times in (1, 2, 4)},
    }
    assert [line["label"] for line in kept["growth"]] == list(scaling.LABELS.values())
    assert "| LoRA, rows of an update | float32 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--batch-size=3: growth needs at least 4"):
        compared(writes_numbers, "--parts=growth", "--batch-size=3")


def test_more_parameters_or_longer_rows_are_another_computation():
    def refused(ours, theirs):
        labels = {"round": 0, "part": "lora", "mode": "float32"}
        found = [labels | {"side": "subjax"} | ours, labels | {"side": "torch"} | theirs]
        comparison_table.check_agreement(found)

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
        free = torch_sampling.draw(loaded, prompts, 1, limits | {"eos": [-5]}, shared=shared)
        # Tokens that end some rows early, so that rows are dropped on the way.
        limits["eos"] = [free[0][2], free[1][5], free[2][30]]
        drawn = torch_sampling.draw(loaded, prompts, 2, limits, shared=shared)
        expected = torch_sampling.generate(loaded, prompts, 2, limits, shared=shared)
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


def found_by_harness(seconds, apart=0.0):
    return {
        (side, task): harness.Found(
            [9.0, 7.0], [seconds[side], seconds[side]], [-1.0, -2.0 + apart * (side == "subjax")]
        )
        for side in harness.SIDES
        for task in harness.TASKS
    }


def test_the_harness_is_compared_where_both_sides_agree(tmp_path):
    seconds = {"subjax": 2.0, "transformers": 5.0}
    *_, line, _ = harness.table(found_by_harness(seconds, 1e-4)).splitlines()
    assert line == "| texts | 2 | 5.0 | 2.0 (8.0) | 2.50 | 1.0e-04 |"
    with pytest.raises(SystemExit, match="nats apart: a fault"):
        harness.table(found_by_harness(seconds, 2e-3))
    harness.write_tasks(tmp_path, 9)
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert len({row["question"] for row in rows}) == 9
    # The right answer, and no other, stands in the question.
    told = [[choice[7:-1] in row["question"] for choice in row["choices"]] for row in rows]
    assert [places.index(True) for places in told] == [row["answer"] for row in rows]
    assert all(sum(places) == 1 for places in told)
