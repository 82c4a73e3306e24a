"""An adapter starts as PEFT's does, computes what PEFT computes, and merges without a trace."""

import copy
import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers

from subjax.hf import adapters, param_io, weights
from subjax.nn import lora, transformer
from subjax.nn.architecture import Architecture

ARCH = Architecture(
    vocab_size=32,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffn_width=20,
)
TOKENS = np.random.default_rng(0).integers(0, ARCH.vocab_size, (2, 15))
forward = jax.jit(transformer.forward, static_argnums=0)
SUBSETS = [lora.all_targets(ARCH), ("q", "v"), ("o", "down"), ("gate",)]


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return jax.jit(transformer.init, static_argnums=0)(ARCH, jax.random.key(0))


def trained(targets: tuple[str, ...], rank: int = 3) -> dict[str, Any]:
    """An adapter whose b is not zero, large enough to change the logits a lot."""
    adapter = lora.init(ARCH, jax.random.key(1), rank=rank, targets=targets)
    keys = iter(jax.random.split(jax.random.key(2), 100))
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * jax.random.normal(next(keys), leaf.shape), adapter
    )


def logits(params: dict[str, Any], adapter: dict[str, Any] | None = None) -> np.ndarray:
    tokens = jnp.asarray(TOKENS, jnp.int32)
    hidden = forward(ARCH, params, tokens, adapter=adapter)
    return np.asarray(transformer.logits(ARCH, params, hidden))


def torch_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, relative: float = 1e-4) -> None:
    assert np.abs(found - expected).max() <= relative * np.abs(expected).max()


def test_a_fresh_adapter_changes_nothing(params: dict[str, Any]) -> None:
    adapter = lora.scaled(lora.init(ARCH, jax.random.key(1), rank=3), 7.0)
    assert np.array_equal(logits(params, adapter), logits(params))
    merged = lora.merge(params, adapter)
    for path, leaf in param_io.flat(merged).items():
        assert np.array_equal(leaf, param_io.flat(params)[path]), path


@pytest.mark.parametrize("targets", SUBSETS)
def test_merged_and_unmerged_agree(targets: tuple[str, ...], params: dict[str, Any]) -> None:
    adapter = lora.scaled(trained(targets), lora.scale(5, 3))
    with_adapter = logits(params, adapter)
    assert np.abs(with_adapter - logits(params)).max() > 0.05
    assert_close(logits(lora.merge(params, adapter)), with_adapter)


@pytest.mark.parametrize("targets", SUBSETS)
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_computes_the_same(
    targets: tuple[str, ...], rslora: bool, params: dict[str, Any], tmp_path: Path
) -> None:
    adapter = trained(targets)
    weights.save(tmp_path / "base", ARCH, params)
    adapters.save_adapter(
        tmp_path / "adapter",
        ARCH,
        adapter,
        rank=3,
        alpha=5,
        base_path=str(tmp_path / "base"),
        rslora=rslora,
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = torch_logits(peft.PeftModel.from_pretrained(base, tmp_path / "adapter"))
    scaled = lora.scaled(adapter, lora.scale(5, 3, rslora=rslora))
    assert_close(logits(params, scaled), expected)


@pytest.fixture(scope="module")
def torch_base(params: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The base in transformers."""
    directory = tmp_path_factory.mktemp("base")
    weights.save(directory, ARCH, params)
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


UNSLOTH = (
    r"(?:.*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|up_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn)\.(?:(?:q_proj|v_proj)))"
)
# Settings with which an adapter is what PEFT loads, in one adapter, for they do nothing to it.
TOGETHER: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": None,
    "auto_mapping": {"base_model_class": "LlamaForCausalLM"},
    "peft_version": "0.3.0",
    "base_model_name_or_path": "unsloth/a-model-bnb-4bit",
    "revision": "main",
    "inference_mode": False,
    "lora_dropout": 0.5,
    "fan_in_fan_out": True,
    "bias": "all",
    "modules_to_save": [],
    "megatron_core": "somewhere.else",
    "loftq_config": {"loftq_bits": 4, "loftq_iter": 1},
    "eva_config": dataclasses.asdict(peft.EvaConfig()),
    "corda_config": {"corda_method": "kpm"},
    "lora_ga_config": {"direction": "ArBr"},
    "qalora_group_size": 4,
    "runtime_config": {"ephemeral_gpu_offload": True},
    "ensure_weight_tying": True,
    "merge_weights": False,  # of other versions: as good as absent
    "enable_lora": None,
}
# Setting -> values with which it is, too. A dict is several settings.
SAME: dict[str, list[Any]] = {
    "r": [1],
    "target_modules": [
        ["self_attn.q_proj"],
        ["model.layers.1.mlp.up_proj", "q_proj"],
        ["model.layers.0.self_attn.v_proj"],
        ["q_proj", "no_such_proj"],
        r".*\.(q|v)_proj",
        r"(?i)model\.LAYERS\.1\..*(o_proj|up_proj)",
        "all-linear",
        UNSLOTH,
    ],
    "exclude_modules": [
        None,
        ["0.self_attn.q_proj"],
        ["model.layers.0.mlp.down_proj", "q_proj"],
        r".*\.1\..*_proj",
        {"exclude_modules": ["down_proj"], "target_modules": "all-linear"},
    ],
    "lora_alpha": [2.5, 0],
    "bias": ["lora_only"],
    "use_rslora": [True],
    "init_lora_weights": [True, False, "gaussian", "eva", "orthogonal", "mica"],
    "layers_to_transform": [
        0,
        [1],
        [],
        {"layers_to_transform": [0], "target_modules": ["model.layers.1.mlp.up_proj", "q_proj"]},
    ],
    "layers_pattern": [
        {"layers_pattern": "layers", "layers_to_transform": 1},
        {"layers_pattern": ["blocks", "lay.*"], "layers_to_transform": [0]},
        {"layers_pattern": [], "layers_to_transform": [0]},
    ],
    "rank_pattern": [
        {"rank_pattern": {"q_proj": 2}},
        {"rank_pattern": {"^model.layers.1.mlp.down_proj": 7, "down_proj": 3}},
        {"rank_pattern": {"0.self_attn.q_proj|down_proj": 5}, "use_rslora": True},
    ],
    "alpha_pattern": [
        {"alpha_pattern": {"model.layers.0.self_attn.q_proj": 24, "q_proj": 3}},
        {"alpha_pattern": {"layers.1.*": 9}, "rank_pattern": {"proj": 2, ".*down_proj": 6}},
    ],
}
# Setting -> values that are refused.
REFUSED: dict[str, list[Any]] = {
    "init_lora_weights": ["pissa", "pissa_niter_16", "olora", "OLoRA", "loftq", "corda", "lora_ga"],
    "modules_to_save": [["lm_head"]],
    "trainable_token_indices": [[1]],
    "megatron_config": [{"tensor_model_parallel_size": 2}],
    "use_dora": [True],
    "velora_config": [{"num_groups": 4}],
    "alora_invocation_tokens": [[1, 2]],
    "use_qalora": [True],
    "monteclora_config": [{}],
    "layer_replication": [[[0, 2], [1, 2]]],
    "lora_bias": [True],
    "target_parameters": [["mlp.up_proj.weight"]],
    "use_bdlora": [{"nblocks": 2}],
    "arrow_config": [{"top_k": 1}],
    "kasa_config": [{}],
}
# What a file says and an adapter in memory does not, or says otherwise.
_ONLY_IN_FILES = ("base_model_name_or_path", "runtime_config", "merge_weights", "enable_lora")


def cases(table: dict[str, list[Any]]) -> list[Any]:
    """A dict of settings for each value of the table."""
    found = []
    for name, values in table.items():
        for value in values:
            whole = isinstance(value, dict) and name in value
            label = f"{name}={value}".replace("/", "|")[:60]
            found.append(pytest.param(value if whole else {name: value}, id=label))
    return found


def made_by_peft(base: Any, directory: Path, settings: dict[str, Any]) -> Any:
    """Trains an adapter, as far as that goes, and saves it; returns the model that PEFT reloads."""
    given = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    given |= {"task_type": "CAUSAL_LM", **settings}
    left = {name: given.pop(name) for name in _ONLY_IN_FILES if name in given}
    if given["target_modules"] == "all-linear":  # PEFT writes what it found; others leave it
        left["target_modules"] = "all-linear"
    with warnings.catch_warnings():  # PEFT warns of most settings
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**given))
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(directory)
        edit(directory, left)
        return peft.PeftModel.from_pretrained(copy.deepcopy(base), directory)


def merged_in_numpy(params: dict[str, Any], adapter: dict[str, Any], scale: float) -> Any:
    """As `lora.merge`, without a program for each rank; the forward pass is the same one."""
    flat = {path: np.asarray(leaf) for path, leaf in param_io.flat(params).items()}
    factors = param_io.flat(adapter)
    for path in factors:
        if path.endswith("/a"):
            target = path.removesuffix("/a")
            b, a = (np.asarray(factors[f"{target}/{factor}"]) for factor in "ba")
            flat[f"{target}/kernel"] = flat[f"{target}/kernel"] + scale * np.matmul(b, a)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(flat[jax.tree_util.keystr(path, simple=True, separator="/")]),
        params,
    )


def edit(directory: Path, settings: dict[str, Any]) -> None:
    """Changes an adapter_config.json."""
    path = directory / adapters.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_every_setting_of_peft_is_either_the_same_or_refused() -> None:
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert known <= TOGETHER.keys() | SAME.keys() | REFUSED.keys()


@pytest.mark.parametrize("settings", [TOGETHER, *cases(SAME)])
def test_an_adapter_of_peft_is_what_peft_loads(
    settings: dict[str, Any], params: dict[str, Any], torch_base: Any, tmp_path: Path
) -> None:
    expected = torch_logits(made_by_peft(torch_base, tmp_path, settings))
    adapter, scale = adapters.load_adapter(tmp_path, ARCH)
    changes = np.abs(expected - logits(params)).max() > 0.05
    assert changes != (settings.get("lora_alpha") == 0)
    assert_close(logits(merged_in_numpy(params, adapter, scale)), expected)


@pytest.fixture(scope="module")
def plain(torch_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter without any special setting."""
    directory = tmp_path_factory.mktemp("plain")
    made_by_peft(torch_base, directory, {})
    return directory


def copied(
    plain: Path, directory: Path, rename: Any = lambda name: name, dtype: Any = None
) -> Path:
    """The plain adapter with other names or another dtype."""
    tensors = safetensors.torch.load_file(plain / adapters.WEIGHTS)
    directory.mkdir()
    safetensors.torch.save_file(
        {rename(name): tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()},
        directory / adapters.WEIGHTS,
    )
    (directory / adapters.CONFIG).write_text((plain / adapters.CONFIG).read_text())
    return directory


@pytest.mark.parametrize("settings", cases(REFUSED))
def test_what_changes_more_than_an_ordinary_adapter_is_refused_by_name(
    settings: dict[str, Any], plain: Path, tmp_path: Path
) -> None:
    edit(copied(plain, tmp_path / "out"), settings)
    with pytest.raises(ValueError, match=f"{adapters.CONFIG}: {next(iter(settings))} = ") as error:
        adapters.load_adapter(tmp_path / "out", ARCH)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3, 5]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"kasa_config": {}},
        {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "match_strict": False, "nblocks": 2}},
        {"velora_config": {"num_groups": 4}},
        {"target_parameters": ["mlp.up_proj.weight"]},
    ],
    ids=str,
)
def test_what_is_refused_can_be_merged_as_the_line_says(
    settings: dict[str, Any], torch_base: Any, tmp_path: Path
) -> None:
    model = made_by_peft(torch_base, tmp_path / "adapter", settings)
    expected = torch_logits(model)
    with pytest.raises(ValueError, match=r"merge_and_unload\(\)"):
        adapters.load_adapter(tmp_path / "adapter", ARCH)
    model.merge_and_unload().save_pretrained(tmp_path / "new")
    arch, merged = weights.load(tmp_path / "new")
    hidden = forward(arch, merged, jnp.asarray(TOKENS, jnp.int32))
    assert_close(np.asarray(transformer.logits(arch, merged, hidden)), expected)


def test_an_adapter_with_new_tokens_can_be_merged_as_the_line_says(
    torch_base: Any, tmp_path: Path
) -> None:
    """PEFT saves the embedding and the head of a base whose vocabulary was enlarged."""
    larger = copy.deepcopy(torch_base)
    larger.resize_token_embeddings(40)
    expected = torch_logits(made_by_peft(larger, tmp_path / "adapter", {}))
    message = r"tensor \S+lm_head\.weight is no factor .*base\.resize_token_embeddings\(40\), then"
    with pytest.raises(ValueError, match=message) as error:
        adapters.load_adapter(tmp_path / "adapter", ARCH)
    assert "\n" not in str(error.value)
    base = copy.deepcopy(torch_base)
    base.resize_token_embeddings(40)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "new")
    arch, merged = weights.load(tmp_path / "new")
    hidden = forward(arch, merged, jnp.asarray(TOKENS, jnp.int32))
    assert_close(np.asarray(transformer.logits(arch, merged, hidden)), expected)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
    ],
    ids=["with the adapter's name", "without PEFT's prefix"],
)
def test_names_of_other_writers_are_read_and_leave_as_those_of_peft(
    rename: Any, plain: Path, tmp_path: Path
) -> None:
    expected = param_io.flat(adapters.load_adapter(plain, ARCH)[0])
    found = param_io.flat(adapters.load_adapter(copied(plain, tmp_path / "in", rename), ARCH)[0])
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], leaf) for path, leaf in expected.items())

    (tmp_path / "out").mkdir()
    adapters.copy(tmp_path / "in", tmp_path / "out", {"revision": "main"})
    tensors, own = (
        safetensors.torch.load_file(directory / adapters.WEIGHTS)
        for directory in (tmp_path / "out", plain)
    )
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_read(dtype: Any, plain: Path, tmp_path: Path) -> None:
    found = param_io.flat(
        adapters.load_adapter(copied(plain, tmp_path / "in", dtype=dtype), ARCH)[0]
    )
    for path, leaf in param_io.flat(adapters.load_adapter(plain, ARCH)[0]).items():
        rounded = torch.tensor(np.asarray(leaf)).to(dtype).float().numpy()
        assert np.array_equal(found[path], rounded), path


def test_the_initialisation_is_that_of_peft(params: dict[str, Any], tmp_path: Path) -> None:
    """PEFT draws from the same interval: its largest of many draws lies just below our bound."""
    weights.save(tmp_path, ARCH, params)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    config = peft.LoraConfig(r=500, target_modules=["q_proj", "down_proj"])
    theirs = {
        name: parameter.detach().numpy()
        for name, parameter in peft.get_peft_model(base, config).named_parameters()
        if "lora_" in name
    }
    ours = lora.init(ARCH, jax.random.key(3), rank=500, targets=("q", "down"))["layers"]
    for factors, module, num_in in (
        (ours["attn"]["q"], "q_proj", ARCH.width),
        (ours["mlp"]["down"], "down_proj", ARCH.ffn_width),
    ):
        bound = 1 / math.sqrt(num_in)
        for draw in (
            np.asarray(factors["a"]),
            np.stack([a for name, a in theirs.items() if module in name and "lora_A" in name]),
        ):
            assert draw.shape == (ARCH.num_layers, 500, num_in)
            assert 0.999 * bound < np.abs(draw).max() <= bound
            # Of a uniform distribution, and centred: 16,000 draws and more.
            assert abs(draw.std() / (bound / math.sqrt(3)) - 1) < 0.02
            assert abs(draw.mean()) < 0.02 * bound
        assert not np.asarray(factors["b"]).any()
        assert not any(b.any() for name, b in theirs.items() if "lora_B" in name)


def test_targets_do_not_change_each_others_draws() -> None:
    key = jax.random.key(4)
    alone = lora.init(ARCH, key, rank=2, targets=("v",))["layers"]["attn"]["v"]["a"]
    among = lora.init(ARCH, key, rank=2)["layers"]["attn"]
    assert np.array_equal(alone, among["v"]["a"])
    assert not np.array_equal(among["k"]["a"], among["v"]["a"])


def test_layers_are_drawn_apart() -> None:
    a = lora.init(ARCH, jax.random.key(5), rank=2)["layers"]["mlp"]["up"]["a"]
    assert not np.array_equal(a[0], a[1])


def test_lanes_are_merged_as_they_would_be_alone(params: dict[str, Any]) -> None:
    lanes = [lora.scaled(trained(("q", "up"), rank=rank), 2.0) for rank in (3, 3)]
    lanes[1] = jax.tree.map(lambda leaf: leaf * 0.5, lanes[1])
    stacked = jax.tree.map(lambda *leaf: jnp.stack(leaf), *lanes)
    merged = jax.vmap(lora.merge, in_axes=(None, 0))(params, stacked)
    for lane, adapter in enumerate(lanes):
        alone = param_io.flat(lora.merge(params, adapter))
        for path, leaf in param_io.flat(merged).items():
            np.testing.assert_allclose(leaf[lane], alone[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_merging_leaves_its_arguments_alone(params: dict[str, Any]) -> None:
    before = {path: np.asarray(leaf).copy() for path, leaf in param_io.flat(params).items()}
    lora.merge(params, lora.scaled(trained(lora.all_targets(ARCH)), 1.0))
    for path, leaf in param_io.flat(params).items():
        assert np.array_equal(leaf, before[path])


def test_an_adapter_of_another_base_is_not_merged(params: dict[str, Any]) -> None:
    other = Architecture(32, 2, 16, 4, 4, 6, 20)
    adapter = lora.init(other, jax.random.key(0), rank=2, targets=("k",))
    with pytest.raises(ValueError, match="attn/k"):
        lora.merge(params, adapter)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        lora.init(ARCH, jax.random.key(0), rank=rank)


@pytest.mark.parametrize("targets", [(), ("q", "q"), ("q_proj",), ("lm_head",)])
def test_unknown_targets_are_refused(targets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="lora targets"):
        lora.init(ARCH, jax.random.key(0), rank=1, targets=targets)
