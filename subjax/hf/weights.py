"""Hugging Face directories of safetensors to sharded arrays and back.

Every process reads only the byte ranges that its devices need. Every tensor is mapped or refused,
every parameter is set exactly once, and all this is checked before any tensor is read. pickle is
never opened and no code of a checkpoint is ever run.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh

from subjax.hf import families, hub, model_config, model_files, param_io, tensor_names
from subjax.hf.gguf import gguf_models
from subjax.hf.hub import header_digest as header_digest
from subjax.hf.hub import resolve as resolve
from subjax.hf.tensors import Source
from subjax.nn import transformer
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.runtime import artifacts, storage

T = TypeVar("T")

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Rows to compare at once if a checkpoint also holds a tied head.
_ROWS_AT_ONCE = 4096

_resident: dict[Hashable, Any] = {}


def load(
    directory: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    precision: str = "float32",
    exact: bool = False,
) -> tuple[Architecture, Params]:
    """Reads a model straight into (sharded) arrays.

    Args:
      directory: holds config.json and model.safetensors, or shards with their index; or a GGUF
        file, or the directory of one; or the URL of either, such as gs://bucket/model.
      mesh: the mesh for the parameters, split by `sharding.params_spec`; None: the default device.
      precision: of what is computed with them, which says their dtypes, see
        `transformer.abstract_params`; float32 if they are to be trained.
      exact: whether something is computed in float32 too: only what is bfloat16 in the files is
        held so.

    Returns:
      The shape of the model, and its parameters as in `transformer`.

    Raises:
      ValueError: the directory or a file is missing or malformed; a config attribute is refused; a
        tensor is missing, unknown, listed twice, of a wrong shape or dtype, or holds a NaN.
    """
    with _opened(directory) as (arch, sources):
        abstract = transformer.abstract_params(arch, precision)
        if exact:
            abstract = _as_stored(abstract, sources)
        return arch, param_io.read(abstract, sources, mesh)


def _as_stored(abstract: Params, sources: Mapping[str, Sequence[Source]]) -> Params:
    """Float32 for leaves that would be rounded."""
    narrow = {path for path, found in sources.items() if all(s.dtype == "BF16" for s in found)}
    kept = [
        leaf if path in narrow else jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
        for path, leaf in param_io.flat(abstract).items()
    ]
    return cast(Params, jax.tree.unflatten(jax.tree.structure(abstract), kept))


def check(directory: str | os.PathLike[str]) -> Architecture:
    """Raises the errors of `load`, reading only headers; returns the shape of the model."""
    with _opened(directory) as (arch, _):
        return arch


@contextlib.contextmanager
def _opened(
    directory: str | os.PathLike[str],
) -> Iterator[tuple[Architecture, dict[str, list[Source]]]]:
    """The shape of a model, and the checked tensors of each parameter path; closes the files."""
    model = hub.model_directory(directory)
    with contextlib.ExitStack() as stack:
        gguf = _gguf(model, stack)
        config = gguf.config if gguf else model_files.read_json(model / "config.json")
        try:
            arch = model_config.read(config)
        except ValueError as error:
            raise ValueError(f"{model_files.origin(model)}: {error}") from None
        tensors: Mapping[str, Source] = (
            gguf.tensors
            if gguf
            else model_files.open_tensors(model, stack, tensor_names.tied(arch))
        )
        wrapper = families.wrapper(config.get("model_type"))
        skipped = wrapper.parts if wrapper else ()
        names = tensor_names.match(model_files.origin(model), tensors, arch, skipped)
        head = names.pop("head/kernel") if arch.tie_embeddings and "head/kernel" in names else []
        for path, leaf in param_io.flat(transformer.abstract_params(arch)).items():
            shape = leaf.shape[1:] if param_io.is_stacked(path) else leaf.shape
            for name in names[path]:
                param_io.check_tensor(f"{tensors[name].where}: tensor {name}", tensors[name], shape)
        if head:
            _check_tied((names["embed/embedding"][0], head[0]), tensors)
        yield arch, {path: [tensors[name] for name in found] for path, found in names.items()}


def _gguf(model: Path, stack: contextlib.ExitStack) -> gguf_models.GgufModel | None:
    """The GGUF file of a model, if it has one."""
    name = model_files.gguf_name(model)
    if not name:
        return None
    file = model_files.open_file(model, name)
    stack.callback(file.close)
    return gguf_models.read(file)


def save(
    directory: str | os.PathLike[str],
    arch: Architecture,
    params: Params,
    *,
    dtype: Any = jnp.float32,
    tokenizer_from: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a Hugging Face directory; all processes call it, process 0 writes.

    config.json is removed first and written last, so a directory that has one is complete.

    Args:
      directory: created if needed; a model in it is replaced.
      arch: shape of the model.
      params: parameters as in `transformer`, sharded or not.
      dtype: dtype of the written tensors.
      tokenizer_from: a model directory, whose tokenizer files and special token ids are copied;
        None: no tokenizer is written.
      max_shard_bytes: larger models are split into several files with an index.

    Raises:
      ValueError: params do not have the shapes of `arch`, or tokenizer_from has no tokenizer.
    """
    directory, dtype = storage.local_path(directory), np.dtype(dtype)
    _check_params(arch, params)
    ids, tokenizer_files = _tokenizer(tokenizer_from)
    extra = {**ids, "torch_dtype": dtype.name}
    config = model_config.write(arch, extra=extra)
    shards = _plan_shards(arch, dtype, max_shard_bytes)
    flat, writes = param_io.flat(params), jax.process_index() == 0
    if writes:
        _clear(directory)
    for file, tensors in shards.items():
        # All processes all-gather layer by layer, so that no host ever holds a whole model.
        arrays = {
            name: param_io.to_host(flat[p], layer, dtype) for name, (p, layer) in tensors.items()
        }
        if writes:
            with param_io.partial(directory / file) as partial:
                # transformers refuses a file without the name of a framework.
                safetensors.numpy.save_file(arrays, partial, metadata={"format": "pt"})
    if not writes:
        return
    if len(shards) > 1:
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
        total = {"total_size": dtype.itemsize * transformer.num_params(arch)}
        index = {"metadata": total, "weight_map": weight_map}
        artifacts.write_json(directory / model_files.INDEX_FILE, index)
    for source in tokenizer_files:
        if source.resolve() != (directory / source.name).resolve():
            with param_io.partial(directory / source.name) as partial:
                shutil.copyfile(source, partial)
    artifacts.write_json(directory / "config.json", config)


def resident(key: Hashable, load: Callable[[], T]) -> T:
    """Returns the result of `load`, cached across stages while the key is the same.

    The cache holds one value; the old one is dropped before the new one is loaded, because two
    bases may not fit on the mesh. A stage must give the same bytes with an empty cache.

    Args:
      key: everything that the value depends on: the base, the mesh, the dtype.
      load: called without arguments on a cache miss.
    """
    if key not in _resident:
        _resident.clear()
        _resident[key] = load()
    return _resident[key]


def _check_tied(names: tuple[str, str], tensors: Mapping[str, Source]) -> None:
    """Refuses a head beside a tied embedding unless the two have the same bits."""
    embedding, head = (tensors[name] for name in names)
    where = f"{head.where}: tensor {names[1]}"
    num_rows, width = embedding.shape
    param_io.check_tensor(where, head, (num_rows, width))
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        index = slice(start, min(start + _ROWS_AT_ONCE, num_rows)), slice(0, width)
        ours, theirs = (np.empty((index[0].stop - start, width), np.float32) for _ in range(2))
        embedding.read(index, ours)
        head.read(index, theirs)
        if not np.array_equal(ours, theirs, equal_nan=True):
            raise ValueError(
                f"{where} differs from {names[0]} although config.json says tie_word_embeddings: "
                "set it to false"
            )


def _plan_shards(
    arch: Architecture, dtype: np.dtype, max_shard_bytes: int
) -> dict[str, dict[str, tuple[str, int | None]]]:
    """File -> tensor name -> parameter path and layer; files are filled one after the other."""
    table = families.family(arch.model_type).tensors
    shards: list[dict[str, tuple[str, int | None]]] = [{}]
    filled = 0
    for path, leaf in param_io.flat(transformer.abstract_params(arch)).items():
        layers: Sequence[int | None] = (
            range(arch.num_layers) if param_io.is_stacked(path) else [None]
        )
        num_bytes = leaf.size // len(layers) * dtype.itemsize
        for layer in layers:
            if shards[-1] and filled + num_bytes > max_shard_bytes:
                shards.append({})
                filled = 0
            shards[-1][table[path].format(layer=layer)] = (path, layer)
            filled += num_bytes
    if len(shards) == 1:
        return {model_files.SINGLE_FILE: shards[0]}
    count = len(shards)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": s for i, s in enumerate(shards, 1)}


def _check_params(arch: Architecture, params: Params) -> None:
    trees = (transformer.abstract_params(arch), params)
    expected, found = ({p: x.shape for p, x in param_io.flat(tree).items()} for tree in trees)
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise ValueError(
                f"parameter {path} has shape {found.get(path, 'none')}, the architecture asks for "
                f"{expected.get(path, 'none')}: pass the architecture that it was made with"
            )


def _tokenizer(directory: str | os.PathLike[str] | None) -> tuple[dict[str, Any], list[Path]]:
    """Special token ids and tokenizer files of a model directory."""
    if directory is None:
        # Written even if null, because transformers has 1 or 2 as the default ids.
        return dict.fromkeys(_TOKEN_IDS), []
    source = hub.model_directory(directory)
    beside = model_files.tokenizer_directory(source)
    files = [beside / name for name in model_files.TOKENIZER_FILES if (beside / name).is_file()]
    if not files:
        raise ValueError(f"{source} has no tokenizer files: give the base's directory")
    with contextlib.ExitStack() as stack:
        gguf = _gguf(source, stack)
        config = gguf.token_ids if gguf else model_files.read_json(source / "config.json")
    # A model of several parts may have them only in its text_config.
    inner = config.get("text_config")
    known = {**(inner if isinstance(inner, dict) else {}), **config}
    return {name: known.get(name) for name in _TOKEN_IDS}, files


def _clear(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", model_files.INDEX_FILE):
        (directory / name).unlink(missing_ok=True)
    for old in directory.glob("model*.safetensors"):
        old.unlink()
