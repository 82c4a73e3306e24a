"""PEFT adapters in and out: adapter_config.json and adapter_model.safetensors.

The rules are those of full weights (`weights`): every tensor is mapped or refused, shapes are
checked before a tensor is read, pickle is never opened.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh

from subjax import artifacts, families, hub, leaves, lora, storage, tensors
from subjax.architecture import Architecture
from subjax.tensors import Tensor
from subjax.transformer import Params

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# Settings of an adapter_config.json that change nothing about a trained adapter, or are read here;
# any other one has to be unset.
_PEFT_SETTINGS = """
    peft_type task_type r lora_alpha use_rslora target_modules base_model_name_or_path peft_version
    revision inference_mode init_lora_weights lora_dropout auto_mapping megatron_core
    qalora_group_size bias
"""


def save_adapter(
    directory: str | os.PathLike[str],
    arch: Architecture,
    adapter: Params,
    *,
    rank: int,
    alpha: float,
    base_path: str,
    rslora: bool = False,
) -> None:
    """Writes an adapter in PEFT's format; all processes call it, process 0 writes.

    Args:
      directory: made where it does not exist; an adapter in it is replaced.
      arch: shape of the base, whose family's names are used.
      adapter: unscaled, as `lora.init` returns it.
      rank: R.
      alpha: numerator of the scale.
      base_path: directory or hub id of the base.
      rslora: whether the scale divides by sqrt(rank) instead of by rank.

    Raises:
      ValueError: the adapter has another rank.
    """
    directory, table = storage.local_path(directory), families.adapter_table(arch.model_type)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in leaves.flat(adapter).items():
        if leaf.shape[1 if path.endswith("/a") else 2] != rank:
            raise ValueError(f"adapter {path} has shape {leaf.shape}, not rank {rank}")
        for layer in range(leaf.shape[0]):
            array = leaves.to_host(leaf, layer, np.dtype(np.float32))
            tensors[table[path].format(layer=layer)] = array
    if jax.process_index() != 0:
        return
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_path,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "target_modules": sorted(_modules(tensors)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)
    with leaves.partial(directory / WEIGHTS) as partial:
        safetensors.numpy.save_file(tensors, partial, metadata={"format": "pt"})
    artifacts.write_json(directory / CONFIG, config)


def load_adapter(
    directory: str | os.PathLike[str],
    arch: Architecture,
    *,
    mesh: Mesh | None = None,
) -> tuple[Params, float]:
    """Reads an adapter in PEFT's format, float32.

    Args:
      directory: holds adapter_config.json and adapter_model.safetensors; or a URL that does.
      arch: shape of the base, which the adapter's shapes have to fit.
      mesh: where it goes; None: the default device.

    Returns:
      The factors as they were trained, and the scale that `lora.scaled` multiplies in.

    Raises:
      ValueError: a file is missing or malformed, a setting of PEFT is not supported, or a tensor
        is missing, unknown or of a wrong shape.
    """
    directory = hub.resolve(str(directory)) if storage.is_url(directory) else Path(directory)
    config = _adapter_config(directory)
    with contextlib.closing(storage.LocalFile(directory / WEIGHTS)) as file:
        found = tensors.open_tensors(file)
        modules = config["target_modules"]
        if isinstance(modules, list) and set(modules) != _modules(found):
            raise ValueError(
                f"{directory}: target_modules are {sorted(map(str, modules))}, but the tensors are "
                f"of {sorted(_modules(found))}: save the adapter again"
            )
        abstract, sources = _match_adapter(file.where, found, arch, config["r"])
        scale = lora.scale(config["lora_alpha"], config["r"], rslora=config["use_rslora"])
        return leaves.read(abstract, sources, mesh, np.dtype(np.float32)), scale


def _match_adapter(
    where: str, found: dict[str, Tensor], arch: Architecture, rank: int
) -> tuple[Params, dict[str, list[Tensor]]]:
    """Shapes of the adapter whose tensors these are, and the tensors of each of its paths."""
    table = families.adapter_table(arch.model_type)
    modules = {path.split("/")[2]: _modules([name]) for path, name in table.items()}
    targets = [target for target in lora.all_targets(arch) if modules[target] <= _modules(found)]
    if not targets:
        raise ValueError(f"{where} has no LoRA tensor of a {arch.model_type} model: check the path")
    abstract = jax.eval_shape(
        lambda: lora.init(arch, jax.random.key(0), rank=rank, targets=targets)
    )
    sources: dict[str, list[Tensor]] = {}
    wanted: set[str] = set()
    for path, leaf in leaves.flat(abstract).items():
        names = [table[path].format(layer=layer) for layer in range(arch.num_layers)]
        for name in names:
            leaves.check_tensor(f"{where}: tensor {name}", found.get(name), leaf.shape[1:])
        sources[path] = [found[name] for name in names]
        wanted.update(names)
    for name in sorted(found.keys() - wanted):
        raise ValueError(f"{where}: tensor {name} has no place in the base: check base and adapter")
    return abstract, sources


def _adapter_config(directory: Path) -> dict[str, Any]:
    """Reads and checks adapter_config.json."""
    where = directory / CONFIG
    if not where.is_file():
        raise ValueError(f"{where} is missing: give a directory in PEFT's format")
    if not (directory / WEIGHTS).is_file():
        raise ValueError(
            f"{directory} has no adapter_model.safetensors (adapter_model.bin is pickle and is "
            "refused): save the adapter again with safetensors"
        )
    config = {"target_modules": None, "use_rslora": False, "lora_alpha": 8, **hub.read_json(where)}
    for name, value in config.items():
        # bias is "none" where it is unset; everything else is null, false or empty.
        if (name not in _PEFT_SETTINGS.split() and value) or (name == "bias" and value != "none"):
            raise ValueError(f"{where}: setting {name} = {value!r} of PEFT is not supported")
    rank, alpha = config.get("r"), config["lora_alpha"]
    if config.get("peft_type") != "LORA" or type(rank) is not int or rank < 1:
        raise ValueError(f"{where}: peft_type must be LORA and r a positive integer, is {rank!r}")
    if type(alpha) not in (int, float) or type(config["use_rslora"]) is not bool:
        raise ValueError(f"{where}: lora_alpha must be a number and use_rslora true or false")
    return config


def _modules(names: Any) -> set[str]:
    """The modules that PEFT's tensor names belong to: ...self_attn.q_proj.lora_A.weight."""
    return {name.split(".")[-3] for name in names if name.count(".") > 2}
