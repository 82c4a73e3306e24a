"""A damaged adapter is one clear line, and one that loads leaves as it came."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subjax.hf import adapters, param_io
from subjax.nn import lora
from subjax.nn.architecture import Architecture

ARCH = Architecture(
    vocab_size=16, num_layers=2, width=8, num_heads=2, num_kv_heads=1, head_dim=4, ffn_width=12
)
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
# What stands in place of a name, a number, a list or an object.
NAMES = st.sampled_from(
    [
        *("", "../../adapter_config.json", "/etc/passwd", "a\nb", "\0", "\ud800", "x" * 300),
        *("base_model.model.lm_head.lora_A.weight", "base_model.model.model.embed_tokens.weight"),
        *(Q, Q.replace("A.weight", "A.default.weight"), Q.replace("layers.0", "layers.7")),
        *(Q.removeprefix("base_model.model."), Q.replace("model.layers", "language_model.layers")),
        *(
            Q.replace("weight", "bias"),
            Q.replace("q_proj", "v_proj"),
            Q.replace(".0.", ".{layer}."),
        ),
        *("q_proj", "all-linear", ".*q_proj", "(", "(?P<a>", "*", "a{99999999999}", "[[:x:]]"),
        *("F32", "F16", "BF16", "F64", "I8", "F8_E4M3", "none", "all", "LORA", "pissa", "[" * 3000),
    ]
)
VALUES = (
    NAMES
    | st.integers(-3, 70)
    | st.sampled_from([2**31, 2**63, 2**64, 10**400, -(2**63), 0.5, 1e29, 1e308, float("nan")])
    | st.sampled_from([True, False, None, [], {}, [[]], [0], [2, 8], [8, 2], ["q_proj"], [None]])
    | st.sampled_from([{"q_proj": 2}, {"q_proj": 0}, {"(": 2}, {"": 5}, {"weight": [1]}])
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("good")
    adapter = lora.init(ARCH, jax.random.key(3), rank=2, targets=("q", "down"))
    adapters.save_adapter(directory, ARCH, adapter, rank=2, alpha=2, base_path="base")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def damaged(data: st.DataObject, value: Any) -> Any:
    """JSON with one thing in it, at any depth, replaced, renamed, removed, added or doubled."""
    inner = isinstance(value, dict | list) and value and data.draw(st.integers(0, 5)) > 0
    if not inner:
        return data.draw(VALUES)
    found = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    at = data.draw(st.sampled_from(list(found)))
    how = data.draw(st.sampled_from(["inner", "inner", "inner", "name", "drop", "add", "swap"]))
    if how == "inner":
        found[at] = damaged(data, found[at])
    elif how == "name":
        found[data.draw(NAMES)] = found.pop(at)
    elif how == "drop":
        del found[at]
    elif how == "add":
        found[data.draw(NAMES)] = data.draw(st.sampled_from(list(found.values())) | VALUES)
    else:
        other = data.draw(st.sampled_from(list(found)))
        found[at], found[other] = found[other], found[at]
    return found if isinstance(value, dict) else list(found.values())


def flipped(data: st.DataObject, content: bytes) -> bytes:
    """Bytes cut, lost, added or changed, mostly near the front."""
    found = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, min(len(found), 400)) | st.integers(0, len(found)))
        stop = start + data.draw(st.sampled_from([0, 1, 1, 8, 10**6]))
        found[start:stop] = data.draw(st.binary(max_size=9))
    return bytes(found)


def mutated(data: st.DataObject, good: dict[str, bytes]) -> dict[str, bytes]:
    """The two files, one or both of them damaged."""
    config, file = json.loads(good[adapters.CONFIG]), good[adapters.WEIGHTS]
    [length] = struct.unpack("<Q", file[:8])
    header, body = json.loads(file[8 : 8 + length]), file[8 + length :]
    for _ in range(data.draw(st.integers(1, 2))):
        if data.draw(st.booleans()):
            header = damaged(data, header)
        elif data.draw(st.booleans()):
            config = damaged(data, config)
        else:
            body = flipped(data, body)
    text = json.dumps(header).encode()
    files = {
        adapters.CONFIG: json.dumps(config).encode(),
        adapters.WEIGHTS: struct.pack("<Q", len(text)) + text + body,
    }
    if data.draw(st.integers(0, 3)) == 0:
        name = data.draw(st.sampled_from(sorted(files)))
        files[name] = flipped(data, files[name])
    return files


def read(files: dict[str, bytes], directory: Path) -> str:
    """What is said of an adapter; "" where it is read, and read the same again once copied."""
    for name in ("in", "out"):
        (directory / name).mkdir()
    for name, content in files.items():
        (directory / "in" / name).write_bytes(content)
    try:
        found, scale = adapters.load_adapter(directory / "in", ARCH)
    except ValueError as error:
        assert str(error).startswith(str(directory / "in"))
        return str(error)
    adapters.copy(directory / "in", directory / "out", {})
    again, same = adapters.load_adapter(directory / "out", ARCH)
    assert same == scale
    kernels = {**ARCH.attention_kernels, **ARCH.mlp_kernels}
    for path, leaf in param_io.flat(found).items():
        num_in, num_out = kernels[path.split("/")[2]]
        at, size = (2, num_in) if path.endswith("/a") else (1, num_out)
        assert leaf.shape[0] == ARCH.num_layers and leaf.shape[at] == size
        assert np.isfinite(leaf).all()
        assert np.array_equal(param_io.flat(again)[path], leaf)
    return ""


@settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    max_examples=int(os.environ.get("SUBJAX_FUZZ", "150")),
)
@given(data=st.data())
def test_a_mutated_adapter_is_read_or_refused_in_one_line(
    data: st.DataObject, good: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("mutated")
    try:
        said = read(mutated(data, good), directory)
    finally:
        shutil.rmtree(directory)
    assert said.isprintable()
    assert len(said) < 1500
