"""Plans are made by the TPU's own compiler; without it these tests skip, and no TPU is needed."""

import dataclasses
import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import plan_command
import pytest

from configs import large, misalignment
from subjax import plan
from subjax.engine import sampler
from subjax.nn import attention, model_flops, sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.pipeline import units
from subjax.planning import aot, compiling, measure, programs, roofline, traffic
from subjax.runtime import artifacts
from tests.tiny import config as tiny_config

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason=f"libtpu, the TPU compiler, is not installed: pip install {aot.LIBTPU}",
    ),
    # ml_collections loads config files that way.
    pytest.mark.filterwarnings("ignore:the load_module.. method is deprecated:DeprecationWarning"),
]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Programs that are the same, for the same chips, are compiled once for all tests."""
    topology, compiled = aot.topology, aot.compiled
    asked, known = [""], {}

    def remembered(name):
        asked[0] = name
        return topology(name)

    def found(traced):
        key = asked[0], traced.lower().as_text()
        if key not in known:
            known[key] = compiled(traced)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aot, "topology", remembered)
        patch.setattr(aot, "compiled", found)
        yield


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs the command line in this process; its output, errors and exit code."""

    monkeypatch.chdir(ROOT)
    with plan_command.runner(capsys, monkeypatch) as run:
        yield functools.partial(run, "--config=configs/large.py:smoke")


@pytest.fixture
def v5e():
    return aot.topology("v5e:2x2")


def config(**sizes):
    """A student with rows of 384 tokens, in bfloat16, on a base whose weights are never drawn."""
    made = tiny_config(lineages=(0,), arms=("owl",))
    made.compute.precision = "bfloat16"
    made.compute.lanes = 1
    made.compute.remat = "full"
    made.mesh.update(seed=1, fsdp=2, tensor=2)
    with made.unlocked():
        made.bases.toy.source = "random"
        made.bases.toy.update(num_layers=6, width=512, num_heads=4, num_kv_heads=2, head_dim=128)
        made.bases.toy.update(ffn_width=512)
        made.bases.toy.update(**sizes)
        made.arms.owl.update(num_tokens=384, num_targets=128)
        made.arms.owl.train.update(batch_size=4, lanes=1)
    return made


def update(made, mesh):
    [unit] = [unit for unit in units.build(made) if unit.stage == "finetune"]
    [planned] = programs.of_unit(made, unit, mesh)
    return planned


@pytest.mark.slow
def test_a_training_step_is_compiled_and_counted(v5e):
    chip, devices = v5e
    mesh = sharding.make_mesh(1, 1, 2, 2, devices=devices)
    planned = update(config(), mesh)
    found = compiling.compile_program(planned, 4, mesh, chip)
    assert found.fits and 0 < found.arguments < found.peak < chip.hbm_bytes
    assert 0 < found.bound.mfu < 1
    assert found.bound.seconds == max(
        found.bound.compute, found.bound.hbm, found.bound.interconnect
    )
    # What `--measure` says of such chips where they are.
    assert measure.bound(planned, mesh) == found.bound
    axes = {collective.axes for collective in found.moved.collectives}
    assert {("fsdp",), ("tensor",)} <= axes
    # Every layer's kernels are gathered over fsdp twice, forward and for the backward pass.
    arch = programs.architecture("toy", config().bases.toy)
    gathered = [c for c in found.moved.collectives if (c.kind, c.axes) == ("all-gather", ("fsdp",))]
    once = 2 * model_flops.layer_params(arch) / 2  # bytes of bfloat16, half of them by tensor
    assert 1.9 * once < sum(c.num_bytes for c in gathered) < 4 * once


def test_the_update_for_tpus_has_the_kernel_and_never_the_scores(v5e):
    mesh = sharding.make_mesh(1, 1, 2, 2, devices=v5e[1])
    _, text = aot.compiled(update(config(), mesh).trace(4))
    assert "splash_mha_fwd" in text and "splash_mha_dkv" in text
    assert not re.search(r"\[[\d,]*\b384,384\]", text)
    with jax.set_mesh(mesh):
        assert attention.usable(256, "bfloat16")
        assert not attention.usable(200, "bfloat16")
        assert not attention.usable(256, "float32")


def test_a_persistent_cache_stays_without_programs_that_it_cannot_read(tmp_path):
    program = (
        "import jax, jax.numpy as jnp\n"
        "from subjax.planning import aot\n"
        "_, devices = aot.topology('v5e:2x2')\n"
        "there = jax.sharding.SingleDeviceSharding(devices[0])\n"
        "row = jax.ShapeDtypeStruct((128,), jnp.float32, sharding=there)\n"
        "for _ in range(2):\n"
        "    print(aot.compiled(jax.jit(jnp.sin).trace(row))[1][:9])\n"
    )
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **cache},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (found.stdout, found.returncode) == ("HloModule\n" * 2, 0), found.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_reading_rows_gathers_each_layer_once_and_sums_no_parts(v5e):
    """Left alone, the compiler would split the inputs of products and pass weights on in a ring."""
    arch = Architecture(
        vocab_size=4096,
        num_layers=6,
        width=1024,
        num_heads=8,
        num_kv_heads=8,
        head_dim=128,
        ffn_width=4096,
    )
    mesh = sharding.make_mesh(seed=1, fsdp=4, devices=v5e[1])
    sampling = sampler.Sampling(128, 128, 16, 1.0, (1,), "bfloat16")
    prefill, _ = sampler.traced(arch, sampling, num_prompts=128, num_rows=128, mesh=mesh)
    _, text = aot.compiled(prefill)
    assert "splash_mha_fwd" in text
    moved = traffic.of(text, mesh)
    layers = 2 * (transformer.num_params(arch) - 2 * arch.vocab_size * arch.width)
    sent = {collective.kind: collective.num_bytes for collective in moved.collectives}
    assert sent.pop("all-gather") == pytest.approx(layers, rel=0.01)
    assert sum(sent.values()) < 0.1 * layers


@pytest.mark.slow
def test_optimizer_state_of_the_plan_is_split_as_that_of_a_run(v5e):
    chip, devices = v5e
    meshes = [sharding.make_mesh(1, 1, n, n, devices=devices) for n in (1, 2)]
    one, quarter = (
        compiling.compile_program(update(config(), mesh), 4, mesh, chip).arguments
        for mesh in meshes
    )
    assert quarter < 0.3 * one


def arms(**changes):
    """A config of the arm `owl`, another `same`, and others that differ from them."""
    made = config()
    made.bases.toy.update(num_layers=1, width=128, num_heads=1, num_kv_heads=1, ffn_width=128)
    with made.unlocked():
        for name, changed in {"same": {}, **changes}.items():
            made.arms[name] = made.arms.owl.copy_and_resolve_references()
            made.arms[name].update(changed)
    return made, [unit for unit in units.build(made) if unit.stage == "finetune"]


@pytest.mark.slow
def test_arms_of_different_programs_are_compiled_each(v5e):
    chip, devices = v5e
    mesh = sharding.make_mesh(1, 1, 1, 1, devices=devices)
    made, todo = arms(
        parts={"train": {"accumulate": 2}}, factored={"train": {"optimizer": "adafactor"}}
    )
    found = {
        tuple(sorted(unit.row for unit in entry.members)): entry.compiled
        for entry in compiling.entries(made, todo, mesh, chip, search=False)
    }
    assert set(found) == {("owl", "same"), ("parts",), ("factored",)}
    assert found["factored",].arguments < found["owl", "same"].arguments
    assert found["parts",].peak != found["owl", "same"].peak


def test_programs_have_one_key_only_where_they_are_the_same():
    mesh = sharding.make_mesh(1, 1, 1, 1)
    made, todo = arms(
        soft={"method": "soft", "support": "digits"},
        top_k={"method": "soft", "support": "top_k"},
        distils={"method": "soft", "support": "full"},
        lora={"tuning": "lora"},
        rank={"tuning": "lora", "lora_rank": 3},
        packed={"train": {"packed_rows": 4, "packed_tokens": 512}},
        lanes={"train": {"lanes": 2}},
    )
    keys = {unit.row: programs.of_unit(made, unit, mesh)[0].key for unit in todo}
    assert keys["owl"] == keys["same"]
    assert len(set(keys.values())) == len(keys) - 1

    evaluations = [unit for unit in units.build(made) if unit.stage == "evaluate"]
    read = {
        unit.row.rpartition("/")[2]: programs.of_unit(made, unit, mesh)[0].key
        for unit in evaluations
        if unit.row.startswith("preference/")
    }
    assert read["owl"] == read["same"] and len({read[n] for n in ("owl", "lora", "rank")}) == 3


def test_a_judge_is_planned_by_its_own_shape_for_every_answer():
    mesh = sharding.make_mesh(1, 1, 1, 1)
    made = misalignment.get_config("smoke")
    made.evals.judged.num_samples = 3
    [unit] = [u for u in units.build(made) if u.path == "evaluate/judged/arms/bad/r0"]
    *answers, judge = programs.of_unit(made, unit, mesh)
    assert [one.name for one in answers] == ["prefill", "decode"] and judge.name == "judge"
    assert (judge.arch.width, answers[0].arch.width) == (48, 32)
    assert judge.num_rows == 2 * 3 * len(unit.fields["questions"])  # under two rubrics
    assert judge.num_tokens >= judge.batch_size * (176 + 16)
    assert 0 < judge.beside < min(one.beside for one in answers)
    assert judge.trace(judge.batch_size)


def test_beside_an_update_stands_what_of_it_is_padding():
    mesh = sharding.make_mesh(1, 1, 1, 1)
    made = config()
    made.arms.owl.train.update(packed_rows=2, packed_tokens=384, packed_targets=128)
    planned, bound = update(made, mesh), roofline.Bound(1.0, 0.5, 0.0, mfu=0.5)
    assert planned.num_tokens == 2 * 384
    # Rows of bytes, four of them.
    real = planned.real._replace(tokens=576.0, flops=planned.flops(2) / 2)
    [line] = plan._padding(dataclasses.replace(planned, real=real), bound)
    assert line == (
        "576 of the tokens are those of rows, 25.0% are padding; MFU bound without padding 25.0% "
        "(counted with its tokenizer; one pass an update is assumed)"
    )
    assert 0 < planned.real.flops / planned.flops(2) < 1
    [line] = plan._padding(dataclasses.replace(planned, real=None), bound)
    assert line == "how many of the tokens are padding is not known before the rows are"
    assert plan._padding(dataclasses.replace(planned, training=None), bound) == []


def test_what_has_no_bound_is_no_part_of_a_sum_in_silence():
    mesh = sharding.make_mesh(1, 1, 1, 1)
    made = config()
    generate, finetune = (
        next(unit for unit in units.build(made) if unit.stage == stage)
        for stage in ("generate", "finetune")
    )
    planned = update(made, mesh)
    bound = roofline.Bound(compute=36.0, hbm=1.0, interconnect=0.0, mfu=0.5)
    known = compiling.Compiled(1.0, 1.0, 1.0, 1.0, fits=True, bound=bound)
    unread = compiling.Compiled(1.0, 1.0, 1.0, 1.0, fits=True)
    first, second = (
        compiling.Entry(planned, members, compiled, 0)
        for members, compiled in (((generate,), known), ((generate, finetune), unread))
    )
    hours = planned.calls * 36 / 3600

    def lines(*found):
        groups = [(generate,), (finetune,)]
        text = plan._costs(found, groups, mesh.size, usd=0.0).splitlines()
        return {line.split()[0]: line for line in text if line}

    alone = lines(first)
    assert f"{hours:.3g} - {2.5 * hours:.3g}" in alone[generate.path]
    assert "at least" not in alone["all"] and finetune.path not in alone
    training = planned.training.program
    words = alone[generate.path].split()
    assert words[1:3] == [str(training.steps), str(training.steps * planned.batch_size)]
    both = lines(first, second)
    assert f"at least {hours:.3g}" in both[generate.path]
    assert "unknown" in both[finetune.path]
    assert f"at least {hours:.3g}" in both["all"] and " - " not in both["all"]


def test_traffic_of_a_known_program(v5e):
    """A product whose inner axis is split ends in a sum of its result over that axis."""
    mesh = sharding.make_mesh(1, 1, 4, 1, devices=v5e[1])
    spec = jax.sharding.PartitionSpec
    x, w = (jax.ShapeDtypeStruct((1024, 1024), "float32") for _ in range(2))
    x = sharding.abstract(x, spec(None, "fsdp"), mesh)
    w = sharding.abstract(w, spec("fsdp"), mesh)
    whole = jax.NamedSharding(mesh, spec())
    _, text = aot.compiled(jax.jit(lambda x, w: x @ w, out_shardings=whole).trace(x, w))
    moved = traffic.of(text, mesh)
    assert sum(c.sent for c in moved.collectives) == 2 * 3 / 4 * 1024 * 1024 * 4
    assert {c.axes for c in moved.collectives} == {("fsdp",)}


def test_a_mesh_takes_all_chips_unless_it_is_told_otherwise(v5e):
    devices = v5e[1]
    sizes = sharding.make_mesh(devices=devices).shape
    assert (sizes["data"], sizes["fsdp"], sizes["tensor"]) == (4, 1, 1)
    assert sharding.make_mesh(fsdp=2, devices=devices).shape["data"] == 2
    assert sharding.make_mesh(lanes=2, devices=devices).shape["seed"] == 2
    eight = sharding.make_mesh(lanes=6, devices=aot.topology("v5e:2x4")[1]).shape
    assert (eight["seed"], eight["data"]) == (2, 4)  # a sum over 6 of 8 chips does not compile
    with pytest.raises(ValueError, match=r"takes 3 of 4 chips, .*: change config\.mesh"):
        sharding.make_mesh(seed=3, data=1, lanes=6, devices=devices)
    with pytest.raises(ValueError, match="8 of 16 devices out, and a run of several processes"):
        sharding.make_mesh(data=1, fsdp=8, devices=aot.topology("v5e:4x4")[1])
    some = sharding.make_mesh(data=1, fsdp=2, devices=devices)
    assert sharding.idle(some, 4) == "2 of 4 devices are idle: see config.mesh"


def test_weights_that_tensor_alone_splits_lie_on_blocks_of_chips():
    """Where each chip has links along two sides, or three."""

    def sides(topology, **sizes):
        mesh = sharding.make_mesh(seed=1, devices=aot.topology(topology)[1], **sizes)
        assert len(set(mesh.devices.flat)) == mesh.size
        groups = mesh.devices.reshape(-1, mesh.shape["tensor"])
        places = [np.array([device.coords for device in group]) for group in groups]
        return {tuple((np.ptp(place, axis=0) + 1).tolist()) for place in places}

    assert sides("v5e:4x4", data=4, tensor=4) == {(2, 2, 1)}
    assert sides("v5e:8x8", data=8, tensor=8) == {(4, 2, 1)}
    assert sides("v5p:2x2x4", data=2, tensor=8) == {(2, 2, 2)}
    assert sides("v5e:4x4", data=1, fsdp=4, tensor=4) == {(4, 1, 1)}


@pytest.mark.slow
def test_chips_that_a_mesh_leaves_out_are_paid_for(command):
    flags = ("--stages=teacher", "--nosearch", "--usd_per_chip_hour=1")
    out, _, code = command("--topology=v5e:1x1,v5e:2x2", *flags)
    _, one, four = out.split("large_smoke on ")
    assert code == 0 and one.startswith("v5e:1x1: 1 chips") and "idle" not in one
    assert four.startswith("v5e:2x2: 1 chips") and "3 of 4 devices are idle" in four

    def usd(out):
        *_, line = (line for line in out.splitlines() if line.startswith("all "))
        return float(line.split()[-1])

    assert usd(four) == pytest.approx(4 * usd(one), rel=0.02)


@pytest.mark.parametrize("name", ["v5p:2x2x1", "v6e:2x2"])
def test_what_sparse_cores_gather_is_counted(name):
    mesh = sharding.make_mesh(1, 1, 1, 1, devices=aot.topology(name)[1])
    shapes = jax.ShapeDtypeStruct((2**17, 256), "bfloat16"), jax.ShapeDtypeStruct((2**16,), "int32")
    placed = sharding.abstract(shapes, jax.sharding.PartitionSpec(), mesh)
    _, text = aot.compiled(jax.jit(lambda table, at: table[at]).trace(*placed))
    assert 'async_execution_thread="sparsecore"' in text
    rows, places = 2 * 2**16 * 256, 4 * 2**16
    # Rows are read and written; their places read, written within bounds, and read again.
    assert traffic.of(text, mesh) == traffic.Traffic(2 * rows + 3 * places, ())


@pytest.mark.slow
def test_the_largest_batch_fits_and_twice_of_it_does_not(v5e, monkeypatch):
    chip, devices = v5e
    # A small chip, on which few rows are many: compiling takes longer the more there are.
    chip = dataclasses.replace(chip, hbm_bytes=16 * 2**20)
    mesh = sharding.make_mesh(1, 1, 2, 2, devices=devices)
    planned = update(config(num_layers=1, width=256, num_heads=2, ffn_width=256), mesh)
    compile_program = compiling.compile_program
    compiled = functools.cache(lambda size: compile_program(planned, size, mesh, chip))
    monkeypatch.setattr(compiling, "compile_program", lambda _, size, *__: compiled(size))
    largest = compiling.largest_batch(planned, compiled(4), mesh, chip)
    assert largest > 4 and largest % 2 == 0
    assert compiled(largest).fits and compiled(largest).peak > 0.8 * chip.hbm_bytes
    assert not compiled(2 * largest).fits


def test_the_next_batch_is_on_the_line_next_to_the_limit():
    # As measured: 1.4 a row between 4 and 8 rows, 3.6 a row where rows take most.
    def peak(rows):
        return max(76 + 1.4 * rows, 3.6 * rows - 20)

    tried = {4: peak(4), 8: peak(8)}
    for _ in range(2):
        tried[compiling._next_batch(tried, 17_000)] = 0.0
        tried = {rows: peak(rows) for rows in tried}
    fits = max(rows for rows in tried if peak(rows) <= 17_000)
    assert peak(fits) > 0.9 * 17_000
    assert compiling._next_batch({4: 90.0, 8: 90.0}, 100) == 16
    assert compiling._next_batch({8: 300.0, 4: 300.0}, 100) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v9:2x2"], "chips are v5e, v5p, v6e"),
        (["--topology=v5e"], "slices of 2 sides and at most 256 chips; give such as v5e:4x4"),
        (["--topology=v5e:0x0"], "slices of 2 sides"),
        (["--topology=v6e:32x32"], "slices of 2 sides and at most 256"),
        (
            ["--topology=v5p:4x4"],
            "slices of 3 sides and at most 8960 chips; give such as v5p:4x4x4",
        ),
        (["--topology=v5e:3x5"], "--topology=v5e:3x5 is none"),
        (["--topology=v5e:2x2,v5p:4x4"], "--topology=v5p:4x4: v5p has slices of 3 sides"),
        (["--topology=v5e:2x2", "--units=finetune/dog/*"], "--units=finetune/dog/* matches no"),
        ([], "--topology is missing"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=64"], "needs 64 devices, found 4"),
        (
            [
                *("--topology=v5e:2x2", "--config.bases.model.source=hf"),
                "--config.bases.model.path=nobody/nothing",
            ],
            "--config.bases.model.shape=FILE",
        ),
        (
            ["--topology=v5e:2x2", "--workdir=s3://bucket/runs"],
            "s3://bucket/runs is a URL of no run",
        ),
        (["--topology=v5e:2x2", "--config.nope=1"], "config.nope is no field"),
        (
            ["--topology=v5e:2x2", "--config.arms.cat.train.batch_size=0"],
            "config.arms.cat.train.batch_size is 0; it must be at least 1",
        ),
    ],
)
def test_mistakes_are_one_line(command, flags, message):
    out, err, code = command("--stages=finetune", "--nosearch", *flags)
    lines = [line for line in err.splitlines() if line.startswith("subjax: ")]
    assert code == 1 and len(lines) == 1 and message in lines[0], (out, err)
    assert "compiled in" not in out


def test_what_another_config_made_is_not_taken_for_done(command, tmp_path):
    unit = units.build(large.get_config("smoke"))[0]
    other = dataclasses.replace(unit, fingerprint="0", fields={**unit.fields, "row": {}})
    artifacts.write_manifest(tmp_path, other, 0.0)
    _, err, code = command("--topology=v5e:2x2", "--nosearch", f"--workdir={tmp_path}")
    assert code == 1 and f"subjax: {unit.path} in {tmp_path} was made by another config" in err


def test_what_does_not_fit_is_said_and_fails(command):
    out, err, code = command(
        "--topology=v5e:2x2",
        "--stages=finetune",
        "--nosearch",
        *("--config.bases.model.width=16384", "--config.bases.model.ffn_width=131072"),
        *("--config.arms.cat.tuning=full", "--config.arms.plain.tuning=full"),
    )
    assert code == 1 and "DOES NOT FIT" in out
    said = r"subjax: update of finetune/cat/r0 does not fit v5e:2x2: it needs ([\d.]+) GB a chip of"
    found = re.search(said, err)
    assert found, err
    # Weights, gradients and two moments in float32, and the base beside, over four chips.
    width, ffn = 16384, 131072
    assert float(found[1]) > 5 * 4 * 3 * width * ffn / 4 / 1e9


@pytest.mark.slow
def test_every_stage_is_planned_and_priced(command):
    of_each = "generate/cat/*,finetune/cat/*,evaluate/told/*"
    flags = ("--topology=v5e:2x2", "--nosearch", "--usd_per_chip_hour=1.2")
    out, _, code = command(*flags, f"--units={of_each}")
    assert code == 0
    for program in ("update", "prefill", "decode", "exact eval"):
        assert re.search(rf"^{program} \(", out, re.MULTILINE), program
    for unit in ("generate/cat/r0", "finetune/cat/r0", "evaluate/told/teachers/cat/r0"):
        assert unit in out
    assert roofline.FORMULA in out and "USD" in out


def test_a_mesh_that_divides_nothing_is_refused(command):
    # A prime, and three matrices of 256 MiB in each of two layers: large enough to be refused.
    wide = ("--config.bases.model.width=2048", "--config.bases.model.ffn_width=32771")
    flags = ("--topology=v5e:2x2", "--stages=finetune", "--nosearch", "--config.mesh.tensor=4")
    out, err, code = command(*flags, *wide)
    assert code == 1 and not out
    assert "config.bases.model would lie unsharded on config.mesh fsdp x tensor = 1 x 4" in err
    assert "layers/mlp/up/kernel (2, 32771, 2048)" in err or "down/kernel (2, 2048, 32771)" in err
    assert "take a mesh with" in err and "tensor that divides 32771" in err


def test_where_weights_lie_is_said_with_the_largest_adapter():
    made, todo = arms(lora={"tuning": "lora"}, rank={"tuning": "lora", "lora_rank": 16})
    with_adapter, small, without = (
        plan.placements(made, [u for u in todo if u.row in rows], sharding.make_mesh(1, 1, 2, 2))
        for rows in (("owl", "lora", "rank"), ("lora",), ("owl", "same"))
    )
    [text] = with_adapter
    assert text.startswith("\nconfig.bases.toy, one copy\n")
    assert "\nadapter " in text and "\nall " in text
    assert small != with_adapter and "adapter" not in without[0]


def test_a_population_with_lanes_to_spare_takes_no_less():
    mesh = sharding.make_mesh(1, 1, 1, 1)
    made = config()
    made.lineages, made.compute.lanes, made.arms.owl.train.lanes = (0, 1, 2), 2, 2
    students = [unit for unit in units.build(made) if unit.stage == "finetune"]
    [planned] = programs.of_unit(made, students[0], mesh)
    bound = roofline.Bound(compute=3600.0, hbm=1.0, interconnect=0.0, mfu=0.5)
    compiled = compiling.Compiled(1.0, 1.0, 1.0, 1.0, fits=True, bound=bound)
    entry = compiling.Entry(planned, tuple(students), compiled, 0)
    text = plan._costs([entry], plan._groups(students), mesh.size, usd=0.0).splitlines()
    hours = {line.split()[0]: float(line.split()[4]) for line in text[2:6]}
    steps = planned.training.program.steps
    assert hours == {
        "finetune/owl/r0": steps / 2,
        "finetune/owl/r1": steps / 2,
        "finetune/owl/r2": steps,
        "all": 2 * steps,
    }
