"""Model directories in Hugging Face's format, as files: finding, checking and naming them.

It knows config.json, safetensors headers and shard indexes, and nothing of arrays or of what a
tensor means. Every malformed file is a ValueError of one line that names the file and the way out.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import huggingface_hub
import safetensors

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

_MAX_HEADER_BYTES = 100_000_000  # the limit of the format itself
_AGAIN = "download or save it again"


def resolve(path_or_hub_id: str, revision: str = "") -> Path:
    """Turns a base's name into a local directory, downloading it where it is a hub id.

    Args:
      path_or_hub_id: a local directory, used as it is, or "organisation/name".
      revision: branch, tag or commit on the hub; empty: its main branch.

    Raises:
      ValueError: neither a directory nor a model that the hub or its local cache can give.
    """
    ways_out = (
        "give an existing local directory, check the network and HF_TOKEN, or for SmolLM2 run "
        "python launch/fetch_smollm2.py --out DIR and give DIR"
    )
    path = local_path(path_or_hub_id).expanduser()
    if path_or_hub_id and path.is_dir():
        return path
    looks_local = path.is_absolute() or path_or_hub_id.startswith(".")
    if looks_local or not path_or_hub_id or path_or_hub_id.count("/") > 1:
        raise ValueError(f"base {path_or_hub_id!r} is no directory on this machine: {ways_out}")
    try:
        snapshot = huggingface_hub.snapshot_download(
            path_or_hub_id,
            revision=revision or None,
            allow_patterns=["*.safetensors", "*.json", *TOKENIZER_FILES],
            ignore_patterns=["*/*"],
        )
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise ValueError(
            f"base {path_or_hub_id!r} (revision {revision or 'main'}) is no directory, and the hub "
            f"did not give it ({type(error).__name__}: {_one_line(error)[:200]}): {ways_out}"
        ) from None
    return Path(snapshot)


def header_digest(directory: str | os.PathLike[str]) -> str:
    """Cheap identity of a base for fingerprints, without reading all of its weights.

    It covers config.json and the tokenizer's files whole; of each safetensors file the name, the
    size, the header, and 64 blocks of 4 KiB spread over it, because a base and its finetuned
    sibling have equal headers and sizes.

    Returns:
      A sha256 in hexadecimal.
    """
    directory = model_directory(directory)
    digest = hashlib.sha256()

    def add(*parts: bytes) -> None:
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)

    for name in ("config.json", *TOKENIZER_FILES):
        if (directory / name).is_file():
            add(name.encode(), (directory / name).read_bytes())
    for path in shard_files(directory)[0]:
        with opened(path) as file:
            size = path.stat().st_size
            header = read_header(file, size, path)
            add(path.name.encode(), size.to_bytes(8, "little"), header)
            start = file.tell()
            for block in range(64):
                file.seek(start + (size - start) * block // 64)
                add(file.read(4096))
    return digest.hexdigest()


def model_directory(directory: str | os.PathLike[str]) -> Path:
    """Checks that a directory exists and has a config.json.

    Raises:
      ValueError: it does not.
    """
    path = local_path(directory)
    if not path.is_dir():
        raise ValueError(f"model directory {path} does not exist: check the path")
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{path} has no config.json: give a directory in Hugging Face format; one whose saving "
            "was interrupted has to be saved again"
        )
    return path


def local_path(directory: str | os.PathLike[str]) -> Path:
    """A path on this machine.

    Raises:
      ValueError: a URL, which pathlib would turn into a local directory of that name.
    """
    if "://" in str(directory):
        raise ValueError(f"{directory} is not on this machine: copy it to a local directory first")
    return Path(directory)


def open_tensors(
    directory: Path, stack: contextlib.ExitStack
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Opens all shards of a model and checks them against the index.

    Args:
      directory: result of `model_directory`.
      stack: closes the files; the slices are of no use afterwards.

    Returns:
      Tensor name -> safetensors' slice object, from which parts are read, and name -> file.

    Raises:
      ValueError: a file is missing or malformed, or the index does not say what the files hold.
    """
    paths, weight_map = shard_files(directory)
    tensors: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for path in paths:
        for name, tensor in open_file(path, stack).items():
            if weight_map is not None and weight_map.get(name) != path.name:
                listed = weight_map.get(name, "no file")
                raise ValueError(
                    f"{path} holds tensor {name}, which {INDEX_FILE} says is in {listed}: {_AGAIN}"
                )
            tensors[name], files[name] = tensor, path
    for name in weight_map or ():
        if name not in tensors:
            raise ValueError(
                f"{directory / INDEX_FILE} lists tensor {name}, but {(weight_map or {})[name]} "
                f"does not hold it: {_AGAIN}"
            )
    return tensors, files


def open_file(path: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Opens one safetensors file.

    Args:
      path: the file.
      stack: closes it; the slices are of no use afterwards.

    Returns:
      Tensor name -> safetensors' slice object.

    Raises:
      ValueError: it cannot be read or is malformed.
    """
    with opened(path) as file:
        read_header(file, path.stat().st_size, path)
    try:
        handle = stack.enter_context(safetensors.safe_open(path, "numpy"))
        return {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise malformed(path, error) from None


def shard_files(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The safetensors files of a model, and its index where it has several.

    Raises:
      ValueError: there are none, only pickle files, or an index that names what it must not.
    """
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE], None
    index = directory / INDEX_FILE
    if not index.is_file():
        pickles = [
            p.name for p in sorted(directory.iterdir()) if p.suffix in (".bin", ".pt", ".pth")
        ]
        if pickles:
            raise ValueError(
                f"{directory} has only pickle files ({pickles[0]}), which can run code and are "
                "refused: convert the model to safetensors, or choose a revision that has them"
            )
        raise ValueError(f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}: {_AGAIN}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map: {_AGAIN}")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file or "\0" in file:
            raise ValueError(
                f"{index} puts tensor {name} outside the directory ({file!r}): {_AGAIN}"
            )
        if not file.endswith(".safetensors"):
            raise ValueError(
                f"{index} puts tensor {name} in {file!r}, no safetensors file: {_AGAIN}"
            )
    paths = [directory / file for file in sorted(set(weight_map.values()))]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{index} names {path.name}, which is missing: {_AGAIN}")
    return paths, weight_map


def read_header(file: BinaryIO, size: int, where: Any) -> bytes:
    """Reads a safetensors header and leaves the file behind it.

    safetensors itself keeps the last of two tensors of one name and says nothing.

    Args:
      file: opened at its beginning.
      size: of the whole file in bytes.
      where: its name, for errors.

    Returns:
      The header, JSON as bytes, without the eight bytes of its length.

    Raises:
      ValueError: it is cut short, absurdly long, no JSON, or names a tensor twice.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > _MAX_HEADER_BYTES:
        raise malformed(where, f"header of {length} bytes in a file of {size} bytes")
    if length > size - 8:
        raise malformed(where, f"cut short: header of {length} bytes in a file of {size} bytes")
    header = file.read(length)
    parse_json(header, where)
    return header


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
      ValueError: it cannot be read, or is no JSON object, or has a key twice.
    """
    with opened(path) as file:
        return parse_json(file.read(), path)


def parse_json(text: bytes, where: Any) -> dict[str, Any]:
    """Parses one JSON object; `where` names the file in the error.

    Raises:
      ValueError: no JSON object, or a key twice in one object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice!r} occurs twice")
        return found

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise malformed(where, error) from None
    if not isinstance(parsed, dict):
        raise malformed(where, "no JSON object")
    return parsed


def malformed(where: Any, reason: object) -> ValueError:
    """The error for a file that is not what its name says."""
    return ValueError(f"{where} is malformed ({_one_line(reason)[:200]}): {_AGAIN}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading.

    Raises:
      ValueError: it cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): check the file and its permissions"
        ) from None


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())
