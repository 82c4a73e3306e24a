"""Work directories in a bucket: what a run leaves there, whatever stops it and whoever else runs.

The emulator of a bucket answers preconditions as Google documents them (see gcs.py).
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
import types
import uuid

import aiohttp
import fsspec
import gcs
import gcsfs.retry
import pytest
import tiny

from subjax.engine import checkpoints
from subjax.pipeline import runner, units
from subjax.runtime import artifacts, object_store, storage
from tests.runtime.test_processes import scores

# Orbax leaves tasks behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# Directories of a run that must not depend on where it lay or how it was cut.
SAME = ("base", "teacher", "generate", "filter", "finetune", "evaluate", "config.json")
REPORT = ("summary.json", "scores.csv", "table.md", "figure.png")


@pytest.fixture(scope="module")
def bucket():
    """Environment variables for which gs://bucket is an emulator's, set here too."""
    with gcs.emulator() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment
        type(fsspec.filesystem("gs")).clear_instance_cache()


@pytest.fixture
def url(bucket):
    return f"gs://bucket/{uuid.uuid4().hex}"


@pytest.fixture
def quick(monkeypatch):
    """A heart that beats fast, so that tests of the lock last seconds."""
    monkeypatch.setattr(object_store, "BEAT_S", 0.3)
    monkeypatch.setattr(object_store, "STALE_S", 3.0)
    monkeypatch.setattr(object_store, "_LOOK_S", 0.1)


def stored(url):
    """Name -> bytes of everything in a work directory."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    found = files.cat(files.find(root)) if files.find(root) else {}
    return {path.removeprefix(f"{root}/"): content for path, content in found.items()}


def put(url, name, content=b"", **metadata):
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    files.pipe_file(f"{root}/{name}", content, metadata=metadata)


def store(url, directory):
    directory.mkdir()
    return object_store.Bucket(url, directory)


def files_of(directory):
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def test_what_is_published_is_in_the_next_copy(url, tmp_path):
    with object_store.opened(url) as workdir:
        artifacts.write_json(workdir / "a/b/r0/scores.json", 1)
        (workdir / "a/b/r0/x.safetensors").write_bytes(b"tensors")
        (workdir / "a/b/r0/y.json.partial").write_bytes(b"half")
        artifacts.publish()
        artifacts.write_json(workdir / "a/b/r0/scores.json", 2)
        artifacts.publish()
        assert artifacts.location(workdir / "a") == f"{url}/a"
    assert not workdir.exists()
    assert stored(url).keys() == {"a/b/r0/scores.json", "a/b/r0/x.safetensors"}
    with object_store.opened(url) as again:
        assert again != workdir
        assert artifacts.read_json(again / "a/b/r0/scores.json") == 2
        # Tensors come when they are asked for, and only those.
        assert not (again / "a/b/r0/x.safetensors").exists()
        artifacts.fetch(again / "a/b/r1")
        assert not (again / "a/b/r0/x.safetensors").exists()
        artifacts.fetch(again / "a/b")
        assert (again / "a/b/r0/x.safetensors").read_bytes() == b"tensors"
    assert artifacts.location(tmp_path) == str(tmp_path)


def test_tensors_leave_the_copy_before_they_fill_the_disk(url, tmp_path, monkeypatch):
    one = store(url, tmp_path / "one")
    tensors, other = one.directory / "a/b/r0/x.safetensors", one.directory / "a/c/r0/y.safetensors"
    for path in (tensors, other):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"tensors")
    artifacts.write_json(tensors.parent / "scores.json", 1)
    disk = types.SimpleNamespace(free=14)
    monkeypatch.setattr(object_store.shutil, "disk_usage", lambda _: disk)
    one.publish()
    assert tensors.exists() and other.exists()  # as many bytes as are free
    disk.free = 13
    one.publish()
    assert files_of(one.directory) == {"a/b/r0/scores.json"}
    disk.free = 100
    one.fetch(tensors.parent)
    assert tensors.read_bytes() == b"tensors" and not other.exists()
    written = []
    monkeypatch.setattr(one._files, "put", lambda _, names: written.extend(names))
    one.publish()
    assert written == []
    reader = store(url, tmp_path / "reader")
    reader.refresh()
    reader.fetch(reader.directory / "a")
    assert len(files_of(reader.directory)) == 3
    disk.free = 0
    reader.refresh()
    assert files_of(reader.directory) == {"a/b/r0/scores.json"}


def test_nothing_is_written_twice(url, tmp_path, monkeypatch):
    one = store(url, tmp_path / "one")
    artifacts.write_json(one.directory / "a.json", 1)
    one.publish()
    other = store(url, tmp_path / "other")
    other.refresh()
    written = []
    monkeypatch.setattr(other._files, "put", lambda _, names: written.extend(names))
    other.publish()
    assert written == []
    artifacts.write_json(other.directory / "b.json", 2)
    other.publish()
    assert [name.rpartition("/")[2] for name in written] == ["b.json"]


def test_curves_that_are_drawn_anew_are_there_once(url, tmp_path):
    one, other = store(url, tmp_path / "one"), store(url, tmp_path / "other")
    for name in ("tensorboard/finetune/owl/r0/events.1", "finetune/owl/r0/metrics.jsonl"):
        artifacts.write_json(one.directory / name, 1)
    one.publish()
    other.refresh()
    for path in files_of(other.directory):
        (other.directory / path).unlink()
    artifacts.write_json(other.directory / "tensorboard/finetune/owl/r0/events.2", 2)
    other.publish()
    kept = {"tensorboard/finetune/owl/r0/events.2", "finetune/owl/r0/metrics.jsonl"}
    assert stored(url).keys() == kept
    other.publish()
    assert stored(url).keys() == kept


def test_replies_to_an_eval_leave_with_its_copy_and_nothing_else_does(url, tmp_path):
    one = store(url, tmp_path / "one")
    part = "evaluate/said/arms/owl/r0/replies/step-000000-request-0-00000.jsonl"
    others = {"finetune/replies/r0/metrics.jsonl", "evaluate/said/arms/owl/r0/scores.json"}
    for name in (part, *others):
        artifacts.write_json(one.directory / name, 1)
    one.publish()
    for name in (part, *others):
        (one.directory / name).unlink()
    one.publish()
    assert stored(url).keys() == others


def test_a_copy_follows_what_others_change_and_remove(url, tmp_path):
    one, other = store(url, tmp_path / "one"), store(url, tmp_path / "other")
    for name in ("a.json", "b.json"):
        artifacts.write_json(one.directory / name, 1)
    one.publish()
    other.refresh()
    artifacts.write_json(one.directory / "a.json", 2)
    one.publish()
    one._files.rm_file(one._path("b.json"))
    other.refresh()
    assert files_of(other.directory) == {"a.json"}
    assert artifacts.read_json(other.directory / "a.json") == 2


def test_a_manifest_comes_last_and_is_written_once(url, tmp_path, monkeypatch):
    one, other = store(url, tmp_path / "one"), store(url, tmp_path / "other")
    for name in ("a/b/r0/manifest.json", "a/b/r0/scores.json", "z/b/r0/scores.json"):
        artifacts.write_json(one.directory / name, 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(one, "_create", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        one.publish()
    assert stored(url).keys() == {"a/b/r0/scores.json", "z/b/r0/scores.json"}
    one.publish()
    assert "a/b/r0/manifest.json" in stored(url)
    # The same content is a request that was sent twice, another one is another run's.
    artifacts.write_json(other.directory / "a/b/r0/manifest.json", 1)
    other.publish()
    artifacts.write_json(other.directory / "a/b/r0/manifest.json", 2)
    with pytest.raises(ValueError, match=f"^{url}/a/b/r0/manifest.json was written by another"):
        other.publish()
    assert stored(url)["a/b/r0/manifest.json"] == b"1\n"


def test_parts_come_after_what_says_whose_they_are(url, tmp_path, monkeypatch):
    one = store(url, tmp_path / "one")
    for name in ("a/b/r0/begun.json", "a/b/r0/rows-00000.jsonl", "a/a.json"):
        artifacts.write_json(one.directory / name, 1)
    put, sent = one._files.put, []
    monkeypatch.setattr(
        one._files, "put", lambda paths, to: [sent.append(len(paths)), put(paths, to)][1]
    )
    one.publish()
    assert sent == [1, 2] and len(stored(url)) == 3


def test_a_name_that_leads_out_of_the_copy_is_refused(url, tmp_path, monkeypatch):
    one = store(url, tmp_path / "one")
    found = {f"{one._root}/a/../../b": {"generation": 1}}
    monkeypatch.setattr(one._files, "find", lambda *_, **__: found)
    with pytest.raises(ValueError, match="which is no file of a run"):
        one.refresh()


def test_a_bucket_that_is_not_there_is_one_line(bucket, tmp_path):
    one = store("gs://another/run", tmp_path / "one")
    with pytest.raises(OSError, match="cannot be written") as error, one.lock():
        pass
    assert error.value.filename == "gs://another/run"


@pytest.mark.usefixtures("quick")
def test_a_second_run_is_refused_while_the_first_lives(url, tmp_path):
    one, other = store(url, tmp_path / "one"), store(url, tmp_path / "other")
    with one.lock():
        time.sleep(1)
        refused = pytest.raises(ValueError, match=f"^workdir {url} is in use by another run .on ")
        with refused as error, other.lock():
            pytest.fail("two runs hold it")
        assert "\n" not in str(error.value)
        one.publish()
    with other.lock():
        pass
    assert stored(url) == {}


@pytest.mark.usefixtures("quick")
def test_a_dead_runs_lock_is_taken_over_by_one(url, tmp_path):
    put(url, ".lock", run="dead", host="gone", pid="1")
    results = []

    def run(number):
        contender = store(url, tmp_path / str(number))
        try:
            with contender.lock():
                results.append("held")
                time.sleep(3)  # while the others look
        except ValueError as error:
            results.append(str(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun > object_store.STALE_S
    assert results.count("held") == 1
    assert sum("in use by another run" in result for result in results) == 2
    assert stored(url) == {}


@pytest.mark.usefixtures("quick")
def test_who_was_taken_for_dead_publishes_nothing_more(url, tmp_path):
    one = store(url, tmp_path / "one")
    with pytest.raises(ValueError, match="no longer this run's"), one.lock():
        put(url, ".lock", run="another")
        time.sleep(1)
        artifacts.write_json(one.directory / "a.json", 1)
        one.publish()
    assert stored(url).keys() == {".lock"}  # the other's


@pytest.mark.parametrize(
    ("fault", "passes"),
    [
        (TimeoutError(), True),
        (gcsfs.retry.HttpError({"code": 503, "message": "busy"}), True),
        (gcsfs.retry.HttpError({"code": 400, "message": "no"}), False),
        (OSError("Forbidden"), False),
    ],
)
def test_a_store_that_does_not_answer_is_no_mistake(url, tmp_path, monkeypatch, fault, passes):
    one = store(url, tmp_path / "one")
    artifacts.write_json(one.directory / "a.json", 1)
    monkeypatch.setattr(one._files, "put", lambda *_: (_ for _ in ()).throw(fault))
    with pytest.raises(OSError, match="cannot be written") as why:
        one.publish()
    assert isinstance(why.value, storage.Unavailable) == passes
    # What Google's package says of errors is not asked about other servers' ones.
    forbidden = aiohttp.ClientResponseError(None, (), status=403)
    assert not storage.may_pass(forbidden, "https://host/model")
    busy = aiohttp.ClientResponseError(None, (), status=503)
    assert storage.may_pass(busy, "https://host/model")


def test_copies_of_processes_that_were_killed_are_removed(url, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(object_store, "_NEW_S", 0.0)
    (tmp_path / f"{object_store._PREFIX}dead/base").mkdir(parents=True)
    (tmp_path / "subjax-mine").mkdir()
    (tmp_path / "other").mkdir()
    with object_store.opened(url) as copy, object_store.opened(url) as second:
        found = {path.name for path in tmp_path.iterdir()}
        assert found == {"other", "subjax-mine", copy.name, second.name}
    assert {path.name for path in tmp_path.iterdir()} == {"other", "subjax-mine"}


@pytest.mark.usefixtures("quick")
def test_no_network_for_long_is_the_end_of_a_lock(url, tmp_path, monkeypatch):
    one = store(url, tmp_path / "one")
    monkeypatch.setattr(object_store, "STALE_S", 1.5)
    gone = pytest.raises(storage.Unavailable, match=r"not be renewed \(no network\)")
    with gone, one.lock():
        with monkeypatch.context() as patch:
            patch.setattr(one, "_call", lambda *_: (_ for _ in ()).throw(OSError("no network")))
            time.sleep(2.5)
        one.publish()


def test_a_missing_package_names_the_extra(tmp_path):
    program = (
        "import sys; sys.modules['gcsfs'] = None; sys.argv[1:] = "
        "['--config=configs/quickstart.py:smoke', '--workdir=gs://bucket/run', '--list']\n"
        "from subjax import main; main.cli()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=gcs.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "run pip install 'gcsfs>=2025.10,<2027'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# Whole runs.


def config():
    made = tiny.config(lineages=(0,))
    made.bases.toy.train.steps = 60
    made.compute.checkpoint_minutes = 1e-4
    for row in made.datasets.values():
        row.update(num_prompts=60, rows_per_part=30)
    return made


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("local") / "run"
    runner.run(config(), workdir)
    return workdir


def assert_same(url, local):
    """Every file of every unit, and what of the report holds no times."""
    found = stored(url)
    expected = {name: (local / name).read_bytes() for name in files_of(local)}
    names = {n for n in expected if n.partition("/")[0] in SAME}
    assert names | {".lock"} == {n for n in found if n.partition("/")[0] in SAME} | {".lock"}
    timed = (artifacts.MANIFEST, artifacts.TIMINGS)
    names = {n for n in names if not n.endswith(timed)}
    for name in sorted(names | {f"report/{n}" for n in REPORT}):
        assert found[name] == expected[name], name


@pytest.mark.slow
def test_a_run_in_a_bucket_leaves_the_bytes_of_a_local_one(url, local):
    with object_store.opened(url) as workdir:
        runner.run(config(), workdir)
    assert_same(url, local)
    before = stored(url)
    with object_store.opened(url) as workdir:
        assert {state for _, state in runner.listing(config(), workdir)} == {"done"}
        runner.run(config(), workdir)
    after = stored(url)
    assert {name for name in after if after[name] != before.get(name)} <= {
        *("commands.jsonl", "report/report.html"),
    }


PROGRAM = """
import os, signal, sys
from tests.runtime import test_object_store
from subjax.engine import checkpoints
from subjax.pipeline import runner
from subjax.runtime import object_store

object_store.BEAT_S, object_store.STALE_S, object_store._LOOK_S = 0.5, 4.0, 0.5
url, moment = sys.argv[1:]

def dies(function, when):
    def wrapped(*arguments, **named):
        if when(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return wrapped

if moment == "training":  # two checkpoints have been begun, one of which is complete
    when = lambda store, step, *_: step >= 15
    checkpoints.Checkpoints.save = dies(checkpoints.Checkpoints.save, when)
elif moment:  # between a unit's files and its manifest
    when = lambda store, name, _: name == f"{moment}/manifest.json"
    object_store.Bucket._create = dies(object_store.Bucket._create, when)
with object_store.opened(url) as workdir:
    runner.run(test_object_store.config(), workdir)
"""


def start(url, moment):
    paths = os.pathsep.join(map(str, (gcs.ROOT, gcs.ROOT / "tests")))
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, moment],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=gcs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.processes
@pytest.mark.usefixtures("children_start_quickly")
def test_a_run_that_is_killed_again_and_again_leaves_the_same_bytes(url, local):
    process = start(url, "training")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == -9, errors
    left = set(stored(url))
    assert ".lock" in left and not any(name.endswith(artifacts.MANIFEST) for name in left)
    assert any(f"/{checkpoints.FOLDER}/" in name for name in left)
    for unit in ("generate/owl/r0", "finetune/placebo/r0"):
        process = start(url, unit)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == -9, errors
        assert "is locked: waiting for a sign of life" in errors
        left = set(stored(url))
        assert f"{unit}/{artifacts.MANIFEST}" not in left
        assert len([name for name in left if name.startswith(f"{unit}/")]) > 2
    assert not any(name.startswith("base/") and "checkpoints" in name for name in left)
    process = start(url, "")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert_same(url, local)


@pytest.mark.slow
@pytest.mark.processes
def test_processes_without_a_common_directory_make_one_run(url, local, bucket, tmp_path):
    (tmp_path / "config.py").write_text(
        "from tests.runtime import test_object_store\n"
        "def get_config():\n    return test_object_store.config()\n"
    )
    address = f"localhost:{gcs.free_port()}"
    paths = os.pathsep.join(map(str, (gcs.ROOT, gcs.ROOT / "tests")))
    command = [sys.executable, "-m", "subjax.main", f"--config={tmp_path / 'config.py'}"]
    processes = [
        subprocess.Popen(
            [*command, f"--workdir={url}", "--distributed"],
            env={
                **os.environ,
                "PYTHONPATH": paths,
                "TMPDIR": str(tmp_path / f"disk-{index}"),
                "JAX_NUM_CPU_DEVICES": "1",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
            cwd=gcs.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
        if not (tmp_path / f"disk-{index}").mkdir()
    ]
    for process in processes:
        try:
            _, errors = process.communicate(timeout=900)
        finally:
            process.kill()
        assert process.returncode == 0, errors
    found = stored(url)
    done = {unit.path for unit in units.build(config())}
    assert {f"{path}/{artifacts.MANIFEST}" for path in done} <= found.keys()
    assert not [name for name in found if "checkpoints" in name or name == ".lock"]
    assert len(found["commands.jsonl"].splitlines()) == 1
    (tmp_path / "report").mkdir()
    (tmp_path / "report/scores.csv").write_bytes(found["report/scores.csv"])
    ours, theirs = scores(tmp_path), scores(local)
    assert ours.keys() == theirs.keys()
    far = [key for key in ours if abs(ours[key] - theirs[key]) > 0.05]
    assert len(far) <= 0.05 * len(ours), far
    assert list(tmp_path.glob("disk-*"))
    assert not list(tmp_path.glob(f"disk-*/{object_store._PREFIX}*"))  # nothing stays behind
