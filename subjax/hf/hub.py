"""Where a model is: its name, on the hub, at a URL or here, becomes a directory on this machine.

A model at a URL becomes a directory in the cache with its small files; see `model_files`.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
from pathlib import Path

import huggingface_hub

from subjax.hf import model_files, tensors
from subjax.hf.gguf import gguf_files
from subjax.hf.model_files import GGUF, INDEX_FILE, REMOTE, SINGLE_FILE, TOKENIZER_FILES
from subjax.runtime import storage

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_BLOCK_BYTES = 4096
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
    shards = sorted(set(model_files.weight_map(snapshot).values()))
    return _fetch(path_or_hub_id, snapshot.name, shards)


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

    beside = model_files.tokenizer_directory(directory)
    gguf = model_files.gguf_name(directory)
    for name in TOKENIZER_FILES if gguf else ("config.json", *TOKENIZER_FILES):
        if (beside / name).is_file():
            add(name.encode(), (beside / name).read_bytes())
    for name in [gguf] if gguf else model_files.shard_names(directory)[0]:
        with contextlib.closing(model_files.open_file(directory, name)) as file:
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
    if not (path / "config.json").is_file() and not model_files.gguf_name(path):
        raise ValueError(f"{model_files.origin(path)} has no config.json: {_instead(path)}")
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
