"""A GGUF file gives the model it was made from, as transformers reads it; damage is one error."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subjax.hf import param_io, weights
from subjax.hf.gguf import gguf_files
from subjax.nn import sharding, transformer
from subjax.runtime.storage import LocalFile
from subjax.tokens import tokenizer
from subjax.tokens.tokenizer import Tokenizer
from tests import gguf_writing, hf_models

# What transformers' own reader of GGUF files does not know, or takes for its own defaults: this
# architecture, and stretched positions. Where it knows only one size of heads, models here have it.
UNKNOWN_TO_TRANSFORMERS = {"gemma", "llama, stretched", "llama 3.1", "gemma3, other bases"}
# Sizes that blocks of 32 values divide.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "rope_theta": 5000.0,
}
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 20}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, wide heads, tied": ("llama", {"head_dim": 24, "tie_word_embeddings": True}),
    "llama, stretched": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama 3.1": (
        "llama",
        {"head_dim": 32, "rope_parameters": {**hf_models.LLAMA3, "rope_theta": 5e3}},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "gemma": ("gemma", {"head_dim": 24}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7}),
    "gemma3, other bases": (
        "gemma3_text",
        {
            **GEMMA,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}


def make(name: str) -> Any:
    model_type, changes = MODELS[name]
    config = hf_models.config_class(model_type)(**{**SIZES, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
            if part.endswith("norm.weight"):
                parameter.add_(1.0)
    return model.eval()


def logits(arch: Any, params: Any, tokens: np.ndarray) -> np.ndarray:
    hidden = transformer.forward(arch, params, jnp.asarray(tokens, jnp.int32))
    return np.asarray(transformer.logits(arch, params, hidden))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=MODELS, scope="module")
def models(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model of transformers, as its own reader gives it, and a directory with both formats."""
    directory = tmp_path_factory.mktemp("models")
    model = make(request.param)
    model.save_pretrained(directory / "hf")
    (directory / "gguf").mkdir()
    gguf_writing.write(model, directory / "gguf" / "model.gguf")
    if request.param not in UNKNOWN_TO_TRANSFORMERS:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory / "gguf", gguf_file="model.gguf", dtype=torch.float32
        )
    return model, directory


def test_a_round_trip_keeps_the_model(models: tuple[Any, Path]) -> None:
    _, directory = models
    arch, expected = weights.load(directory / "hf")
    found_arch, found = weights.load(directory / "gguf" / "model.gguf")
    assert found_arch == arch
    for path, leaf in param_io.flat(expected).items():
        # One more and one less is a rounding.
        tolerance = 1e-6 if "gemma" in arch.model_type and path.endswith("norm/scale") else 0
        np.testing.assert_allclose(param_io.flat(found)[path], leaf, atol=tolerance, err_msg=path)


def test_logits_are_those_of_transformers(models: tuple[Any, Path]) -> None:
    model, directory = models
    tokens = np.random.default_rng(0).integers(0, 61, (2, 60))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    found = logits(*weights.load(directory / "gguf"), tokens)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_packed_values_are_unpacked(name: str, kind: str, tmp_path: Path) -> None:
    """Sharded, too: rows in the order of llama.cpp are read by whole heads."""
    model = make(name)
    gguf_writing.write(model, tmp_path / "model.gguf", kind)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if parameter.ndim == 2 and "norm" not in part:
                kept = gguf_writing.packed(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(kept))
    model.save_pretrained(tmp_path / "hf")
    _, expected = weights.load(tmp_path / "hf")
    mesh = sharding.make_mesh(1, 1, 2, 4)
    for found in (weights.load(tmp_path)[1], weights.load(tmp_path, mesh=mesh)[1]):
        for path, leaf in param_io.flat(expected).items():
            np.testing.assert_allclose(param_io.flat(found)[path], leaf, atol=1e-6, err_msg=path)


def test_the_tokenizer_lies_beside_the_file(tmp_path: Path) -> None:
    gguf_writing.write(make("llama"), tmp_path / "model.gguf")
    for model in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(ValueError, match=r"no readable tokenizer.*tokenizer\.json"):
            Tokenizer.load(model)
    tokenizer.raw_bytes().save(tmp_path)
    for model in (tmp_path, tmp_path / "model.gguf"):
        found = Tokenizer.load(weights.resolve(str(model)))
        assert found.vocab_size > 256
        assert found.eos_ids == (*tokenizer.raw_bytes().eos_ids, 3)  # the file names one, too


def test_a_gguf_file_has_a_digest_that_follows_its_content(tmp_path: Path) -> None:
    model = make("llama")
    gguf_writing.write(model, tmp_path / "one.gguf")
    digest = weights.header_digest(tmp_path)
    assert digest == weights.header_digest(tmp_path / "one.gguf")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    gguf_writing.write(model, tmp_path / "two.gguf")
    assert weights.header_digest(tmp_path / "two.gguf") != digest


def test_a_gguf_file_has_one_digest_wherever_it_lies(tmp_path: Path) -> None:
    """Loading ignores a config.json beside it, and what the file is called."""
    (tmp_path / "alone").mkdir()
    gguf_writing.write(make("llama"), tmp_path / "alone" / "model.gguf")
    digest = weights.header_digest(tmp_path / "alone")
    (tmp_path / "beside").mkdir()
    content = (tmp_path / "alone" / "model.gguf").read_bytes()
    (tmp_path / "beside" / "other.gguf").write_bytes(content)
    (tmp_path / "beside" / "config.json").write_text("{}")
    url = "memory://one_digest/beside"
    for path in (tmp_path / "beside").iterdir():
        fsspec.filesystem("memory").pipe(f"{url}/{path.name}", path.read_bytes())
    for model in (tmp_path / "beside", tmp_path / "beside/other.gguf", url, f"{url}/other.gguf"):
        assert weights.header_digest(model) == digest


def test_every_byte_of_the_header_counts_in_the_digest(good: bytes, tmp_path: Path) -> None:
    """An entry far from the blocks that are read of the body."""
    path = tmp_path / "model.gguf"
    path.write_bytes(good)
    digest = weights.header_digest(path)
    with contextlib.closing(LocalFile(path)) as file:
        header = gguf_files.read_header(file)
        assert good.startswith(header)
        first = min(t.start for t in gguf_files.open_tensors(file)[1].values())
    assert len(header) == first
    for at in (header.index(b"token 31"), header.rindex(b"blk.")):
        path.write_bytes(set_bytes(at, b"B")(good))
        assert weights.header_digest(path) != digest


def test_saving_from_a_gguf_file_takes_its_token_ids(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    gguf_writing.write(make("llama"), tmp_path / "gguf" / "model.gguf")
    tokenizer.raw_bytes().save(tmp_path / "gguf")
    arch, params = weights.load(tmp_path / "gguf")
    weights.save(tmp_path / "new", arch, params, tokenizer_from=tmp_path / "gguf")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "new").eos_token_id == 3
    again, _ = weights.load(tmp_path / "new")
    assert again == arch


# What is refused.


def test_a_missing_gguf_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf_writing.write(make("llama"), tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="-m pip install 'gguf") as error:
        weights.load(tmp_path)
    assert "\n" not in str(error.value)


REFUSED: dict[str, dict[str, Any]] = {
    "rope.dimension_count is 8": {"rope.dimension_count": 8, "attention.key_length": 16},
    "llama.expert_count = 4": {"expert_count": 4},
    "llama.a_new_entry = 1": {"a_new_entry": 1},
    r"llama\.rope\.freq_base_swa = 1": {"rope.freq_base_swa": 10_000.0},
    r"llama\.attention\.sliding_window_pattern = 6": {"attention.sliding_window_pattern": 6},
    "key_length_swa is 8; supported: 16": {"attention.key_length_swa": 8},
    "scaling.attn_factor = 1.2": {"rope.scaling.attn_factor": 1.25},
    "rope_type is 'yarn'": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
    "num_hidden_layers": {"block_count": 0},
    "has no tensor model.layers.3": {"block_count": 4},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_be_another_model_is_refused(message: str, tmp_path: Path) -> None:
    gguf_writing.write(make("llama"), tmp_path / "model.gguf", **REFUSED[message])
    with pytest.raises(ValueError, match=message) as error:
        weights.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "local"), [(2, "TFTFTFT"), (1, "FFFFFFF"), ([True, *[False] * 6], "TFFFFFF")]
)
def test_local_layers_are_those_that_the_file_names(
    pattern: Any, local: str, tmp_path: Path
) -> None:
    entry = {"attention.sliding_window_pattern": pattern}
    gguf_writing.write(make("gemma3"), tmp_path / "model.gguf", **entry)
    found = weights.check(tmp_path).local or (False,) * 7
    assert "".join("FT"[one] for one in found) == local


@pytest.mark.parametrize("pattern", [[True] * 6, [2] * 7, "six", 2**31])
def test_a_pattern_of_other_layers_is_refused(pattern: Any, tmp_path: Path) -> None:
    entry = {"attention.sliding_window_pattern": pattern, "block_count": 7}
    if pattern == 2**31:
        entry = {"attention.sliding_window_pattern": 6, "block_count": pattern}
    gguf_writing.write(make("gemma3"), tmp_path / "model.gguf", **entry)
    with pytest.raises(ValueError, match=r"layer_types|num_hidden_layers") as error:
        weights.check(tmp_path)
    assert "\n" not in str(error.value)


def test_stretched_positions_are_said_once(tmp_path: Path) -> None:
    more = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    gguf_writing.write(make("llama 3.1"), tmp_path / "model.gguf", **more)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight stretches positions, which the meta"):
        weights.check(tmp_path)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"general\.architecture is 'mamba'; supported: llama"):
        weights.load(tmp_path)


def test_of_several_files_one_has_to_be_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        gguf_writing.write(make("llama"), tmp_path / f"{name}.gguf")
    with pytest.raises(ValueError, match=r"2 GGUF files \(a.gguf, b.gguf\)"):
        weights.load(tmp_path)
    assert weights.check(tmp_path / "a.gguf").num_layers == 3


@pytest.mark.parametrize(
    ("message", "offset"),
    [("begins inside another", 32), ("does not begin at 32 bytes", 33), ("inside another", 0)],
)
def test_tensors_lie_one_after_the_other(message: str, offset: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf_writing.write(make("llama"), path)
    content = path.read_bytes()
    # Of a tensor: name, number of dimensions, sizes, packing, offset.
    at = content.index(b"blk.1.attn_norm.weight") + len("blk.1.attn_norm.weight") + 4 + 8 + 4
    path.write_bytes(set_bytes(at, offset.to_bytes(8, "little"))(content))
    with pytest.raises(ValueError, match=message) as error:
        weights.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def set_bytes(at: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda good: good[:at] + content + good[at + len(content) :]


DAMAGED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("cut short", lambda good: b""),
    ("does not begin with GGUF", set_bytes(0, b"JUNK")),
    ("version 9", set_bytes(4, b"\t")),
    ("malformed", set_bytes(8, b"\xff" * 8)),
    ("cut short", set_bytes(16, b"\xff" * 8)),
    ("cut short", lambda good: good[:100]),
    ("is not in the file", lambda good: good[:-2000]),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "model.gguf"
    gguf_writing.write(make("llama"), path, "Q8_0")
    return path.read_bytes()


@pytest.mark.parametrize(("message", "damage"), DAMAGED)
def test_damage_is_one_clear_line(
    message: str, damage: Callable[[bytes], bytes], good: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(damage(good))
    with pytest.raises(ValueError, match=message) as error:
        weights.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def mutated(data: st.DataObject, good: bytes) -> bytes:
    content = bytearray(good)
    header = good.index(b"token 60") + 4000  # the rest are weights
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, 400) | st.integers(0, header))
        stop = start + data.draw(st.sampled_from([0, 1, 4, 8, 8, 10**6]))
        pieces = st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x08\0\0\0", b"\x09\0\0\0"])
        content[start:stop] = data.draw(st.binary(max_size=9) | pieces)
    return bytes(content)


def survives(data: st.DataObject, good: bytes, factory: pytest.TempPathFactory) -> bool:
    """Whether reading a damaged file gives a model, or an error of one line."""
    path = factory.mktemp("mutated") / "model.gguf"
    path.write_bytes(mutated(data, good))
    try:
        arch, params = weights.load(path)
    except ValueError as error:
        return "\n" not in str(error)
    finally:
        path.unlink()
        path.parent.rmdir()
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, t)
        for t in (params, transformer.abstract_params(arch))
    ]
    return shapes[0] == shapes[1]


FUZZ: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "max_examples": int(os.environ.get("SUBJAX_FUZZ", "150")),
}


@settings(**FUZZ)
@given(data=st.data())
def test_a_mutated_file_gives_a_model_or_a_value_error(
    data: st.DataObject, good: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert survives(data, good, tmp_path_factory)
