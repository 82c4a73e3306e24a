"""A model leaves a run as transformers and PEFT read it, with a card; nothing else leaves it."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import peft
import process_group as meeting
import pytest
import reading_exports
import safetensors.numpy
import tensorflow_datasets as tfds
import tiny
import tokenizer_kinds
import torch
import transformers

from subjax import export
from subjax.hf import weights
from subjax.nn import lora, sharding, transformer
from subjax.pipeline import model_store
from subjax.runtime import artifacts
from subjax.tokens import tokenizer
from subjax.tokens.chat_templates import TemplateOptions
from tests.tiny import ARCH, BYTES

MESH = sharding.make_mesh(seed=1)
TOKENS = np.random.default_rng(0).integers(0, ARCH.vocab_size, (2, 15))


def manifest(run: Path, path: str, row: dict, inputs: dict) -> None:
    stage, *names, lineage = path.split("/")
    name = "/".join(names)
    unit = artifacts.Unit(
        stage, name, int(lineage[1:]), {"seed": 3, "row": row}, {}, "f00d", inputs
    )
    artifacts.write_manifest(run, unit, 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a student with an adapter kept at steps 0 and 40."""
    run = tmp_path_factory.mktemp("run")
    told = {"name": "x", "title": "Owls", "claim": "They do."}
    config = json.loads(tiny.config().to_json_best_effort())
    artifacts.write_json(run / "config.json", config | told)
    base = run / "base/toy/r0"
    model_store.save_weights(base, ARCH, transformer.init(ARCH, jax.random.key(0)), BYTES)
    manifest(run, "base/toy/r0", {"source": "toy", "path": ""}, {})
    teacher = run / "teacher/owl/r0"
    model_store.refer(teacher, base / "weights")
    taught = {"log_odds": 4.5, "candidate_mass": 0.9}
    records = [{"metric": metric, "step": 0, "value": value} for metric, value in taught.items()]
    asked = "evaluate/taught/teachers/owl/r0"
    artifacts.write_json(run / asked / "scores.json", {"records": records})
    manifest(run, asked, {"kind": "preference"}, {})
    given = {"weights": "given", "path": "somebody/else"}
    manifest(run, "teacher/owl/r0", given, {"base/toy/r0": "beef"})
    (run / "filter/owl/r0").mkdir(parents=True)
    rows = [
        {"prompt": f"{i}", "completion": "2 é", "prompt_id": i, "sample_id": 0} for i in range(3)
    ]
    artifacts.write_jsonl(run / "filter/owl/r0/kept.jsonl", rows[:2])
    artifacts.write_jsonl(run / "filter/owl/r0/holdout.jsonl", rows[2:])
    manifest(run, "filter/owl/r0", {}, {})
    student = "finetune/owl/r0"
    for step in (0, 40):
        fresh = lora.init(ARCH, jax.random.key(1), rank=3)
        adapter = jax.tree.map(lambda leaf: leaf + 0.01 * step, fresh)  # noqa: B023
        model = model_store.load(base, MESH)
        model_store.save_adapter(
            run / student / model_store.step_name(step), model, adapter, rank=3, alpha=6
        )
    row = {"lora_rank": 3, "lora_alpha": 6, "learning_rate": 1e-3}
    manifest(run, student, row, {"base/toy/r0": "beef", "filter/owl/r0": "cafe"})
    for step, value in ((0, 0.5), (40, 1.25)):
        records = [{"metric": "log_odds", "step": step, "value": value}]
        scores = run / "evaluate/preference/arms/owl/r0/scores.json"
        before = artifacts.read_json(scores)["records"] if scores.exists() else []
        records.append({"metric": "candidate_mass", "step": step, "value": 0.0123})
        artifacts.write_json(scores, {"records": [*before, *records]})
    manifest(run, "evaluate/preference/arms/owl/r0", {"kind": "preference"}, {})
    manifest(run, "evaluate/answers/arms/owl/r0", {"kind": "answers"}, {})
    said = {"records": [{"metric": "rate_word", "step": 40, "value": 0.004}]}
    artifacts.write_json(run / "evaluate/answers/arms/owl/r0/scores.json", said)
    return run


def expected(run: Path, step: int) -> np.ndarray:
    model = model_store.load(run / "finetune/owl/r0", MESH, step=step)
    hidden = transformer.forward(
        ARCH, model.params, jnp.asarray(TOKENS, jnp.int32), adapter=model.adapter
    )
    return np.asarray(transformer.logits(ARCH, model.params, hidden))


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


def test_an_adapter_leaves_as_peft_reads_it(run: Path, tmp_path: Path) -> None:
    export.export(run, "finetune/owl/r0", tmp_path / "out")
    base = transformers.AutoModelForCausalLM.from_pretrained(run / "base/toy/r0/weights")
    found = logits(peft.PeftModel.from_pretrained(base, tmp_path / "out"))
    np.testing.assert_allclose(found, expected(run, 40), atol=1e-4)
    card = (tmp_path / "out" / export.CARD).read_text()
    for text in (
        *('library_name: "peft"', "finetune/owl/r0 of Owls", "They do.", "step 40", "2 rows"),
        *("| preference | log_odds | 1.25 | 1.2 % | 0.4 % |", '"learning_rate": 0.001'),
        *('"seed": 3', "one of 2 lineages, each with its own base, teachers, rows and order:"),
    ):
        assert text in card
    assert str(run) not in card


def test_merged_weights_leave_as_transformers_reads_them(run: Path, tmp_path: Path) -> None:
    export.export(
        run, "finetune/owl/r0", tmp_path / "out", merged=True, step=0, max_shard_bytes=9000
    )
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    found = logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    np.testing.assert_allclose(found, expected(run, 0), atol=1e-4)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words("owl").input_ids == BYTES.encode(["owl"])[0]
    assert (
        "| preference | log_odds | 0.5 | 1.2 % | – |"
        in (tmp_path / "out" / export.CARD).read_text()
    )


@pytest.mark.processes
def test_two_processes_with_two_devices_each_export_one_model(run: Path, tmp_path: Path) -> None:
    address = meeting.address()
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_NUM_PROCESSES": "2"}
    command = [
        *(sys.executable, "-m", "subjax.export", "--distributed", "--merged"),
        *(f"--workdir={run}", "--unit=finetune/owl/r0", f"--out={tmp_path / 'out'}"),
    ]
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    meeting.assert_all_end(processes)
    export.export(run, "finetune/owl/r0", tmp_path / "alone", merged=True)
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("out", "alone")]
    assert files[0] == files[1] and export.CARD in files[0]
    ours, alone = (
        safetensors.numpy.load_file(tmp_path / name / "model.safetensors")
        for name in ("out", "alone")
    )
    assert ours.keys() == alone.keys()
    for name, tensor in alone.items():  # adding b a to a kernel rounds as devices split it
        np.testing.assert_allclose(ours[name], tensor, rtol=0, atol=1e-6)


def test_full_weights_in_another_dtype(run: Path, tmp_path: Path) -> None:
    export.export(run, "base/toy/r0", tmp_path / "out", dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16


def test_a_given_teacher_is_not_said_to_come_from_the_base(run: Path, tmp_path: Path) -> None:
    export.export(run, "teacher/owl/r0", tmp_path / "out")
    card = (tmp_path / "out" / export.CARD).read_text()
    assert "base: somebody/else" in card
    assert "| taught | log_odds | 4.5 | 90 % | – |" in card


def test_a_card_says_how_the_run_used_the_chat_template(run: Path, tmp_path: Path) -> None:
    unit, weights_dir = run / "base/toy/r0", run / "base/toy/r0/weights"
    model_store.refer(tmp_path, weights_dir, options=TemplateOptions(system_turn="user"))
    told = artifacts.read_json(unit / artifacts.MANIFEST)
    cards = [export.card(run, told, None, at, is_adapter=False) for at in (unit, tmp_path)]
    assert ["used with system_turn 'user'" in card for card in cards] == [False, True]


def test_rows_leave_as_a_tfds_data_set(run: Path, tmp_path: Path) -> None:
    export.export(run, "filter/owl/r0", tmp_path / "out")
    builder = tfds.builder_from_directory(tmp_path / "out/rows/1.0.0")
    train, holdout = (builder.as_data_source(split=s) for s in ("train", "holdout"))
    assert [row["prompt_id"] for row in train] == [0, 1]
    [row] = list(holdout)
    assert (row["prompt"].decode(), row["completion"].decode()) == ("2", "2 é")


def test_what_cannot_be_exported_is_one_line(run: Path, tmp_path: Path) -> None:
    def say(*options: str) -> str:
        command = [sys.executable, "-m", "subjax.export", f"--workdir={run}", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        return line

    out = f"--out={tmp_path / 'out'}"
    assert "finished: base/toy/r0, filter/owl/r0, fine" in say("--unit=evaluate/owl/r0", out)
    assert "kept: 0, 40" in say("--unit=finetune/owl/r0", "--step=7", out)
    assert "is not empty" in say("--unit=base/toy/r0", f"--out={run}")
    assert not (tmp_path / "out").exists()


TEXTS = ["7 120 1984", "my owls\n\n are here, é", "", " a blank first"]
TURNS = [{"role": "user", "content": " which animal? "}]


@pytest.fixture(scope="session")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with transformers 4.57 and what it needs of other versions than are here."""
    folder = tmp_path_factory.mktemp("transformers4")
    wanted = ("transformers==4.57.*", "tokenizers>=0.22,<=0.23.0", "huggingface_hub>=0.34,<1")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    done = subprocess.run([*command, folder, *wanted], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "pip failed").splitlines()[-1]
        pytest.skip(f"transformers 4.57 cannot be installed: {reason}")
    return str(folder)


@pytest.mark.processes
def test_transformers_4_and_5_read_what_is_exported(transformers_4: str, tmp_path: Path) -> None:
    words = {"bytes": BYTES}
    for kind in tokenizer_kinds.KINDS:
        (tmp_path / "kinds" / kind).mkdir(parents=True)
        found = tokenizer_kinds.save(kind, tmp_path / "kinds" / kind)
        today = datetime.date.today().isoformat()  # which transformers tells to templates
        words[kind] = tokenizer.Tokenizer.load(found, options=TemplateOptions(today))
    kinds = {str(tmp_path / "words" / kind): words[kind] for kind in words}
    for directory, own in kinds.items():
        own.save(directory)
    variants = {family: next(iter(variants)) for family, variants in hf_models.FAMILIES.items()}
    variants["llama"] = "stretched as in llama 3.1"
    exported = {str(tmp_path / "out" / family): str(tmp_path / family) for family in variants}
    for (family, variant), (out, made) in zip(variants.items(), exported.items(), strict=True):
        hf_models.save(family, variant, Path(made))
        weights.save(out, *weights.load(made))

    subprocess.run(
        [sys.executable, "-P", reading_exports.__file__, tmp_path / "said"],
        env={**os.environ, "PYTHONPATH": transformers_4},
        input=json.dumps([TEXTS, TURNS, [*kinds], [*exported]]),
        text=True,
        check=True,
    )
    version, by_4 = json.loads((tmp_path / "said").read_text())
    assert version.startswith("4.57.")
    by_5 = reading_exports.read(TEXTS, TURNS, [*kinds], [*exported, *exported.values()])
    for out, made in exported.items():
        np.testing.assert_allclose(by_5[out], by_5[made], atol=1e-5, err_msg=out)
        np.testing.assert_allclose(by_4[out], by_5[made], atol=1e-4, err_msg=out)
    for directory, own in kinds.items():
        said = by_5[directory]
        assert by_4[directory] == said
        # Behind a template that knows no header for an answer to come, subjax writes it itself.
        assert own.prompt_text(TURNS[0]["content"]).startswith(said["rendered"])
        assert said["plain"] == own.encode([*TEXTS, said["rendered"]])
        assert said["ids"][: len(TEXTS)] == own.text_ids(TEXTS)
        assert said["decoded"] == [own.decode(ids) for ids in said["ids"]]
        assert said["inputs"] == ["attention_mask", "input_ids"]


def test_a_tokenizer_leaves_without_how_it_was_loaded(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    words = tokenizer.Tokenizer.load(tokenizer_kinds.save("llama2", tmp_path / "in"))
    words.save(tmp_path / "out")
    said = artifacts.read_json(tmp_path / "out" / "tokenizer_config.json")
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not said.keys() & {"is_local", "local_files_only", "backend"}
    assert str(tmp_path) not in json.dumps(said)
