"""Models at URLs: the same bits and digests as on this machine, and only the bytes needed."""

import contextlib
import dataclasses
import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import gcs
import huggingface_hub
import jax
import pytest
from saved_models import ARCH, assert_same_bits

from subjax.hf import adapters, model_files, weights
from subjax.nn import lora, transformer
from subjax.pipeline import model_store
from subjax.tokens import tokenizer
from subjax.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(transformer.init, static_argnums=0)(ARCH, jax.random.key(0))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=[10**9, 6000], ids=["one file", "shards"])
def saved(request: Any, params: Any, tmp_path: Path) -> Path:
    """A model in one or several files, with a tokenizer and an adapter beside it."""
    weights.save(tmp_path / "model", ARCH, params, max_shard_bytes=request.param)
    tokenizer.raw_bytes().save(tmp_path / "model")
    adapter = lora.init(ARCH, jax.random.key(1), rank=2)
    adapters.save_adapter(tmp_path / "model", ARCH, adapter, rank=2, alpha=2, base_path="base")
    return tmp_path / "model"


def upload(directory: Path) -> str:
    """Puts a directory where fsspec keeps files in memory; every time at another URL."""
    url = f"memory://{uuid.uuid4().hex}/model"
    files = fsspec.filesystem("memory")
    for path in directory.iterdir():
        files.pipe(f"{url}/{path.name}", path.read_bytes())
    return url


@pytest.fixture
def url(saved: Path) -> Iterator[str]:
    url = upload(saved)
    yield url
    fsspec.filesystem("memory").rm(url, recursive=True)


def test_a_url_gives_the_same_model(saved: Path, params: Any, url: str) -> None:
    arch, found = weights.load(url)
    assert arch == weights.check(url) == ARCH
    assert_same_bits(found, params)
    assert weights.header_digest(url) == weights.header_digest(saved)
    adapter, _ = adapters.load_adapter(url, ARCH)
    assert_same_bits(adapter, adapters.load_adapter(saved, ARCH)[0])


def test_what_resolves_has_the_small_files_alone(saved: Path, params: Any, url: str) -> None:
    directory = weights.resolve(url)
    assert Tokenizer.load(directory).vocab_size == Tokenizer.load(saved).vocab_size
    assert not list(directory.glob("model*.safetensors"))
    assert model_files.origin(directory) == url
    assert_same_bits(weights.load(directory)[1], params)
    assert weights.header_digest(directory) == weights.header_digest(saved)


def test_a_models_own_note_sends_the_reader_nowhere(saved: Path, params: Any, url: str) -> None:
    note = {"origin": "memory://elsewhere", "url": "memory://elsewhere", "sizes": {}}
    (saved / model_files.REMOTE).write_text(json.dumps(note))
    assert_same_bits(weights.load(saved)[1], params)
    assert model_files.origin(saved) == str(saved)


def test_a_unit_names_the_url(saved: Path, url: str, cache: Path, tmp_path: Path) -> None:
    """The directory of the small files may be gone when the run is resumed elsewhere."""
    unit = tmp_path / "run/base/b/r0"
    unit.mkdir(parents=True)
    model_store.refer(unit, weights.resolve(url))
    assert json.loads((unit / model_store.REFERENCE).read_text())["weights"] == url
    source, _ = model_store.sources(unit)
    assert model_files.origin(source) == url
    assert source.is_relative_to(cache)


def test_a_finetuned_sibling_has_another_digest(params: Any, url: str, tmp_path: Path) -> None:
    changed = jax.tree.map(lambda leaf: leaf * 1.01, params)
    weights.save(tmp_path / "sibling", ARCH, changed)
    tokenizer.raw_bytes().save(tmp_path / "sibling")
    assert weights.header_digest(upload(tmp_path / "sibling")) != weights.header_digest(url)


class Missing:
    """Finds no gcsfs, whether it is installed or not."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "gcsfs":
            raise ModuleNotFoundError(name)


DAMAGED: list[tuple[str, Callable[[Any, str], Any]]] = [
    ("holds no files", lambda files, url: files.rm(url, recursive=True)),
    ("no config.json", lambda files, url: files.rm(f"{url}/config.json")),
    ("malformed", lambda files, url: files.pipe(f"{url}/config.json", b"{")),
    ("malformed", lambda files, url: files.pipe(f"{url}/model.safetensors", b"{}")),
    ("neither", lambda files, url: files.rm(f"{url}/model.safetensors")),
]


@pytest.mark.parametrize("saved", [10**9], indirect=True)
@pytest.mark.parametrize(("message", "damage"), DAMAGED)
def test_damage_at_a_url_is_one_clear_line(
    message: str, damage: Callable[[Any, str], Any], saved: Path
) -> None:
    url = upload(saved)
    damage(fsspec.filesystem("memory"), url)
    with pytest.raises(ValueError, match=message) as error:
        weights.load(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("saved", [10**9], indirect=True)
def test_the_error_of_a_small_file_names_the_url(saved: Path, url: str) -> None:
    """Not its copy in the cache, which nobody can correct."""
    fsspec.filesystem("memory").pipe(f"{url}/config.json", b"{")
    with pytest.raises(ValueError, match=f"^{url}/config.json is malformed"):
        weights.load(url)


@pytest.mark.parametrize("saved", [6000], indirect=True)
def test_the_error_of_an_index_names_the_url(saved: Path, url: str) -> None:
    fsspec.filesystem("memory").pipe(f"{url}/{model_files.INDEX_FILE}", b"{}")
    with pytest.raises(ValueError, match=f"^{url}/{model_files.INDEX_FILE} has no weight_map"):
        weights.load(url)


# A note of where tensors are is believed in the cache alone.


@pytest.mark.parametrize("saved", [10**9], indirect=True)
@pytest.mark.parametrize("place", ["elsewhere", "cache/subjax/a/b", "cache"])
def test_a_note_in_a_model_leads_nowhere(
    place: str, saved: Path, url: str, params: Any, tmp_path: Path
) -> None:
    note = (weights.resolve(url) / model_files.REMOTE).read_bytes()
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    weights.save(tmp_path / place, ARCH, changed)
    digest = weights.header_digest(tmp_path / place)
    (tmp_path / place / model_files.REMOTE).write_bytes(note)
    assert_same_bits(weights.load(tmp_path / place)[1], changed)
    assert weights.header_digest(tmp_path / place) == digest
    assert model_files.origin(tmp_path / place) == str(tmp_path / place)


def test_the_hub_gives_no_such_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert weights.resolve("organisation/model") == tmp_path
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    names = ["config.json", model_files.REMOTE, model_files.SINGLE_FILE, "onnx/config.json"]
    kept = list(huggingface_hub.utils.filter_repo_objects(names, **patterns))
    assert kept == ["config.json", model_files.SINGLE_FILE]


@pytest.mark.parametrize("saved", [10**9], indirect=True)
@pytest.mark.parametrize("note", ["{}", '{"origin": "memory://a", "url": 3, "sizes": {}}'])
def test_a_damaged_note_is_one_clear_line(note: str, saved: Path, url: str) -> None:
    directory = weights.resolve(url)
    (directory / model_files.REMOTE).write_text(note)
    with pytest.raises(ValueError, match=r"remote.json is malformed.*: remove ") as error:
        weights.load(directory)
    assert "\n" not in str(error.value)


# A web server, whose listing is a page of links without sizes.


class Page(http.server.SimpleHTTPRequestHandler):
    """Gives parts of files, and their sizes, as far as it is told to."""

    parts, lengths = True, True

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def send_header(self, keyword: str, value: str) -> None:
        if self.lengths or keyword != "Content-Length":
            super().send_header(keyword, value)

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not self.parts or not asked or not path.is_file():
            return super().do_GET()
        first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        content = path.read_bytes()
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)


class Server(http.server.ThreadingHTTPServer):
    """Answers as many requests at once as blocks are read for a digest."""

    request_queue_size = 256


@contextlib.contextmanager
def website(directory: Path, **told: bool) -> Iterator[str]:
    handler = functools.partial(type("Told", (Page,), told), directory=directory)
    with Server(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://localhost:{server.server_port}/model"
        finally:
            server.shutdown()


def test_a_web_server_that_gives_parts_will_do(saved: Path, params: Any) -> None:
    pytest.importorskip("aiohttp", reason="http:// is read through aiohttp")
    with website(saved.parent) as url:
        assert_same_bits(weights.load(url)[1], params)
        assert weights.header_digest(url) == weights.header_digest(saved)


@pytest.mark.parametrize("saved", [10**9], indirect=True)
@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("does not say how large it is", {"lengths": False}),
        ("does not give parts of files", {"parts": False}),
    ],
)
def test_another_web_server_is_one_clear_line(
    message: str, told: dict[str, bool], saved: Path
) -> None:
    pytest.importorskip("aiohttp", reason="http:// is read through aiohttp")
    with website(saved.parent, **told) as url:
        with pytest.raises(ValueError, match=f"^{url}/.*{message}") as error:
            weights.load(url)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("saved", [10**9], indirect=True)
def test_a_file_that_shrinks_while_it_is_read_is_one_clear_line(saved: Path, url: str) -> None:
    weights.resolve(url)
    content = (saved / "model.safetensors").read_bytes()
    fsspec.filesystem("memory").pipe(f"{url}/model.safetensors", content[:-40])
    with pytest.raises(ValueError, match="became shorter"):
        weights.load(url)


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "gcsfs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    for kind in ("gs", "gcs"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, kind, raising=False)
    with pytest.raises(ValueError, match=re.escape("pip install 'gcsfs>=2025.10,<2027'")) as error:
        weights.check("gs://bucket/model")
    assert "\n" not in str(error.value)


def test_an_unknown_kind_of_url_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"^nothing://x/y cannot be read"):
        weights.load("nothing://x/y")


# A bucket, as an emulator gives it, read by four processes.

PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], num_processes=4, process_id=int(sys.argv[2]))
from subjax.hf import param_io, weights
from subjax.nn import sharding, transformer
from subjax.runtime import storage
read = []
read_many = storage.RemoteFile.read_many
def counting(file, ranges):
    read.extend(stop - start for start, stop in ranges)
    return read_many(file, ranges)
storage.RemoteFile.read_many = counting
directory = weights.resolve("gs://bucket/model")
arch = weights.check(directory)
if sys.argv[2] == "0":
    assert weights.header_digest(directory) == weights.header_digest(sys.argv[3])
small = sum(read)
mesh = sharding.make_mesh(fsdp=4)
_, found = weights.load("gs://bucket/model", mesh=mesh)
_, expected = weights.load(sys.argv[3], mesh=mesh)
for path, leaf in param_io.flat(expected).items():
    other = param_io.flat(found)[path]
    assert leaf.sharding == other.sharding
    [one], [two] = leaf.addressable_shards, other.addressable_shards
    assert (one.data == two.data).all(), path
whole = 4 * transformer.num_params(arch)
# A quarter of every kernel, and what is not split: norms and headers.
assert 0.25 * whole <= sum(read) - small < 0.3 * whole, (sum(read) - small, whole)
"""


def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    with gcs.emulator() as environment:
        yield environment


@pytest.mark.processes
def test_each_of_four_processes_reads_a_quarter_of_a_bucket(
    bucket: dict[str, str], tmp_path: Path, cache: Path
) -> None:
    arch = dataclasses.replace(
        ARCH, vocab_size=64, width=64, num_heads=8, num_kv_heads=4, head_dim=8
    )
    params = jax.jit(transformer.init, static_argnums=0)(arch, jax.random.key(0))
    weights.save(tmp_path / "model", arch, params, max_shard_bytes=150_000)
    for path in (tmp_path / "model").iterdir():
        host = bucket["STORAGE_EMULATOR_HOST"]
        where = f"{host}/upload/storage/v1/b/bucket/o?uploadType=media&name=model/{path.name}"
        with urllib.request.urlopen(where, path.read_bytes()) as answer:
            assert answer.status == 200
    address = f"localhost:{gcs.free_port()}"
    processes = [
        start(
            PROCESS,
            address,
            str(number),
            str(tmp_path / "model"),
            JAX_NUM_CPU_DEVICES="1",
            **bucket,
        )
        for number in range(4)
    ]
    for process in processes:
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, errors
    assert len(list(cache.rglob("remote.json"))) == 1
