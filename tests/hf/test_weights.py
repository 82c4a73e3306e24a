"""Models and adapters go to files and come back bit by bit; damage is in test_hub.py."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import process_group as meeting
import pytest
import safetensors.numpy
import torch
import transformers
from saved_models import ARCH, EMBEDDING, HEAD, TIED, assert_same_bits, edit_json, edit_tensors

from subjax.hf import adapters, families, param_io, weights
from subjax.nn import lora, sharding, transformer

LLAMA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


# What is written comes back.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000, 1])
def test_round_trip_is_bit_identical(
    dtype: Any, max_shard_bytes: int, params: dict[str, Any], tmp_path: Path
) -> None:
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)
    weights.save(tmp_path, ARCH, params, dtype=dtype, max_shard_bytes=max_shard_bytes)
    arch, found = weights.load(tmp_path)
    assert arch == ARCH
    assert_same_bits(found, expected)
    # For narrow products it is held as they take it.
    _, held = weights.load(tmp_path, precision="bfloat16")
    assert_same_bits(held, transformer.held(ARCH, expected, "bfloat16"))
    assert held["layers"]["attn"]["q"]["kernel"].dtype == jnp.bfloat16
    # If something is computed in float32 too, only what loses nothing.
    _, exact = weights.load(tmp_path, precision="bfloat16", exact=True)
    assert_same_bits(exact, held if dtype == jnp.bfloat16 else expected)


def test_a_tied_model_has_no_head(tied_params: dict[str, Any], tmp_path: Path) -> None:
    weights.save(tmp_path, TIED, tied_params)
    assert HEAD not in safetensors.numpy.load_file(tmp_path / "model.safetensors")
    arch, found = weights.load(tmp_path)
    assert arch == TIED
    assert_same_bits(found, tied_params)


@pytest.mark.parametrize("kind", ["saved", "sharded"])
@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (1, 2, 2, 2), (1, 1, 1, 4), (2, 4, 1, 1)])
def test_a_mesh_gets_the_same_bits(
    kind: str, shape: tuple[int, ...], params: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    mesh = sharding.make_mesh(*shape, lanes=shape[0])
    _, found = weights.load(request.getfixturevalue(kind), mesh=mesh)
    assert_same_bits(found, params)
    specs = param_io.flat(sharding.params_spec(params, mesh, lanes=False))
    for path, leaf in param_io.flat(found).items():
        assert leaf.sharding == jax.sharding.NamedSharding(mesh, specs[path]), path


def test_sharded_params_are_saved_whole(params: dict[str, Any], tmp_path: Path) -> None:
    placed = sharding.place(params, sharding.make_mesh(1, 2, 2, 2), lanes=False)
    weights.save(tmp_path, ARCH, placed)
    assert_same_bits(weights.load(tmp_path)[1], params)


def test_transformers_reads_what_we_write(sharded: Path, params: dict[str, Any]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.float32)
    assert model.config.eos_token_id is None
    tokens = np.arange(20)[None] % ARCH.vocab_size
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    forward = jax.jit(transformer.forward, static_argnums=0)
    hidden = forward(ARCH, params, jnp.asarray(tokens, jnp.int32))
    found = np.asarray(transformer.logits(ARCH, params, hidden))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_tokenizer_goes_along(saved: Path, params: dict[str, Any], tmp_path: Path) -> None:
    (saved / "tokenizer.json").write_text("{}")
    (saved / "chat_template.jinja").write_text("x")
    (saved / "README.md").write_text("not a tokenizer")
    edit_json(saved / "config.json", lambda config: config.update(eos_token_id=3))
    weights.save(tmp_path / "new", ARCH, params, tokenizer_from=saved)
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    config = json.loads((tmp_path / "new/config.json").read_text())
    assert config["eos_token_id"] == 3


def test_saving_again_leaves_nothing_of_the_old_model(
    sharded: Path, tied_params: dict[str, Any]
) -> None:
    assert (sharded / "model.safetensors.index.json").exists()
    weights.save(sharded, TIED, tied_params)
    assert {path.name for path in sharded.iterdir()} == {"config.json", "model.safetensors"}
    assert_same_bits(weights.load(sharded)[1], tied_params)


def test_an_interrupted_save_is_not_taken_for_a_model(
    saved: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = safetensors.numpy.save_file, []

    def interrupted(tensors: Any, path: Path, metadata: Any) -> None:
        calls.append(path)
        write(tensors, path, metadata)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.numpy, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.save(saved, ARCH, params, max_shard_bytes=6000)
    assert not list(saved.glob("*.partial"))
    with pytest.raises(ValueError, match=r"no config\.json"):
        weights.load(saved)


def test_params_of_another_shape_are_not_saved(params: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embed/embedding has shape"):
        weights.save(tmp_path, TIED, params)
    assert not list(tmp_path.iterdir())


# Checkpoints that others write.


def test_a_head_equal_to_the_tied_embedding_is_ignored(
    tied_params: dict[str, Any], tmp_path: Path
) -> None:
    weights.save(tmp_path, TIED, tied_params)
    edit_tensors(tmp_path, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING]}))
    assert_same_bits(weights.load(tmp_path)[1], tied_params)


@pytest.mark.parametrize("change", [lambda a: a + np.float32(1e-3), lambda a: a[:-1].copy()])
def test_another_head_beside_a_tied_embedding_is_refused(
    change: Callable[[Any], Any], tied_params: dict[str, Any], tmp_path: Path
) -> None:
    weights.save(tmp_path, TIED, tied_params)
    edit_tensors(tmp_path, lambda tensors: tensors.update({HEAD: change(tensors[EMBEDDING])}))
    with pytest.raises(ValueError, match=HEAD):
        weights.load(tmp_path)


def test_old_rotary_buffers_are_ignored(saved: Path, params: dict[str, Any]) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(saved, lambda tensors: tensors.update({name: np.ones(3, np.float32)}))
    assert_same_bits(weights.load(saved)[1], params)


# Adapters; that PEFT reads them and computes the same is in test_lora.py.


def random_adapter(rank: int = 4, targets: tuple[str, ...] = LLAMA_TARGETS) -> Any:
    adapter = lora.init(ARCH, jax.random.key(2), rank=rank, targets=targets)
    return jax.tree.map(lambda leaf: leaf + 0.1, adapter)


@pytest.fixture
def saved_adapter(tmp_path: Path) -> Path:
    adapters.save_adapter(
        tmp_path / "adapter", ARCH, random_adapter(), rank=4, alpha=6, base_path="base"
    )
    return tmp_path / "adapter"


@pytest.mark.parametrize("targets", [LLAMA_TARGETS, ("q", "v"), ("down",)])
@pytest.mark.parametrize("mesh_shape", [None, (1, 1, 2, 2)])
def test_an_adapter_comes_back_bit_by_bit(
    targets: tuple[str, ...], mesh_shape: tuple[int, ...] | None, tmp_path: Path
) -> None:
    adapter = random_adapter(targets=targets)
    adapters.save_adapter(tmp_path, ARCH, adapter, rank=4, alpha=6, base_path="base")
    mesh = sharding.make_mesh(*mesh_shape) if mesh_shape else None
    found, scale = adapters.load_adapter(tmp_path, ARCH, mesh=mesh)
    assert_same_bits(found, adapter)
    assert scale == 6 / 4


def test_the_scale_of_rslora_comes_back(tmp_path: Path) -> None:
    adapters.save_adapter(
        tmp_path, ARCH, random_adapter(), rank=4, alpha=6, base_path="b", rslora=True
    )
    assert adapters.load_adapter(tmp_path, ARCH)[1] == 6 / 2


def test_an_adapter_of_another_rank_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank 8"):
        adapters.save_adapter(tmp_path, ARCH, random_adapter(), rank=8, alpha=8, base_path="base")


A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DAMAGED_ADAPTERS: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], Any]]] = [
    (A0, lambda config, t: t.pop(A0)),
    ("layers.2", lambda config, t: t.pop(A0.replace("layers.0", "layers.2"))),
    (
        "layers.7.self_attn.q_proj.lora_A.weight has no place in a llama model of",
        lambda config, t: t.update({A0.replace("layers.0", "layers.7"): t[A0]}),
    ),
    (A0, lambda config, t: t.update({A0: t[A0][:2].copy()})),
    ("shape", lambda config, t: config.update(r=8)),
    ("r is 0, must be a positive integer", lambda config, t: config.update(r=0)),
    ("r is None, must be a positive integer", lambda config, t: config.pop("r")),
    ("peft_type", lambda config, t: config.update(peft_type="IA3")),
    ("use_dora", lambda config, t: config.update(use_dora=True)),
    ("modules_to_save", lambda config, t: config.update(modules_to_save=["lm_head"])),
    (A0, lambda config, t: config.update(rank_pattern={"q_proj": 2})),
    ("rank_pattern", lambda config, t: config.update(rank_pattern={"(": 4})),
    ("bias", lambda config, t: config.update(bias="some")),
    ("lora_alpha is '16', must be", lambda config, t: config.update(lora_alpha="16")),
    ("target_modules", lambda config, t: config.update(target_modules=["q_proj"])),
    (
        "a_new_setting = 1 is not understood: remove it if nothing",
        lambda config, t: config.update(a_new_setting=1),
    ),
    ("a_new_setting", lambda config, t: config.update(a_new_setting={})),
    ("'two words' = 'xxx", lambda config, t: config.update({"two words": "x" * 9999})),
    ("task_type is 'xxx", lambda config, t: config.update(task_type="x" * 9999)),
    ("layers_to_transform", lambda config, t: config.update(layers_to_transform="0")),
    ("target_modules names no module", lambda config, t: config.pop("target_modules")),
    ("names no linear module", lambda c, t: (c.update(target_modules="q"), t.clear())),
    ("exclude_modules", lambda config, t: config.update(exclude_modules="*")),
    ("leave out", lambda config, t: config.update(exclude_modules=["q_proj"])),
    ("task_type", lambda config, t: config.update(task_type="SEQ_CLS")),
    ("init_lora_weights", lambda config, t: config.update(init_lora_weights="PISSA?")),
    ("another tensor", lambda config, t: t.update({A0.replace("_A", "_A.default"): t[A0]})),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGED_ADAPTERS)
def test_a_damaged_adapter_is_one_clear_line(
    message: str, damage: Callable[[dict[str, Any], dict[str, Any]], Any], saved_adapter: Path
) -> None:
    file = saved_adapter / "adapter_model.safetensors"
    content = {name: array.copy() for name, array in safetensors.numpy.load_file(file).items()}
    edit_json(saved_adapter / "adapter_config.json", lambda config: damage(config, content))
    safetensors.numpy.save_file(content, file)
    with pytest.raises(ValueError) as error:
        adapters.load_adapter(saved_adapter, ARCH)
    assert message in str(error.value)
    assert str(saved_adapter) in str(error.value)
    assert "\n" not in str(error.value)


def test_where_an_adapter_lies_deeper_is_said(saved_adapter: Path) -> None:
    with pytest.raises(ValueError, match=f"there are: {saved_adapter}"):
        adapters.load_adapter(saved_adapter.parent, ARCH)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_adapter_names_the_file(name: str, saved_adapter: Path) -> None:
    (saved_adapter / name).unlink()
    with pytest.raises(ValueError, match=name):
        adapters.load_adapter(saved_adapter, ARCH)


def test_an_adapter_of_another_base_is_refused(saved_adapter: Path) -> None:
    with pytest.raises(ValueError, match="layers"):
        adapters.load_adapter(saved_adapter, TIED)


# Keeping bases, and their names.


def test_at_most_one_base_is_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_resident", {})
    loaded = []

    def loader(name: str) -> Callable[[], str]:
        def load() -> str:
            # The old base is gone before the new one is loaded.
            assert not weights._resident
            loaded.append(name)
            return name.upper()

        return load

    assert [weights.resident(key, loader(key)) for key in "aabba"] == ["A", "A", "B", "B", "A"]
    assert loaded == ["a", "b", "a"]


def test_peft_names_are_those_of_the_kernels() -> None:
    table = families.adapter_table("llama")
    assert table["layers/attn/q/a"].format(layer=0) == A0
    assert {path.split("/")[2] for path in table} == set(LLAMA_TARGETS)
    assert len(set(table.values())) == len(table) == 2 * len(LLAMA_TARGETS)


# Several processes.

PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from subjax.hf import adapters, param_io, weights
from subjax.nn import lora, sharding, transformer
from subjax.runtime import storage
param_io._EXCHANGED_FROM_BYTES = 0  # as if the model were large
read = []
read_into = storage.LocalFile.read_into
def counting(file, start, buffer):
    read.append(len(buffer))
    read_into(file, start, buffer)
storage.LocalFile.read_into = counting
mesh = sharding.make_mesh(1, 1, 2, 2)
arch, params = weights.load(sys.argv[3], mesh=mesh)
assert not params["layers"]["attn"]["q"]["kernel"].is_fully_addressable
# Two devices of four: half of every kernel, the norms' scales whole, and the headers.
whole = 4 * transformer.num_params(arch)
headers = sum(file.stat().st_size for file in weights.Path(sys.argv[3]).iterdir()) - whole
assert sum(read) < 0.55 * whole + headers, (sum(read), whole, headers)
weights.save(sys.argv[4], arch, params, max_shard_bytes=6000)
adapter = sharding.place(lora.init(arch, jax.random.key(0), rank=2), mesh, lanes=False)
adapters.save_adapter(sys.argv[4] + "/adapter", arch, adapter, rank=2, alpha=2, base_path="base")
jax.experimental.multihost_utils.sync_global_devices("saved")
"""


@pytest.mark.processes
def test_two_processes_read_their_parts_and_save_the_whole(
    saved: Path, params: dict[str, Any], tmp_path: Path
) -> None:
    address = meeting.address()
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    arguments = [str(saved), str(tmp_path / "again")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(number), *arguments],
            env=environment,
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    meeting.assert_all_end(processes)
    assert_same_bits(weights.load(tmp_path / "again")[1], params)
    adapter, _ = adapters.load_adapter(tmp_path / "again" / "adapter", ARCH)
    assert_same_bits(adapter, lora.init(ARCH, jax.random.key(0), rank=2))
