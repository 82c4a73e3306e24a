"""launch/bench.py's language models: the figures are there and finite; how large is not tested."""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny import ARCH

from subjax.hf import model_config
from subjax.nn import transformer
from subjax.runtime import chips

LAUNCH = Path(__file__).parents[2] / "launch"
_spec = importlib.util.spec_from_file_location("bench_lm", LAUNCH / "bench_lm.py")
bench_lm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench_lm)
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
    checked_training(found, keys_of("train") - {"mfu"})

    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(bench_lm, "_train", full)
    other = measured(capsys, [*arguments("train"), "--side=full"])
    heading, *lines = bench_lm.table("train", {"full": other, "lora": found}).splitlines()
    assert lines[0] == "full      does not fit the memory of the device"
    assert len(lines[1]) == len(heading) and lines[1].split()[6] == "–"


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
