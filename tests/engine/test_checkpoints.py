"""Checkpoints: training goes on bit for bit; a flipped bit is noticed, and the one before used."""

import contextlib
import dataclasses
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from subjax.engine import checkpoints, train
from subjax.nn import sharding, transformer
from subjax.runtime import processes
from tests.engine.test_train import ARCH, PROGRAM, leaves_equal, make_rows

# Orbax leaves tasks behind where it fails to read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def left_behind():
    """Collects them here, where they are expected, and not in a test that comes later."""
    yield
    gc.collect()


STEPS = dataclasses.replace(PROGRAM, steps=8)


class Leaves(Exception):
    """Stands for whatever ends a process."""


class Store(checkpoints.Checkpoints):
    """Saves after each update, and ends the run after one of them where told to."""

    ends_after = -1
    began_at = -1

    def restore(self, state):
        found = super().restore(state)
        self.began_at = found[0]
        return found

    def due(self):
        return True

    def save(self, step, state, metrics):
        super().save(step, state, metrics)
        if step == self.ends_after:
            self.close()
            raise Leaves


def run(
    directory,
    *,
    begins_at=0,
    ends_after=-1,
    probe_steps=(),
    mesh=None,
    name="a",
    program=STEPS,
    keep=2,
):
    store = Store(directory, name, 1.0, keep=keep)
    store.ends_after = ends_after
    history = []
    with contextlib.suppress(Leaves):
        for progress in train.fit(
            program,
            train.stack([transformer.init(ARCH, jax.random.key(lane)) for lane in (0, 1)]),
            {},
            [make_rows(0), make_rows(1)],
            seeds=[0, 1],
            batch_size=4,
            probe_steps=probe_steps,
            steps_per_call=1,
            mesh=mesh or sharding.make_mesh(seed=1),
            label="test",
            store=store,
        ):
            history.append(progress)
    store.close()
    assert store.began_at == begins_at
    return history


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path):
    *_, whole = run(tmp_path / "whole")
    assert run(tmp_path / "cut", ends_after=3) == []
    assert run(tmp_path / "cut", begins_at=3, ends_after=6) == []
    [last] = run(tmp_path / "cut", begins_at=6)
    assert leaves_equal(whole.trainable, last.trainable)
    np.testing.assert_array_equal(whole.metrics["loss"], last.metrics["loss"])
    assert len(last.metrics["loss"]) == 8


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path, keep):
    run(tmp_path, ends_after=5, keep=keep)
    kept = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert kept == list(range(6 - keep, 6))


def test_probes_before_the_interruption_are_not_handed_out_again(tmp_path):
    assert [p.step for p in run(tmp_path, ends_after=5, probe_steps=(0, 2, 6))] == [0, 2]
    again = run(tmp_path, begins_at=5, probe_steps=(0, 2, 6))
    assert [p.step for p in again] == [6, 8]
    rows = train.metric_rows(again, 0)
    assert [row["step"] for row in rows] == list(range(1, 9))


def started():
    """The state that `run` begins with."""
    trees = train.stack([transformer.init(ARCH, jax.random.key(lane)) for lane in (0, 1)])
    return train.initial_state(STEPS, sharding.place(trees, sharding.make_mesh(seed=1), lanes=True))


def test_a_device_never_holds_two_states(tmp_path):
    run(tmp_path, ends_after=2)
    store, given = Store(tmp_path, "a", 1.0), started()
    store.restore(given)
    store.close()
    assert store.began_at == 2
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))


def data_files(directory: Path):
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.stat().st_size)


@pytest.mark.slow
def test_one_flipped_bit_in_any_file_is_noticed_and_the_checkpoint_before_is_used(tmp_path, capsys):
    run(tmp_path / "cut", ends_after=4)
    store = Store(tmp_path / "cut", "a", 1.0)
    wanted = {4: store.restore(started())[1:]}
    store.close()
    copy(tmp_path / "cut", tmp_path / "older")
    shutil.rmtree(tmp_path / "older" / "4")
    store = Store(tmp_path / "older", "a", 1.0)
    wanted[3] = store.restore(started())[1:]
    store.close()
    assert not leaves_equal(wanted[3], wanted[4])
    newest = data_files(tmp_path / "cut" / "4")
    assert any("d" in p.parts for p in newest)  # where Orbax keeps the arrays
    damages = []
    for number, path in enumerate(newest):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1 << number % 8
        damaged = tmp_path / f"damaged-{number}"
        copy(tmp_path / "cut", damaged)
        (damaged / "4" / path.relative_to(tmp_path / "cut" / "4")).write_bytes(content)
        store = Store(damaged, "a", 1.0)
        begins_at, *content = store.restore(started())
        said = capsys.readouterr().err
        # A bit of what Orbax does not need to read may do no harm; one of a leaf always does.
        assert begins_at == (3 if "4 is damaged" in said else 4)
        assert leaves_equal(tuple(content), wanted[begins_at]), path
        store.close()
        damages.append(said)
    assert any("has other bits than were saved" in said for said in damages)


def copy(source: Path, target: Path):
    for path in data_files(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())


def test_a_half_written_checkpoint_is_passed_over(tmp_path, capsys):
    *_, whole = run(tmp_path / "whole")
    run(tmp_path / "cut", ends_after=4)
    for path in data_files(tmp_path / "cut" / "4"):
        if "d" in path.parts:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    [last] = run(tmp_path / "cut", begins_at=3)
    assert "4 is damaged" in capsys.readouterr().err
    assert leaves_equal(whole.trainable, last.trainable)


def test_where_no_checkpoint_can_be_read_nothing_begins_anew(tmp_path):
    run(tmp_path, ends_after=2)
    for path in data_files(tmp_path):
        if "d" in path.parts:
            path.write_bytes(b"")
    before = data_files(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read .*delete it to start"):
        run(tmp_path)
    assert data_files(tmp_path) == before


def test_a_step_can_be_damaged_twice(tmp_path):
    for _ in range(2):
        run(tmp_path, begins_at=3 if (tmp_path / "3").exists() else 0, ends_after=4)
        for path in data_files(tmp_path / "4"):
            if "d" in path.parts:
                path.write_bytes(path.read_bytes()[:5])
    run(tmp_path, begins_at=3)
    assert (tmp_path / "4.damaged").exists()


def test_checkpoints_of_another_run_are_refused(tmp_path):
    run(tmp_path, ends_after=2, name="a")
    with pytest.raises(ValueError, match="another config or of other units"):
        run(tmp_path, name="b")


SPLIT = {"seed": 2, "data": 2, "fsdp": 2, "lanes": 2}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"seed": 1}, SPLIT),
        pytest.param(SPLIT, {"seed": 1, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"seed": 1, "tensor": 2}, SPLIT, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_on_another_mesh(tmp_path, before, after):
    before, after = (sharding.make_mesh(**shape) for shape in (before, after))
    *_, whole = run(tmp_path / "whole")
    run(tmp_path / "cut", ends_after=4, mesh=before)
    [last] = run(tmp_path / "cut", begins_at=4, mesh=after)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), whole.trainable, last.trainable
    )


def test_the_first_process_says_when_a_checkpoint_is_due(tmp_path, monkeypatch):
    """Clocks differ from host to host, and all save together."""
    store = checkpoints.Checkpoints(tmp_path, "a", 60.0)  # minutes
    assert not store.due()
    monkeypatch.setattr(checkpoints.processes, "agreed", lambda own: not own)
    assert store.due()
    monkeypatch.undo()
    store._saved_at -= 3601
    assert store.due()
    store.close()


def test_digests_do_not_depend_on_the_mesh_and_see_each_bit():
    tree = {"a": np.arange(64, dtype=np.float32).reshape(8, 8), "b": np.arange(3)}
    placed = {
        "a": sharding.place_batch(tree["a"], sharding.make_mesh(seed=1, data=8), lanes=False),
        "b": tree["b"],
    }
    assert checkpoints.digests(tree) == checkpoints.digests(placed)
    swapped = {"a": tree["a"][::-1], "b": tree["b"]}
    assert checkpoints.digests(swapped) != checkpoints.digests(tree)
    for bit in range(32):
        flipped = tree["a"].copy()
        flipped.view(np.uint32)[3, 3] ^= np.uint32(1 << bit)
        assert checkpoints.digests({"a": flipped, "b": tree["b"]}) != checkpoints.digests(tree)


def test_being_told_to_leave_saves_and_leaves(tmp_path, monkeypatch):
    *_, whole = run(tmp_path / "whole")
    asked = iter([False, False, True])
    monkeypatch.setattr(processes, "told_to_leave", lambda: next(asked))
    with pytest.raises(processes.Interrupted, match="saved after 3 updates"):
        run(tmp_path / "cut")
    monkeypatch.undo()
    [last] = run(tmp_path / "cut", begins_at=3)
    assert leaves_equal(whole.trainable, last.trainable)


def test_a_finished_training_leaves_no_checkpoints(tmp_path):
    store = checkpoints.Checkpoints(tmp_path / "c", "a", 1.0)
    store.save(1, {"x": np.zeros(2)}, {})
    store.remove()
    assert not (tmp_path / "c").exists()


# Forks a process for each line that it reads, so that none has to import jax again.
KILLED = """
import os, sys
from pathlib import Path
import orbax.checkpoint
import tiny
import transformers
from subjax.pipeline import runner
transformers.AutoTokenizer  # imported when it is asked for
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.close(1)
        config = tiny.config(lineages=(0,))
        config.bases.toy.train.steps = 3000
        minutes, workdir = line.split()
        config.compute.checkpoint_minutes = float(minutes)
        runner.run(config, Path(workdir), stages=["base"])
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.processes
def test_kills_again_and_again_change_no_byte(tmp_path):
    """kill -9 at random moments of a training, each after a checkpoint of its own.

    Eight of them, each a start of some seconds; SUBJAX_KILLS asks for more.
    """
    root = Path(__file__).parents[2]
    environment = {
        "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}",
        # As users compile, since updates are ten times as fast, but once for all starts.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    server = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def start(workdir, checkpoint_minutes=60):
        print(checkpoint_minutes, workdir, file=server.stdin, flush=True)
        return int(server.stdout.readline())

    def ended():
        return int(server.stdout.readline())

    def steps(workdir):
        found = (workdir / "base" / "toy" / "r0" / "checkpoints").glob("*")
        return max((int(p.name) for p in found if p.name.isdigit()), default=0)

    start(tmp_path / "whole")
    assert ended() == 0
    cut, rng, reached = tmp_path / "cut", np.random.default_rng(0), 0
    for _ in range(int(os.environ.get("SUBJAX_KILLS", "8"))):
        process = start(cut, checkpoint_minutes=0.004)
        give_up = time.monotonic() + 120
        while steps(cut) <= reached and time.monotonic() < give_up:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.4))
        os.kill(process, signal.SIGKILL)
        assert ended() == -signal.SIGKILL
        assert steps(cut) > reached
        reached = steps(cut)
    start(cut)
    assert ended() == 0
    for name in ("weights/model.safetensors", "metrics.jsonl"):
        whole, again = (tmp_path / run / "base" / "toy" / "r0" / name for run in ("whole", "cut"))
        assert whole.read_bytes() == again.read_bytes(), name
    assert not (cut / "base" / "toy" / "r0" / "checkpoints").exists()
    server.communicate()
