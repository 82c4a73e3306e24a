"""A damaged model directory is one clear error; a sound one has a name that follows its content."""

import json
import os
import pickle
import shutil
import struct
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_models import ARCH, EMBEDDING, HEAD, TIED, edit_json, edit_tensors

from subjax.hf import adapters, weights
from subjax.nn import lora, transformer
from subjax.runtime import errors, storage

UP = "model.layers.1.mlp.up_proj.weight"


# Damage. Each entry changes a good directory; the text has to be in the error.


def raw(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def overwrite(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda directory: (directory / name).write_bytes(content)


def cut(name: str, num_bytes: int) -> Callable[[Path], Any]:
    def damage(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[:num_bytes])

    return damage


def tensors(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    return lambda directory: edit_tensors(directory, edit)


def index(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    return lambda directory: edit_json(
        directory / "model.safetensors.index.json", lambda content: edit(content["weight_map"])
    )


def only_pickle(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def listed_nowhere(directory: Path) -> None:
    index(lambda names: names.pop(UP))(directory)


def in_two_shards(directory: Path) -> None:
    for file in sorted(directory.glob("*.safetensors"))[:2]:
        content = safetensors.numpy.load_file(file)
        safetensors.numpy.save_file({**content, UP: np.ones((20, 16), np.float32)}, file)


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWICE = json.dumps(ONE).encode().join([b'{"a":', b',"a":', b"}"])

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def only_adapter(directory: Path) -> None:
    (directory / "config.json").rename(directory / "adapter_config.json")


def in_a_folder(directory: Path) -> None:
    (directory / "checkpoint-10").mkdir()
    (directory / "config.json").rename(directory / "checkpoint-10" / "adapter_config.json")


DAMAGED: list[tuple[str, str, Callable[[Path], Any]]] = [
    ("saved", "does not exist", shutil.rmtree),
    ("saved", "no config.json", lambda d: (d / "config.json").unlink()),
    ("saved", "no config.json: it holds a PEFT adapter: give its base as path", only_adapter),
    ("saved", "no config.json: give one of those in it", in_a_folder),
    ("saved", "git lfs pull", overwrite("model.safetensors", LFS)),
    ("saved", "config.json is malformed", overwrite("config.json", b"{")),
    ("saved", "config.json is malformed", overwrite("config.json", b"[1]")),
    ("saved", "config.json is malformed", overwrite("config.json", b"\xff\xfe")),
    ("saved", "config.json is malformed", overwrite("config.json", b"[" * 100_000)),
    ("saved", "'a' occurs twice", overwrite("config.json", b'{"a":1,"a":2}')),
    ("saved", "model_type", overwrite("config.json", b"{}")),
    ("saved", "pickle", only_pickle),
    ("saved", "neither", lambda d: (d / "model.safetensors").unlink()),
    ("saved", "malformed", overwrite("model.safetensors", b"")),
    ("saved", "malformed", overwrite("model.safetensors", b"\0\0\0")),
    ("saved", "cut short", cut("model.safetensors", 100)),
    ("saved", "malformed", cut("model.safetensors", 5000)),
    ("saved", "malformed", overwrite("model.safetensors", struct.pack("<Q", 2**62) + b"{}")),
    ("saved", "cut short", overwrite("model.safetensors", struct.pack("<Q", 10**7) + b"{}")),
    ("saved", "malformed", overwrite("model.safetensors", raw(b"{]"))),
    ("saved", "malformed", overwrite("model.safetensors", raw(b"[" * 100_000))),
    ("saved", "'a' occurs twice", overwrite("model.safetensors", raw(TWICE, bytes(8)))),
    ("saved", "malformed", overwrite("model.safetensors", raw({"a": ONE}, bytes(9)))),
    (
        "saved",
        r"has shape \x1b and",
        overwrite("model.safetensors", raw({"a": {**ONE, "shape": "\x1b"}}, bytes(8))),
    ),
    ("saved", r"'a\nb' is no name", overwrite("model.safetensors", raw({"a\nb": ONE}, bytes(8)))),
    ("saved", "surrogates not allowed", overwrite("config.json", b'{"prefix": "\\ud800"}')),
    ("saved", "NaN is no number", overwrite("config.json", b'{"temperature": NaN}')),
    ("saved", "-1e999 is no number", overwrite("config.json", b'{"temperature": -1e999}')),
    ("saved", r"'\x1b' is no name", overwrite("config.json", b'{"\\u001b": 1}')),
    ("saved", UP, tensors(lambda t: t.pop(UP))),
    ("saved", HEAD, tensors(lambda t: t.pop(HEAD))),
    ("saved", "model.layers.3.x", tensors(lambda t: t.update({"model.layers.3.x": t[UP]}))),
    ("saved", "q_proj.bias", tensors(lambda t: t.update({"q_proj.bias": t[UP]}))),
    ("saved", UP, tensors(lambda t: t.update({UP: t[UP].T.copy()}))),
    ("saved", UP, tensors(lambda t: t.update({UP: t[UP][None]}))),
    ("saved", UP, tensors(lambda t: t.update({UP: np.ones((), np.float32)}))),
    ("saved", "I32", tensors(lambda t: t.update({UP: t[UP].astype(np.int32)}))),
    ("saved", "F64", tensors(lambda t: t.update({UP: t[UP].astype(np.float64)}))),
    ("saved", "F8", tensors(lambda t: t.update({UP: t[UP].astype(ml_dtypes.float8_e5m2)}))),
    ("saved", "shape", lambda d: edit_json(d / "config.json", lambda c: c.update(head_dim=8))),
    (
        "saved",
        "model.layers.3.",
        lambda d: edit_json(d / "config.json", lambda c: c.update(num_hidden_layers=9999)),
    ),
    (
        "saved",
        "num_hidden_layers is",
        lambda d: edit_json(d / "config.json", lambda c: c.update(num_hidden_layers=2**30)),
    ),
    ("sharded", "is missing", lambda d: sorted(d.glob("*.safetensors"))[1].unlink()),
    ("sharded", "outside the directory", index(lambda n: n.update({UP: "../x.safetensors"}))),
    ("sharded", "outside the directory", index(lambda n: n.update({UP: "/x.safetensors"}))),
    ("sharded", "outside the directory", index(lambda n: n.update({UP: 3}))),
    ("sharded", "no safetensors file", index(lambda n: n.update({UP: "config.json"}))),
    ("sharded", "no weight_map", index(lambda n: n.clear())),
    ("sharded", "no weight_map", overwrite("model.safetensors.index.json", b"{}")),
    ("sharded", UP, index(lambda n: n.update({UP: n[EMBEDDING]}))),
    ("sharded", "no_such_tensor", index(lambda n: n.update(no_such_tensor=n[UP]))),
    ("sharded", UP, listed_nowhere),
    ("sharded", UP, in_two_shards),
]


@pytest.mark.parametrize(("kind", "message", "damage"), DAMAGED)
def test_damage_is_one_clear_line(
    kind: str, message: str, damage: Callable[[Path], Any], request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(kind)
    damage(directory)
    with pytest.raises(ValueError) as error:
        weights.load(directory)
    assert message in str(error.value)
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_url_is_not_written_to(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not on this machine"):
        weights.save("gs://bucket/model", ARCH, params)


@pytest.fixture(scope="module")
def good_files(
    tmp_path_factory: pytest.TempPathFactory, tied_params: dict[str, Any]
) -> dict[str, bytes]:
    """A model in several files, and an adapter of it."""
    directory = tmp_path_factory.mktemp("good")
    weights.save(directory, TIED, tied_params, max_shard_bytes=700)
    adapter = lora.init(TIED, jax.random.key(3), rank=2, targets=("q",))
    adapters.save_adapter(directory, TIED, adapter, rank=2, alpha=2, base_path="base")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def mutated(data: st.DataObject, good: bytes) -> bytes:
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        # Most of it at the front, where the header is.
        start = data.draw(st.integers(0, min(len(content), 400)) | st.integers(0, len(content)))
        stop = start + data.draw(st.sampled_from([0, 1, 1, 8, 10**6]))
        pieces = st.sampled_from([b"{", b'"', b"-1", b"99999999999999999999", b"null", b"[", b"\0"])
        content[start:stop] = data.draw(st.binary(max_size=9) | pieces)
    return bytes(content)


def shapes_read(
    data: st.DataObject, good_files: dict[str, bytes], directory: Path
) -> tuple[Any, Any]:
    """Damages one file and reads the directory: the shapes that came, and those that should."""
    name = data.draw(st.sampled_from(sorted(good_files)))
    for other, content in good_files.items():
        (directory / other).write_bytes(mutated(data, content) if other == name else content)
    arch = weights.check(directory)
    if name.startswith("adapter"):
        adapter, _ = adapters.load_adapter(directory, TIED)
        factor = adapter["layers"]["attn"]["q"]["a"]
        return factor.shape, (TIED.num_layers, 2, TIED.width)
    # The weights themselves are read only where they may be damaged: thousands of times is a lot.
    params = weights.load(directory)[1] if name.startswith("model") else {}
    expected = transformer.abstract_params(arch) if params else {}
    return tuple(jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (params, expected))


def survives(
    data: st.DataObject, good_files: dict[str, bytes], factory: pytest.TempPathFactory
) -> bool:
    """Whether reading a damaged directory gives what it should, or an error of one line."""
    directory = factory.mktemp("mutated")
    try:
        found, expected = shapes_read(data, good_files, directory)
    except ValueError as error:
        return "\n" not in str(error)
    finally:
        shutil.rmtree(directory)
    return found == expected


FUZZ: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "max_examples": int(os.environ.get("SUBJAX_FUZZ", "150")),
}


@settings(**FUZZ)
@given(data=st.data())
def test_a_mutated_directory_gives_a_model_or_a_value_error(
    data: st.DataObject, good_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert survives(data, good_files, tmp_path_factory)


# Finding, naming and keeping bases.


def test_a_local_directory_resolves_to_itself(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.resolve(str(saved)) == saved
    monkeypatch.chdir(saved.parent)
    assert weights.resolve("model").resolve() == saved.resolve()


@pytest.mark.parametrize("name", ["/no/such/dir", "./x", "~/x", "a/b/c", "", "organisation/model"])
def test_what_cannot_be_resolved_names_the_ways_out(name: str) -> None:
    """The tests run with HF_HUB_OFFLINE, so the hub gives nothing."""
    with pytest.raises(ValueError, match=r"local directory.*fetch_smollm2\.py") as error:
        weights.resolve(name, "main")
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)


def answer(status: int) -> Exception:
    response = types.SimpleNamespace(status_code=status)
    return type("HfHubHTTPError", (Exception,), {"response": response})(f"{status} of the hub")


@pytest.mark.parametrize(
    ("cause", "passes"),
    [
        (answer(429), True),
        (answer(503), True),
        (TimeoutError("read timed out"), True),
        (answer(401), False),
        (answer(404), False),
        (ConnectionError("no route to host"), False),
        (type("ConnectTimeout", (TimeoutError,), {})("a firewall"), False),
    ],
)
def test_a_busy_hub_is_no_mistake(
    cause: Exception, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("neither on the hub nor cached") from cause

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(storage.Unavailable if passes else ValueError, match="the hub") as error:
        weights.resolve("organisation/model")
    assert "organisation/model" in errors.explain(error.value, Path())


def on_the_hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """Gives the hub's client one repository; what it fetches is noted in the list."""
    fetched: list[str] = []

    def download(hub_id: str, *, revision: Any, allow_patterns: Any, ignore_patterns: Any) -> str:
        assert revision in (None, "c" * 40)
        snapshot = root / "models--organisation--model" / "snapshots" / ("c" * 40)
        wanted = huggingface_hub.utils.filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for name in wanted:
            snapshot.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_bytes(files[name])
            fetched.append(name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return fetched


@pytest.mark.parametrize("kind", ["saved", "sharded"])
def test_the_hub_is_asked_for_what_is_read(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    directory = request.getfixturevalue(kind)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    beside = {"tokenizer.json": b"{}", "preprocessor_config.json": b"{}"}
    unread = (
        *("consolidated.safetensors", "consolidated-00001-of-00002.safetensors"),
        *("model.fp16.safetensors", "tf_model.h5", "pytorch_model.bin", "model.gguf", "README.md"),
        *("original/consolidated.00.pth", "original/params.json", "onnx/model.onnx"),
    )
    more = {**files, **beside, **dict.fromkeys(unread, b"large")}
    fetched = on_the_hub(more, monkeypatch, tmp_path / "hub")
    found = weights.resolve("organisation/model")
    assert sorted(fetched) == sorted({**files, **beside})
    assert weights.check(found) == ARCH


def test_an_index_of_the_hub_may_not_name_other_places(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index(lambda names: names.update({UP: "../x.safetensors"}))(sharded)
    files = {path.name: path.read_bytes() for path in sharded.iterdir()}
    on_the_hub(files, monkeypatch, tmp_path / "hub")
    with pytest.raises(ValueError, match="outside the directory") as error:
        weights.resolve("organisation/model")
    assert "\n" not in str(error.value)


def test_the_digest_follows_the_content_and_not_the_place(
    saved: Path, params: dict[str, Any], tmp_path: Path
) -> None:
    digest = weights.header_digest(saved)
    assert digest == weights.header_digest(shutil.copytree(saved, tmp_path / "copy"))

    def of(name: str, damage: Callable[[Path], Any]) -> str:
        directory = shutil.copytree(saved, tmp_path / name)
        damage(directory)
        return weights.header_digest(directory)

    def finetune(directory: Path) -> None:
        weights.save(directory, ARCH, jax.tree.map(lambda leaf: leaf * 1.01, params))

    changed = {
        of("theta", lambda d: edit_json(d / "config.json", lambda c: c.update(rope_theta=1.0))),
        of("tokenizer", lambda d: (d / "tokenizer.json").write_text("{}")),
        of("sibling", finetune),
        of("half", lambda d: weights.save(d, ARCH, params, dtype=jnp.bfloat16)),
        of("sharded", lambda d: weights.save(d, ARCH, params, max_shard_bytes=6000)),
    }
    assert len(changed | {digest}) == 6
