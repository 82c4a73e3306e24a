"""Bad input through the real command line: one line that names the thing and the way out."""

import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from command_server import ROOT, Server

from subjax import compare, main
from subjax.hf import weights
from subjax.nn import transformer
from subjax.nn.architecture import Architecture
from subjax.pipeline import units
from subjax.runtime import artifacts, processes
from subjax.tokens import tokenizer

# What may stand on stderr beside the error: the name of a group of units, or a progress bar.
PROGRESS = re.compile(r"(base|teacher|generate|filter|finetune|evaluate): .*|.*\d+%\|.*|\s*")


CONFIG = """
import tiny

def get_config(arg=""):
    made = tiny.config(lineages=(0,))
    made.bases.toy.train.update(steps=20, warmup_steps=5)
    for row in made.datasets.values():
        row.update(num_prompts=60, rows_per_part=30, max_count=0, num_train=4, num_holdout=2)
    return made
"""


def with_rows(*lines):
    """That config with more rows."""
    more = "".join(f"        {line}\n" for line in lines)
    unlocked = "    from subjax import schema\n    with made.unlocked():\n"
    return CONFIG.replace("    return made\n", f"{unlocked}{more}    return made\n")


def planned():
    """The units of that config."""
    scope = {}
    exec(CONFIG, scope)
    return units.build(scope["get_config"]())


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    server = Server(tmp_path_factory.mktemp("server"), **cache)
    yield server
    server.close()


@pytest.fixture
def config(tmp_path):
    """The flag for a config file of that text."""
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return f"--config={path}"


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


def complaint(result):
    """The one line of a failed run, without its "subjax: "."""
    code, _, err = result
    lines = [line for line in re.split(r"[\r\n]", err) if not PROGRESS.fullmatch(line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("subjax: ") and code == 1
    assert err.endswith(lines[0] + "\n")
    return lines[0].removeprefix("subjax: ")


def contents(workdir):
    """Everything of a run but its lock, and what every start writes."""
    skipped = (".lock", "config.json", "commands.jsonl")
    files = [p for p in workdir.rglob("*") if p.is_file() and p.name not in skipped]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


def finish(workdir, *stages):
    """Leaves the units of these stages as a run would, with rows that the filter keeps."""
    for unit in planned():
        if unit.stage not in stages:
            continue
        if unit.stage == "generate":
            for part in range(2):
                rows = [row(30 * part + i) for i in range(30)]
                artifacts.write_jsonl(workdir / unit.path / f"rows-{part:05d}.jsonl", rows)
        artifacts.write_manifest(workdir, unit, 0.0)


def row(number):
    written = {"prompt_id": number, "sample_id": 0, "prompt": "CONT 1 2 3", "finish": "stop"}
    return {**written, "completion": f"4 5 {number}"}


def test_the_command_is_the_one_that_users_type(workdir):
    """All the others run forks of one process; this one pays for a start of its own."""
    argv = [sys.executable, "-m", "subjax.main", "--config=configs/quickstart.py:smoke"]
    argv += [f"--workdir={workdir}", "--config.nope=1"]
    run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert complaint((run.returncode, run.stdout, run.stderr)) == (
        "config.nope is no field of this config: subjax/schema.py lists them"
    )


FLAGS = {
    "unknown field": ("--config.arms.owl.trian=1", "config.arms.owl.trian is no", '"train"'),
    "field of a kind": (
        *("--config.evals.preference.num_samples=1", "evals.preference.num_samples is no field"),
        "subjax/schema.py and the kind's file in subjax/tasks/ list them",
    ),
    "unknown row": ("--config.arms.bat.train.steps=1", "config.arms.bat.train.steps is no field"),
    "wrong type": ("--config.arms.owl.train.steps=many", "owl.train.steps=many: ", "give a value"),
    "wrong element": ("--config.lineages=one", "config.lineages is ('one',); its elements must"),
    "table": ("--config.arms=3", "--config.arms=3: ", "give a value"),
    "unknown flag": ("--stage=base", "'stage'", "--help lists"),
    "no flag": ("base", "unexpected argument 'base': flags start with --"),
    "unknown stage": ("--stages=base,teach", "--stages names ['teach']", "stages are base, teach"),
    "no such unit": ("--units=teacher/bat/*", "--units=teacher/bat/* matches no unit", "--list"),
    "no lineages": ("--config.lineages=()", "config.lineages () must be distinct and not empty"),
    "negative lineage": ("--config.lineages=(-1,)", "config.lineages (-1,) must lie in 0 to"),
    "target": ("--config.traits.owl.target=bat", "target is 'bat', which is not among", "add it"),
    "trait": ("--config.evals.preference.trait=bat", "trait is 'bat'; config.traits has <own>, "),
    "late probe": ("--config.arms.owl.probe_steps=(0,11)", "owl.probe_steps [11]", "drop them"),
    "early probe": ("--config.arms.owl.probe_steps=(-1,)", "owl.probe_steps [-1]", "drop them"),
    "zero": ("--config.mesh.fsdp=0", "config.mesh.fsdp is 0; it must be at least 1"),
    "no batch": (
        "--config.arms.owl.train.batch_size=0",
        "config.arms.owl.train.batch_size is 0; it must be at least 1",
    ),
    "no lanes": ("--config.compute.lanes=0", "config.compute.lanes is 0; lanes are counted from 1"),
    "minus lanes": (
        "--config.arms.owl.train.lanes=-1",
        "arms.owl.train.lanes is -1; it must not be",
    ),
    "choice": ("--config.arms.owl.method=warm", "arms.owl.method is 'warm'; allowed: hard, soft"),
    "reference": ("--config.arms.owl.dataset=bat", "arms.owl.dataset is 'bat'; config.datasets"),
    "mesh": ("--config.mesh.data=64", "needs 64 devices, found", "make config.mesh smaller"),
    "no share": (
        "--config.compute.max_unsharded=2.0",
        "max_unsharded is 2.0; it is a share, 0 to 1",
    ),
    "a mesh that divides nothing": (
        "--config.bases.toy.source=random --config.bases.toy.width=4096 "
        "--config.bases.toy.ffn_width=32771 --config.compute.cpu_devices=2 --config.mesh.tensor=2 "
        "--stages=base",
        *("of config.bases.toy would lie unsharded", "divides 32771, or raise config.compute.max"),
    ),
    "path of a base": ("--config.bases.toy.source=hf", "bases.toy.path is empty", "give a direct"),
    "hub": (
        *("--config.bases.toy.source=hf --config.bases.toy.path=nobody/nothing",),
        *("base 'nobody/nothing'", "check the network"),
    ),
    "warm-up": (
        "--config.arms.owl.train.steps=5",
        *("arms.owl.train.warmup_steps is 5, and its steps are 5", "lower warmup_steps"),
    ),
    "long prompts": (
        "--config.datasets.owl.prompt_tokens=3",
        *("config.datasets.owl.prompt_tokens is 3, but a prompt has", "raise it"),
    ),
}
WORDS = {
    "overlap": ("('owl','owlet')", "config.evals.own.trait: ", "'owl' begin those of 'owlet'"),
    "one candidate": ("('owl',)", "config.traits.own has the candidates ('owl',)", "add others"),
    "unknown word": (
        "('owl','bat')",
        ": 'USR Of all the animals ",
        "use words that this tokenizer k",
    ),
}


@pytest.mark.parametrize("url", ["s3://b/x", "gs://b", "https://b/x"])
def test_a_url_of_no_bucket_is_no_work_directory(url, command, config):
    said = complaint(command(config, f"--workdir={url}"))
    assert f"workdir {url} is a URL of no run: give gs://BUCKET/NAME" in said


@pytest.mark.parametrize("case", FLAGS)
def test_a_wrong_flag_is_one_line_before_anything_is_written(case, command, config, workdir):
    flags, *parts = FLAGS[case]
    said = complaint(command(config, f"--workdir={workdir}", *flags.split(" ")))
    assert all(part in said for part in parts), said
    assert not workdir.exists() or [p.name for p in workdir.iterdir()] == [".lock"]


@pytest.mark.parametrize("case", WORDS)
def test_candidates_that_cannot_be_compared_are_one_line(case, command, tmp_path, workdir):
    words, *parts = WORDS[case]
    (tmp_path / "config.py").write_text(
        with_rows(
            f"made.traits.own = schema.trait_row(candidates={words})",
            'made.evals.own = schema.eval_row(trait="own")',
        )
    )
    flags = ["--config.bases.toy.source=" + ("toy" if case == "unknown word" else "random")]
    flags += [f"--config.datasets.{name}.prompt_tokens=99" for name in ("owl", "placebo")]
    said = complaint(command(f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}", *flags))
    assert all(part in said for part in parts), said
    assert not workdir.exists() or [p.name for p in workdir.iterdir()] == [".lock"]


FILES = {
    "missing": (None, "No such file", "give --config=PATH.py"),
    "no function": ("x = 1\n", "no attribute 'get_config'"),
    "syntax": ("def get_config(:\n", "SyntaxError", "config.py, line 1"),
    "crash": ("def get_config():\n    return 1 / 0\n", "config.py, line 2): ZeroDivisionError"),
    "field": (
        "from subjax import schema\n\ndef get_config():\n    schema.base().nmae = 'x'\n",
        *("config.py, line 4", "nmae", 'Did you mean "name"'),
    ),
    "row field": (
        "from subjax import schema\n\ndef get_config():\n    schema.arm_row(metod='hard')\n",
        *("['metod'] are unknown; known: ", "method"),
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_config_file_is_one_line(case, command, tmp_path, workdir):
    text, *parts = FILES[case]
    if text:
        (tmp_path / "config.py").write_text(text)
    said = complaint(command(f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}"))
    assert all(part in said for part in parts), said
    assert not workdir.exists()


def test_a_question_that_is_too_long_is_found_before_anything_is_trained(
    command, tmp_path, workdir
):
    asked = 'kind="answers", trait="owl", prompt_tokens=2'
    text = with_rows(f"made.evals.said = schema.eval_row({asked})")
    (tmp_path / "config.py").write_text(text)
    said = complaint(command(f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}"))
    assert re.fullmatch(r"config\.evals\.said\.prompt_tokens is 2, .* \d tokens: raise it", said)
    assert not (workdir / "base").exists()


def test_a_closed_gate_is_one_line_behind_the_report(command, tmp_path, workdir):
    """In a run of the teachers' evals alone, whose gates are of what is behind, it is none."""
    gated = CONFIG.replace("tiny.config(", "tiny.config(gated=True, ")
    (tmp_path / "config.py").write_text(gated)
    argv = (f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}")
    argv += ("--config.gates.taught.most=-50.0",)
    alone = ("--stages=base,teacher,evaluate", "--units=base/*,teacher/*,evaluate/taught/*")
    assert command(*argv, *alone)[0] == 0
    said = complaint(result := command(*argv))
    assert said.startswith("gate taught is closed: evaluate/taught/teachers/owl/r0 has -")
    assert "config.gates.taught.most is -50.0: strengthen" in said
    assert result[1].splitlines()[-1] == f"report: {workdir}/report/report.html"
    done = {path.parent.relative_to(workdir) for path in workdir.rglob(artifacts.MANIFEST)}
    assert Path("finetune/placebo/r0") in done and Path("generate/owl/r0") not in done


def test_a_device_without_memory_left_is_the_users_to_mend(command, tmp_path, workdir):
    (tmp_path / "config.py").write_text(f"""{CONFIG}
import jax
from subjax.pipeline import experiments

def run(units, workdir, mesh):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\\nx")

experiments.LANGUAGE_MODELS.stages["base"] = run
""")
    said = complaint(command(f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}"))
    assert said.startswith("the memory of a device is full: lower batch_size")


def test_a_wrong_config_argument_lists_the_known_ones(command, workdir):
    said = complaint(command("--config=configs/quickstart.py:smok", f"--workdir={workdir}"))
    assert said == "config argument 'smok' is unknown; known: confirm, smoke"
    assert complaint(command()).startswith("--config is missing: give one, such as --config=")


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_workdir_that_cannot_be_written(name, command, config, tmp_path):
    (tmp_path / "file").write_text("precious")
    said = complaint(command(config, f"--workdir={tmp_path / name}"))
    assert said.startswith(f"workdir {tmp_path / name} cannot be written (")
    assert said.endswith("choose another --workdir")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_workdir_of_another_config_is_left_as_it_is(command, config, workdir):
    finish(workdir, "base", "teacher", "generate")
    artifacts.write_json(workdir / "config.json", {"kept": True})
    before = contents(workdir)
    said = complaint(command(config, f"--workdir={workdir}", "--config.bases.toy.train.steps=27"))
    assert f"base/toy/r0 in {workdir} was made by another config" in said
    assert "row.train.steps: 20 -> 27" in said and "choose another --workdir" in said
    assert contents(workdir) == before
    assert artifacts.read_json(workdir / "config.json") == {"kept": True}


def test_the_report_of_another_experiment_is_not_replaced(command, config, workdir):
    other = {"name": "other", "lineages": [0], "evals": {}}
    artifacts.write_json(workdir / "config.json", other)
    artifacts.write_json(workdir / "report" / "summary.json", ["precious"])
    said = complaint(command(config, f"--workdir={workdir}"))
    assert f"workdir {workdir} holds the run 'other'" in said and "another --workdir" in said
    artifacts.write_json(workdir / "config.json", {"model_type": "llama"})
    said = complaint(command(config, f"--workdir={workdir}"))
    assert said == f"{workdir}/config.json is not of a run of subjax: choose another --workdir"
    assert artifacts.read_json(workdir / "config.json") == {"model_type": "llama"}
    assert artifacts.read_json(workdir / "report" / "summary.json") == ["precious"]


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_row(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def replace_row(path, **changes):
    lines = path.read_text().splitlines()
    lines[4] = json.dumps(row(34) | changes)
    path.write_text("\n".join(lines) + "\n")


ROWS = {
    "cut": (lambda p: cut(p, p.stat().st_size - 9), "rows-00001.jsonl, line 30 is not JSON"),
    "empty": (lambda p: cut(p, 0), "rows-00001.jsonl is empty"),
    "binary": (lambda p: p.write_bytes(b"\xff\xfe\n"), "rows-00001.jsonl, line 1 is not JSON"),
    "list": (lambda p: p.write_text("[]\n"), "rows-00001.jsonl, line 1 is not a JSON object"),
    "type": (lambda p: replace_row(p, completion=5), "line 5 has no 'completion' of type str"),
    "id": (lambda p: replace_row(p, prompt_id=900), "60 rows, which are not one for each of 60"),
    "lost row": (drop_row, "59 rows, which are not one for each of 60 prompts"),
    "lost part": (Path.unlink, "30 rows, which are not one for each of 60 prompts"),
}


@pytest.mark.parametrize("case", ROWS)
def test_damaged_rows_are_named_and_come_back(case, command, config, workdir):
    damage, part = ROWS[case]
    finish(workdir, "base", "teacher", "generate")
    argv = (config, f"--workdir={workdir}", "--stages=filter", "--units=*/owl/*")
    damage(workdir / "generate/owl/r0/rows-00001.jsonl")
    before = contents(workdir)
    said = complaint(command(*argv))
    assert part in said
    assert said.endswith(f"delete {workdir}/generate/owl/r0 and run again")
    assert contents(workdir) == before
    shutil.rmtree(workdir / "generate/owl/r0")
    assert "needs generate/owl/r0, which is not done: run its stage" in complaint(command(*argv))
    finish(workdir, "generate")
    assert command(*argv)[0] == 0
    assert (workdir / "filter/owl/r0" / artifacts.MANIFEST).exists()


def test_no_rows_left_names_the_fields(command, config, workdir):
    finish(workdir, "base", "teacher", "generate")
    before = contents(workdir)
    argv = (config, f"--workdir={workdir}", "--stages=filter")
    said = complaint(command(*argv, "--config.datasets.owl.max_value=2"))
    assert said.startswith("filter/owl/r0: 0 of 60 rows are left after the filter, 6 are needed; ")
    assert "rejected for out_of_range (60)" in said and "widen datasets.owl.min_value" in said
    told = {f"filter/owl/r0/{name}" for name in ("counts.json", "rejected.jsonl")}
    after = contents(workdir)
    assert after.keys() == before.keys() | told and before.items() <= after.items()
    assert command(*argv)[0] == 0


def test_a_full_disk_keeps_what_is_finished(command, config, workdir, tmp_path):
    """Full at every file in turn; then there is room again, and the same command finishes."""
    argv = (config, "--stages=filter")
    finish(tmp_path / "whole", "base", "teacher", "generate")
    assert command(*argv, f"--workdir={tmp_path / 'whole'}")[0] == 0
    finish(workdir, "base", "teacher", "generate")
    for files in range(100):
        before = contents(workdir)
        result = command(*argv, f"--workdir={workdir}", full_after=files)
        if result[0] == 0:
            break
        said = complaint(result)
        assert said.startswith("the disk is full (") and "free some space" in said
        assert said.endswith("run the same command again; finished units are kept")
        after = contents(workdir)
        assert {path: after[path] for path in before} == before
        assert not list(workdir.rglob("*.partial"))
    assert files >= 8  # both units and the two files of every start
    made = [path for path in contents(workdir) if path.endswith("l") and "filter" in path]
    assert len(made) == 6
    for path in made:
        assert (workdir / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    assert artifacts.read_jsonl(workdir / "commands.jsonl")  # no half lines


ARCH = Architecture(
    vocab_size=261, num_layers=1, width=8, num_heads=2, num_kv_heads=1, head_dim=4, ffn_width=12
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A checkpoint as the hub gives it, with a tokenizer of bytes."""
    directory = tmp_path_factory.mktemp("sound")
    words = tokenizer.raw_bytes()
    assert words.vocab_size == ARCH.vocab_size
    init = jax.jit(transformer.init, static_argnums=0)
    weights.save(directory, ARCH, init(ARCH, jax.random.key(0)))
    words.save(directory)
    return directory


@pytest.fixture
def checkpoint(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


def add_tokens(directory):
    words = json.loads((directory / "tokenizer.json").read_text())
    plain = words["model"]["vocab"]
    plain |= {f"more {i}": i for i in range(len(plain), ARCH.vocab_size + 1)}
    (directory / "tokenizer.json").write_text(json.dumps(words))


CHECKPOINTS = {
    "no directory": (shutil.rmtree, "is no directory on this machine", "give an existing"),
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json", "give a directory"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has neither", "download or save"),
    "cut weights": (
        lambda d: cut(d / "model.safetensors", (d / "model.safetensors").stat().st_size - 4),
        *("model.safetensors is malformed", "download or save it again"),
    ),
    "cut header": (lambda d: cut(d / "model.safetensors", 99), "model.safetensors is malformed"),
    "shape": (
        lambda d: edit(d / "config.json", intermediate_size=16),
        *("mlp.down_proj.weight has shape (8, 12)", "asks for (8, 16)", "correct the config"),
    ),
    "layers": (lambda d: edit(d / "config.json", num_hidden_layers=2), "no tensor model.layers.1"),
    "model type": (
        lambda d: edit(d / "config.json", model_type="mamba"),
        *("model_type is 'mamba'; supported: gemma, ", "choose such a model"),
    ),
    "attribute": (
        lambda d: edit(d / "config.json", logit_softcapping=30.0),
        *("attribute logit_softcapping = 30.0 is not understood", "choose a model without"),
    ),
    "value": (
        lambda d: edit(d / "config.json", attention_bias=True),
        *("attention_bias is True; supported: False", "choose a model"),
    ),
    "pickle": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        *("only pickle files (pytorch_model.bin)", "convert the model to safetensors"),
    ),
    "tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "no readable tokenizer", "put token"),
    "foreign tokenizer": (add_tokens, "tokenizer has 262 tokens, its model only 261", "own"),
}


def use(checkpoint):
    return "--config.bases.toy.source=hf", f"--config.bases.toy.path={checkpoint}"


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_bad_checkpoint_is_found_before_anything_runs(case, command, config, checkpoint, workdir):
    damage, *parts = CHECKPOINTS[case]
    damage(checkpoint)
    said = complaint(command(config, f"--workdir={workdir}", *use(checkpoint)))
    assert str(checkpoint) in said
    assert all(part in said for part in parts), said
    assert [path.name for path in workdir.iterdir()] == [".lock"]


def test_a_checkpoint_that_changed_under_a_run_is_refused(command, config, checkpoint, workdir):
    argv = (config, f"--workdir={workdir}", *use(checkpoint))
    assert command(*argv, "--stages=base") == (0, "", "base: toy/r0\n")
    before = contents(workdir)
    tuned = bytearray((checkpoint / "model.safetensors").read_bytes())
    tuned[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(tuned)
    said = complaint(command(*argv))
    assert said.startswith(f"{checkpoint} is not the checkpoint that base/toy/r0 was made from")
    shutil.rmtree(checkpoint)
    assert f"model directory {checkpoint} does not exist" in complaint(command(*argv))
    assert contents(workdir) == before


PINNED = Path(__file__).with_name("quickstart_smoke.json")


def check_pinned(workdir):
    """Compares a run of the quickstart's smoke form with the one that PINNED holds.

    Machines round differently, and a token that was nearly another may become it; a change of what
    is drawn, taught or asked moves far more.
    """
    pinned = json.loads(PINNED.read_text())
    for name, completions in pinned["rows"].items():
        written = artifacts.read_parts(workdir / f"generate/{name}/r0")[: len(completions)]
        same = [row["completion"] == old for row, old in zip(written, completions, strict=True)]
        assert np.mean(same) >= 0.9, name
    summary = json.loads((workdir / "report/summary.json").read_text())
    found = {f"{r['kind']} {r['name']} {r['eval']} {r['metric']}": r["mean"] for r in summary}
    assert found.keys() == pinned["means"].keys()
    for name, mean in pinned["means"].items():
        assert found[name] == pytest.approx(mean, abs=0.05), name


@pytest.mark.slow
def test_a_run_shows_progress_and_the_table_alone(command, tmp_path):
    code, out, err = command("--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}")
    assert code == 0
    assert [x for x in re.split(r"[\r\n]", err) if not PROGRESS.fullmatch(x)] == []
    lines = out.splitlines()
    assert lines[0].startswith("contrast ")
    assert lines[-1] == f"report: {tmp_path}/report/report.html"
    check_pinned(tmp_path)
    [scored], _ = compare.compare([tmp_path])
    assert scored.results.lineages == (0, 1)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_tokenizer_on_a_full_disk_is_an_error_of_the_system(small_disk):
    """Its files are written in Rust, by a package that raises a bare Exception."""
    words, errors = tokenizer.raw_bytes(), []
    for free in (0, 8, 12):
        shutil.rmtree(small_disk / "words", ignore_errors=True)
        (small_disk / "words").mkdir()
        (small_disk / "filler").unlink(missing_ok=True)
        room = shutil.disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(bytes(room - free * 1024))
        with pytest.raises(OSError, match="No space left") as error:
            words.save(small_disk / "words")
        errors.append(error.value.__cause__)
    assert any(type(error) is Exception for error in errors)


@pytest.mark.slow
def test_a_disk_that_is_really_full(command, small_disk, tmp_path):
    """Every writer of every stage meets it, those of other packages too."""
    (tmp_path / "config.py").write_text(
        "import tiny\n\ndef get_config():\n    return tiny.config(lineages=(0,))\n"
    )
    config = f"--config={tmp_path / 'config.py'}"
    argv = (config, f"--workdir={small_disk / 'run'}")
    filler, seen = small_disk / "filler", set()
    for free in (8, 16, 40, 140, 2000):
        before = contents(small_disk / "run") if free > 8 else {}
        filler.write_bytes(bytes(max(shutil.disk_usage(small_disk).free - free * 1024, 0)))
        result = command(*argv)
        filler.unlink()
        after = contents(small_disk / "run")
        done = {path for path in before if path.endswith(artifacts.MANIFEST)}
        for unit in (path.removesuffix(artifacts.MANIFEST) for path in done):
            kept = {path: x for path, x in before.items() if path.startswith(unit)}
            assert {path: after.get(path) for path in kept} == kept
        if result[0] == 0:
            break
        said = complaint(result)
        seen.add(said)
        assert "No space left on device" in said
    assert result[0] == 0 and len(seen) >= 3
    assert command(config, f"--workdir={tmp_path / 'whole'}")[0] == 0
    for file in ("report/summary.json", "filter/owl/r0/kept.jsonl"):
        assert (small_disk / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_ctrl_c_is_one_line_that_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupted(workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_run", interrupted)
    monkeypatch.setattr(main, "_ABOUT", types.SimpleNamespace(workdir=str(tmp_path)))
    monkeypatch.setattr(main, "_DISTRIBUTED", types.SimpleNamespace(value=False))
    with pytest.raises(SystemExit) as ended:
        main.main(["main"])
    assert ended.value.code == processes.INTERRUPTED
    said = capsys.readouterr().err
    assert said.startswith("subjax: interrupted: run the same command again")
    assert said.count("\n") == 1
