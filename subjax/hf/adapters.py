"""PEFT adapters in and out: adapter_config.json and adapter_model.safetensors.

The rules are the same as for full weights (`weights`): every tensor is mapped or refused, shapes
are checked before a tensor is read, pickle is never opened. `adapter_config` reads the settings.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh

from subjax.hf import (
    adapter_config,
    families,
    hub,
    model_files,
    param_io,
    tensor_names,
    tensors,
)
from subjax.hf.adapter_config import Settings
from subjax.hf.tensors import Tensor
from subjax.nn import lora
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.runtime import artifacts, storage

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PEFT = "base_model.model."  # PEFT's prefix of module names
# A factor's name: with or without PEFT's prefix and the adapter's name in memory.
_FACTOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<factor>lora_[AB])(?:\.[^.]+)?\.weight"
)


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
      directory: created if needed; an adapter in it is replaced.
      arch: shape of the base; the names are those of its family.
      adapter: unscaled, as `lora.init` returns it.
      rank: R.
      alpha: numerator of the scale.
      base_path: directory or hub id of the base. If a directory's config.json describes a model
        with several parts, the names are those of its text part, which PEFT looks for.
      rslora: whether the scale divides by sqrt(rank) instead of by rank.

    Raises:
      ValueError: the adapter has another rank, or the base's config.json cannot be read.
    """
    directory, table = storage.local_path(directory), families.adapter_table(arch.model_type)
    inside = _is_inside(base_path)
    if inside:
        base = tensor_names.prefixes(families.family(arch.model_type))[0]
        table = _renamed(table, arch, base + tensor_names.PART)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in param_io.flat(adapter).items():
        if leaf.shape[1 if path.endswith("/a") else 2] != rank:
            raise ValueError(f"adapter {path} has shape {leaf.shape}, not rank {rank}")
        for layer in range(leaf.shape[0]):
            array = param_io.to_host(leaf, layer, np.dtype(np.float32))
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
        "target_modules": _targets(tensors, inside),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)
    with param_io.partial(directory / WEIGHTS) as partial:
        safetensors.numpy.save_file(tensors, partial, metadata={"format": "pt"})
    artifacts.write_json(directory / CONFIG, config)


def load_adapter(
    directory: str | os.PathLike[str],
    arch: Architecture,
    *,
    mesh: Mesh | None = None,
) -> tuple[Params, float]:
    """Reads an adapter in PEFT's format, float32.

    An adapter trained on a model with an image encoder is loaded for the text's layers. If modules
    differ in rank, the smaller factors are padded with zeros; if they differ in scale, the scales
    are multiplied into b and the returned scale is one.

    Args:
      directory: holds adapter_config.json and adapter_model.safetensors; or a URL that does.
      arch: shape of the base; the adapter's shapes must fit it.
      mesh: the mesh to load onto; None: the default device.

    Returns:
      The unscaled factors, and the scale for `lora.scaled`.

    Raises:
      ValueError: a file is missing or malformed, a setting of PEFT is not supported, or a tensor
        is missing, unknown or of a wrong shape.
    """
    directory = hub.resolve(str(directory)) if storage.is_url(directory) else Path(directory)
    settings = _settings(directory)
    with contextlib.closing(storage.LocalFile(directory / WEIGHTS)) as file:
        found = _factors(file.where, tensors.open_tensors(file))
        table = _table(found, arch)
        adapted = _adapted(file.where, found, arch, table, settings)
        scales = {module: settings.scale_of(module) for module in adapted}
        scale = min(scales.values())
        if scale == max(scales.values()):
            scales = dict.fromkeys(scales, 1.0)
        else:
            scale = 1.0
        abstract, sources = _sources(found, arch, table, adapted, settings, scales)
        return param_io.read(abstract, sources, mesh), scale


def copy(source: Path, directory: Path, changes: Mapping[str, Any]) -> None:
    """Copies an adapter and renames its tensors to PEFT's own names.

    Args:
      source: a local directory that `load_adapter` reads.
      directory: an existing directory.
      changes: new values of settings in the copy's adapter_config.json.
    """
    with contextlib.closing(storage.LocalFile(source / WEIGHTS)) as file:
        header = tensors.parse_json(tensors.read_header(file), file.where)
        start = tensors.header_bytes(file)
    named = {_peft_name(name): entry for name, entry in header.items()}
    text = json.dumps(named).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    with param_io.partial(directory / WEIGHTS) as partial, partial.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        with (source / WEIGHTS).open("rb") as body:
            body.seek(start)
            shutil.copyfileobj(body, out)
    artifacts.write_json(directory / CONFIG, {**model_files.read_json(source / CONFIG), **changes})


@dataclasses.dataclass(frozen=True)
class _Padded:
    """A factor padded with zeros to the shape of its leaf; see `tensors.Source`.

    Attributes:
      where: the file, for errors.
      tensor: None for a module that is not adapted.
      shape: the shape after padding, which the layers share.
      times: the factor is multiplied by this.
    """

    where: str
    tensor: Tensor | None
    shape: tuple[int, ...]
    times: float
    dtype: str = "F32"

    def read(self, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Reads a part; the padding is zero."""
        out[...] = 0
        sizes = self.tensor.shape if self.tensor else (0,) * len(index)
        inner = tuple(
            slice(min(part.start, size), min(part.stop, size))
            for part, size in zip(index, sizes, strict=True)
        )
        part = np.empty([one.stop - one.start for one in inner], out.dtype)
        if self.tensor and part.size:
            self.tensor.read(inner, part)
            out[tuple(slice(0, size) for size in part.shape)] = part * out.dtype.type(self.times)


def _factors(where: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by PEFT's own names, as in `families.adapter_table`."""
    factors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        own = _peft_name(name)
        if own in factors:
            raise ValueError(
                f"{where}: {name} and another tensor are both {own}: save each adapter in a "
                "directory of its own"
            )
        factors[own] = tensor
    return factors


def _peft_name(name: str) -> str:
    """The name of a factor as PEFT writes it; other names as they are."""
    match = _FACTOR.fullmatch(name)
    return f"{_PEFT}{match['module']}.{match['factor']}.weight" if match else name


def _table(found: Iterable[str], arch: Architecture) -> dict[str, str]:
    """`families.adapter_table` with the name prefix of the model that was trained."""
    table = families.adapter_table(arch.model_type)
    for prefix in tensor_names.prefixes(families.family(arch.model_type)):
        if any(name.startswith(f"{_PEFT}{prefix}layers.") for name in found):
            return _renamed(table, arch, prefix)
    return table


def _renamed(table: Mapping[str, str], arch: Architecture, prefix: str) -> dict[str, str]:
    """The table with another name prefix."""
    usual = _PEFT + tensor_names.prefixes(families.family(arch.model_type))[0]
    return {path: _PEFT + prefix + name.removeprefix(usual) for path, name in table.items()}


def _adapted(
    where: str,
    found: Mapping[str, Tensor],
    arch: Architecture,
    table: Mapping[str, str],
    settings: Settings,
) -> dict[str, tuple[str, int]]:
    """Target and layer of each adapted module; checks that the tensors are exactly theirs."""
    modules = {
        _module(name.format(layer=layer)): (path.split("/")[2], layer)
        for path, name in table.items()
        if path.endswith("/a") and path.split("/")[2] in lora.all_targets(arch)
        for layer in range(arch.num_layers)
    }
    adapted = {module: at for module, at in modules.items() if settings.adapts(module)}
    kernels = {**arch.attention_kernels, **arch.mlp_kernels}
    wanted: set[str] = set()
    for module, (target, _) in adapted.items():
        (num_in, num_out), rank = kernels[target], settings.rank_of(module)
        for factor, shape in (("lora_A", (rank, num_in)), ("lora_B", (num_out, rank))):
            name = f"{_PEFT}{module}.{factor}.weight"
            param_io.check_tensor(f"{where}: tensor {name}", found.get(name), shape)
            wanted.add(name)
    others = {name: tensor for name, tensor in sorted(found.items()) if name not in wanted}
    _check_others(where, others, arch, modules)
    if not adapted:
        raise ValueError(
            f"{settings.where}: target_modules {_shown(settings.targets)} names no linear module "
            f"of the layers of a {arch.model_type} model, such as {next(iter(modules))}: check "
            "base and adapter"
        )
    return adapted


def _check_others(
    where: str, others: Mapping[str, Tensor], arch: Architecture, modules: Container[str]
) -> None:
    """Refuses tensors of modules that the settings do not adapt; `modules` are all modules."""
    table = families.family(arch.model_type).tensors
    ends = {table[path].split(".")[-2] for path in ("embed/embedding", "head/kernel")}
    for name, tensor in others.items():
        what = f"{where}: tensor {name}"
        if name.removeprefix(_PEFT).startswith(families.other_parts(arch.model_type)):
            raise ValueError(
                f"{what} is of an image encoder, which is not read (target_modules of {CONFIG} "
                f"reach it): {adapter_config.MERGE}"
            )
        is_factor, of_words = _FACTOR.fullmatch(name), not ends.isdisjoint(name.split("."))
        if of_words or not is_factor:
            num = tensor.shape[0] if of_words and not is_factor and len(tensor.shape) == 2 else 0
            resized = num > arch.vocab_size and "lora_" not in name
            first = f"call base.resize_token_embeddings({num}), then " if resized else ""
            raise ValueError(
                f"{what} is no factor of a linear module of the layers: {first}"
                f"{adapter_config.MERGE}"
            )
        if _module(name) in modules:
            raise ValueError(
                f"{what} is of a module that target_modules, exclude_modules or "
                f"layers_to_transform of {CONFIG} leave out: correct them, or save the adapter "
                "again"
            )
        raise ValueError(
            f"{what} has no place in a {arch.model_type} model of {arch.num_layers} layers: check "
            "base and adapter"
        )


def _sources(
    found: Mapping[str, Tensor],
    arch: Architecture,
    table: Mapping[str, str],
    adapted: Mapping[str, tuple[str, int]],
    settings: Settings,
    scales: Mapping[str, float],
) -> tuple[Params, dict[str, list[tensors.Source]]]:
    """Shapes of the tree, and the tensors of each path; `scales` are multiplied into b."""
    rank = max(settings.rank_of(module) for module in adapted)
    targets = [t for t in lora.all_targets(arch) if t in {at[0] for at in adapted.values()}]
    abstract = jax.eval_shape(
        lambda: lora.init(arch, jax.random.key(0), rank=rank, targets=targets)
    )
    sources: dict[str, list[tensors.Source]] = {}
    for path, leaf in param_io.flat(abstract).items():
        sources[path] = []
        for layer in range(arch.num_layers):
            name = table[path].format(layer=layer)
            tensor, shape = found.get(name), leaf.shape[1:]
            times = scales.get(_module(name), 1.0) if path.endswith("/b") else 1.0
            if tensor and tensor.shape == shape and times == 1:
                sources[path].append(tensor)
            else:
                sources[path].append(_Padded(settings.where, tensor, shape, times))
    return abstract, sources


def _settings(directory: Path) -> Settings:
    """Reads and checks adapter_config.json."""
    where = directory / CONFIG
    if not where.is_file():
        inside = sorted(str(path.parent) for path in directory.glob(f"*/{CONFIG}"))
        shown = f"; there are: {', '.join(inside[:8])}" if inside else ""
        raise ValueError(f"{where} is missing: give a directory in PEFT's format{shown}")
    settings = adapter_config.read(model_files.read_json(where), str(where))
    if not (directory / WEIGHTS).is_file():
        raise ValueError(
            f"{directory} has no {WEIGHTS} (adapter_model.bin is pickle and is never opened): load "
            "the adapter with PEFT, and save_pretrained writes the file"
        )
    return settings


def _is_inside(base_path: str) -> bool:
    """Whether the base is a directory whose config.json has a text part."""
    path = Path(base_path) / "config.json"
    if not path.is_file():
        return False
    return families.wrapper(model_files.read_json(path).get("model_type")) is not None


def _targets(names: Iterable[str], inside: bool) -> list[str] | str:
    """target_modules: ends of the modules' names; in a model of several parts only the text's."""
    ends = sorted({_module(name).rpartition(".")[2] for name in names})
    return rf".*\.language_model\..*\.({'|'.join(ends)})" if inside else ends


def _module(name: str) -> str:
    """The module that a factor belongs to, as transformers names it."""
    match = _FACTOR.fullmatch(name)
    assert match, name
    return match["module"]


def _shown(targets: str | tuple[str, ...]) -> str:
    shown = repr(targets if isinstance(targets, str) else sorted(targets))
    return shown if len(shown) <= 120 else shown[:117] + "..."
