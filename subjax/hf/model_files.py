"""The files of a model directory in Hugging Face's format: their names, checks and reading.

It knows config.json, shard indexes and GGUF files, but no arrays and no meaning of tensors. A
malformed file is a ValueError of one line that names the file and the remedy.

The files of a model at a URL are read there, by byte ranges, but for small ones, which `hub` copies
into a directory of the cache, with `REMOTE`, a note of the URL. Such a note is trusted only in the
cache: elsewhere, a model could redirect to the tensors of another one with it.
"""

import contextlib
from collections.abc import Container
from pathlib import Path
from typing import Any

from subjax.hf import tensors
from subjax.runtime import storage
from subjax.runtime.storage import File, LocalFile, RemoteFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
REMOTE = "remote.json"
GGUF = ".gguf"

_AGAIN = "download or save it again"


def origin(directory: Path) -> str:
    """The path of a model, or its URL if the directory only holds its small files."""
    note = _note(directory)
    return note["origin"] if note else str(directory)


def tokenizer_directory(model: Path) -> Path:
    """The directory of a model's tokenizer: the model's, or the one of its GGUF file."""
    return model.parent if model.is_file() else model


def gguf_name(model: Path) -> str:
    """Name of a model's GGUF file; "" for a model in safetensors.

    Raises:
      ValueError: the directory has several.
    """
    if model.is_file():
        return model.name
    names = file_names(model)
    if SINGLE_FILE in names or INDEX_FILE in names:
        return ""
    found = sorted(name for name in names if name.endswith(GGUF))
    if len(found) > 1:
        raise ValueError(
            f"{origin(model)} has {len(found)} GGUF files ({found[0]}, {found[1]}): give one's path"
        )
    return found[0] if found else ""


def file_names(directory: Path) -> set[str]:
    """Names of a model's files, at its URL if it has one."""
    if note := _note(directory):
        return set(note["sizes"])
    return {path.name for path in directory.iterdir() if path.is_file()}


def open_file(directory: Path, name: str) -> File:
    """Opens a file of a model, at its URL if it has one.

    Raises:
      ValueError: it cannot be opened.
    """
    if directory.is_file():
        return LocalFile(directory)
    if note := _note(directory):
        return RemoteFile(f"{note['url']}/{name}", note["sizes"][name])
    return LocalFile(directory / name)


def open_tensors(
    directory: Path, stack: contextlib.ExitStack, tied: Container[str] = ()
) -> dict[str, tensors.Tensor]:
    """Opens all shards of a model and checks them against the index.

    Args:
      directory: result of `model_directory`.
      stack: closes the files; the tensors cannot be read afterwards.
      tied: names that may be missing in an index or in the files: savers differ in how they
        store one array with two names.

    Returns:
      Tensor name -> tensor, for reading parts.

    Raises:
      ValueError: a file is missing or malformed, or the index does not match the files.
    """
    shards, weight_map = shard_names(directory)
    found: dict[str, tensors.Tensor] = {}
    for shard in shards:
        file = open_file(directory, shard)
        stack.callback(file.close)
        for name, tensor in tensors.open_tensors(file).items():
            listed = shard if weight_map is None else weight_map.get(name, "no file")
            unlisted_twin = listed == "no file" and name in tied and name not in found
            if listed != shard and not unlisted_twin:
                raise ValueError(
                    f"{file.where} holds tensor {name}, which {INDEX_FILE} says is in {listed}: "
                    f"{_AGAIN}"
                )
            found[name] = tensor
    for name, listed in (weight_map or {}).items():
        if name not in found and name not in tied:
            raise ValueError(
                f"{_where(directory / INDEX_FILE)} lists tensor {name}, but {listed} does not hold "
                f"it: {_AGAIN}"
            )
    return found


def shard_names(directory: Path) -> tuple[list[str], dict[str, str] | None]:
    """The names of a model's safetensors files, and its index if there are several.

    Raises:
      ValueError: there are no such files, only pickle files, or the index names other files.
    """
    names = file_names(directory)
    if SINGLE_FILE in names:
        return [SINGLE_FILE], None
    if INDEX_FILE not in names:
        pickles = [n for n in sorted(names) if Path(n).suffix in (".bin", ".pt", ".pth")]
        if pickles:
            raise ValueError(
                f"{origin(directory)} has only pickle files ({pickles[0]}), which can run code and "
                "are refused: convert the model to safetensors, or choose a revision that has them"
            )
        raise ValueError(
            f"{origin(directory)} has neither {SINGLE_FILE} nor {INDEX_FILE}: {_AGAIN}"
        )
    listed = weight_map(directory)
    shards = sorted(set(listed.values()))
    for shard in shards:
        if shard not in names:
            index = _where(directory / INDEX_FILE)
            raise ValueError(f"{index} names {shard}, which is missing: {_AGAIN}")
    return shards, listed


def weight_map(directory: Path) -> dict[str, str]:
    """Tensor name -> file, from a model's index; only files in the same directory."""
    index = _where(directory / INDEX_FILE)
    found = read_json(directory / INDEX_FILE).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{index} has no weight_map: {_AGAIN}")
    for name, file in found.items():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file or "\0" in file:
            raise ValueError(
                f"{index} puts tensor {name} outside the directory ({file!r}): {_AGAIN}"
            )
        if not file.endswith(".safetensors"):
            raise ValueError(
                f"{index} puts tensor {name} in {file!r}, no safetensors file: {_AGAIN}"
            )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
      ValueError: it cannot be read, or is no JSON object, or has a key twice; names its URL if
        the path is a copy.
    """
    return _parsed(path, _where(path))


def _parsed(path: Path, where: str) -> dict[str, Any]:
    with contextlib.closing(LocalFile(path, where)) as file:
        return tensors.parse_json(file.read_many([(0, file.size)])[0], where)


def _where(path: Path) -> str:
    """The path of a small file of a model, or its URL."""
    note = _note(path.parent)
    return f"{note['url']}/{path.name}" if note else str(path)


def _note(directory: Path) -> dict[str, Any] | None:
    """The content of `REMOTE` in a cache directory; None: the model is on this machine."""
    path = directory / REMOTE
    if not storage.is_cached(directory) or not path.is_file():
        return None
    note = _parsed(path, str(path))
    kinds = {"origin": str, "url": str, "sizes": dict}
    if any(type(note.get(key)) is not kind for key, kind in kinds.items()) or any(
        type(size) is not int or size < 0 for size in note["sizes"].values()
    ):
        raise ValueError(
            f"{path} is malformed (it needs {', '.join(kinds)}): remove {directory} and give the "
            "model's URL"
        )
    return note
