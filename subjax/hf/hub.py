"""Files of model directories in Hugging Face's format: finding, checking and naming them.

It knows config.json, shard indexes and the location of a model, but no arrays and no meaning of
tensors. A malformed file is a ValueError of one line that names the file and the remedy.

A model at a URL has a local directory in the cache with its small files and `REMOTE`, a note with
the URL; its tensors are read from the URL, by byte ranges. Such a note is trusted only in the
cache: elsewhere, a model could redirect to the tensors of another one with it.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

import huggingface_hub

from subjax.hf import tensors
from subjax.hf.gguf import gguf_files
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

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_BLOCK_BYTES = 4096
_AGAIN = "download or save it again"
_WAYS_OUT = (
    "give an existing local directory, check the network and HF_TOKEN, or for SmolLM2 run "
    "python launch/fetch_smollm2.py --out DIR and give DIR"
)
# Cache directory of a model in the hub's client; ids contain no "--".
_SNAPSHOT = re.compile(r"/models--(?P<id>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})$")


def resolve(path_or_hub_id: str, revision: str = "") -> Path:
    """Turns a base's name into a local directory; downloads it if it is a hub id.

    Args:
      path_or_hub_id: a local directory or GGUF file, used as it is; a URL such as
        "gs://bucket/model", whose small files are copied; or "organisation/name".
      revision: branch, tag or commit on the hub; empty: its main branch.

    Raises:
      ValueError: neither a directory nor a model on the hub or in its local cache (it may be
        a gated model), or a URL that cannot be read.
      storage.Unavailable: the hub or the URL's server does not answer for now.
    """
    if storage.is_url(path_or_hub_id):
        return _remote_directory(path_or_hub_id.rstrip("/"))
    path = Path(path_or_hub_id).expanduser()
    if path_or_hub_id and (path.is_dir() or (path.is_file() and path.suffix == GGUF)):
        return path
    looks_local = path.is_absolute() or path_or_hub_id.startswith(".") or path.suffix == GGUF
    if looks_local or not path_or_hub_id or path_or_hub_id.count("/") > 1:
        raise ValueError(f"base {path_or_hub_id!r} is no directory on this machine: {_WAYS_OUT}")
    first = ["*.json", SINGLE_FILE, *TOKENIZER_FILES, *_ADAPTER_FILES]
    snapshot = _fetch(path_or_hub_id, revision, first)
    if (snapshot / SINGLE_FILE).is_file() or not (snapshot / INDEX_FILE).is_file():
        return snapshot
    # From the same commit, even if the branch has moved; a snapshot's name is its commit.
    return _fetch(path_or_hub_id, snapshot.name, sorted(set(_weight_map(snapshot).values())))


def _fetch(hub_id: str, revision: str, names: list[str]) -> Path:
    """Downloads some files of a model with the hub's client.

    Not all files: repositories hold the same weights again for other programs
    (consolidated.safetensors), or in other formats.
    """
    try:
        snapshot = huggingface_hub.snapshot_download(
            hub_id,
            revision=revision or None,
            allow_patterns=names,
            ignore_patterns=["*/*", REMOTE],
        )
    except Exception as error:  # the hub's client raises a dozen unrelated types
        reason = storage.one_line(error)[:200]
        if _is_busy(error):
            what = f"the hub does not give it for now ({type(error).__name__}: {reason})"
            raise storage.Unavailable(errno.EAGAIN, what, hub_id) from None
        raise ValueError(
            f"base {hub_id!r} (revision {revision or 'main'}) is no directory, and the hub did not "
            f"give it ({type(error).__name__}: {reason}): {_WAYS_OUT}"
        ) from None
    return Path(snapshot)


def _is_busy(error: BaseException | None) -> bool:
    """Whether the hub timed out or is too busy; not whether it cannot be reached at all."""
    busy = False
    while error is not None:
        if type(error).__name__ in ("ConnectError", "ConnectTimeout"):  # types of its http client
            return False
        status = getattr(getattr(error, "response", None), "status_code", 0)
        busy |= isinstance(error, TimeoutError) or status == 429 or status >= 500
        error = error.__cause__ or error.__context__
    return busy


def again(snapshot: Path) -> Path:
    """Downloads again a model of the hub that is missing in the cache of this machine.

    Args:
      snapshot: its path in the hub's cache; any other path is returned unchanged.

    Raises:
      ValueError: the hub does not provide it.
    """
    found = _SNAPSHOT.search(snapshot.as_posix())
    return resolve(found["id"].replace("--", "/"), found["commit"]) if found else snapshot


def header_digest(directory: str | os.PathLike[str]) -> str:
    """Cheap identity of a base for fingerprints, without reading all of its weights.

    It covers all of config.json and the tokenizer's files, and of each file of tensors the name,
    the size, the header, and 64 blocks of 4 KiB spread over it, because a base and its finetuned
    sibling have equal headers and sizes. It does not depend on the model's location. For a GGUF
    file, neither its name nor a config.json beside it counts, as loading uses neither.

    Returns:
      A sha256 in hexadecimal.
    """
    directory = model_directory(directory)
    digest = hashlib.sha256()

    def add(*parts: bytes) -> None:
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)

    beside = tokenizer_directory(directory)
    gguf = gguf_name(directory)
    for name in TOKENIZER_FILES if gguf else ("config.json", *TOKENIZER_FILES):
        if (beside / name).is_file():
            add(name.encode(), (beside / name).read_bytes())
    for name in [gguf] if gguf else shard_names(directory)[0]:
        with contextlib.closing(open_file(directory, name)) as file:
            header = gguf_files.read_header(file) if gguf else tensors.read_header(file)
            start = len(header) if gguf else 8 + len(header)
            firsts = [start + (file.size - start) * block // 64 for block in range(64)]
            blocks = [(first, min(first + _BLOCK_BYTES, file.size)) for first in firsts]
            called = GGUF if gguf else name
            add(called.encode(), file.size.to_bytes(8, "little"), header, *file.read_many(blocks))
    return digest.hexdigest()


def model_directory(directory: str | os.PathLike[str]) -> Path:
    """Checks that a model is there: a directory with config.json, or a GGUF file.

    Returns:
      The directory, for a model at a URL the one of its small files, or the GGUF file.

    Raises:
      ValueError: there is no model.
    """
    path = resolve(str(directory)) if storage.is_url(directory) else Path(directory)
    if path.suffix == GGUF and path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"model directory {path} does not exist: check the path")
    if not (path / "config.json").is_file() and not gguf_name(path):
        raise ValueError(f"{origin(path)} has no config.json: {_instead(path)}")
    return path


def _instead(directory: Path) -> str:
    """Advice for a directory without config.json."""
    adapter = _ADAPTER_FILES[0]
    if (directory / adapter).is_file():
        return "it holds a PEFT adapter: give its base as path, and it as adapter"
    names = ("config.json", adapter)
    inside = sorted({str(path.parent) for name in names for path in directory.glob(f"*/{name}")})
    if inside:
        return f"give one of those in it that hold a model or an adapter: {', '.join(inside[:8])}"
    return (
        "give a directory in Hugging Face format; one whose saving was interrupted has to be saved "
        "again"
    )


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
    weight_map = _weight_map(directory)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if shard not in names:
            index = _where(directory / INDEX_FILE)
            raise ValueError(f"{index} names {shard}, which is missing: {_AGAIN}")
    return shards, weight_map


def _weight_map(directory: Path) -> dict[str, str]:
    """Tensor name -> file, from a model's index; only files in the same directory."""
    index = _where(directory / INDEX_FILE)
    weight_map = read_json(directory / INDEX_FILE).get("weight_map")
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
    return weight_map


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


@functools.lru_cache(maxsize=64)
def _remote_directory(url: str) -> Path:
    """Copies the small files of a model at a URL to this machine, once per process."""
    above = url.rpartition("/")[0] if url.endswith(GGUF) else url
    sizes = storage.sizes(above)
    if above != url:
        name = url.rpartition("/")[2]
        if name not in sizes:
            raise ValueError(f"{url} does not exist: check the URL and your rights to it")
        sizes = {n: s for n, s in sizes.items() if n == name or n in TOKENIZER_FILES}
    directory = storage.cache_directory(url)
    small = ("config.json", INDEX_FILE, *TOKENIZER_FILES, *_ADAPTER_FILES)
    storage.copy_into(directory, above, sizes, small)
    note = {"origin": url, "url": above, "sizes": sizes}
    storage.write(directory / REMOTE, json.dumps(note, sort_keys=True).encode())
    return directory
