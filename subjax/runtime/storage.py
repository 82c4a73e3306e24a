"""Files by byte ranges, on this machine or at a URL such as gs://bucket/model.

Files are read, not mapped: mapped pages count as this process's memory. URLs are read through
fsspec, which needs a package for some of them (gcsfs for gs://).
"""

import errno
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import fsspec

_PIECE_BYTES = 4 << 20  # per request to a URL; several requests run at once
_POINTER = b"version https://git-lfs.github.com/"  # how a Git LFS pointer file begins
_GCSFS = "'gcsfs>=2025.10,<2027'"  # as in pyproject.toml
_PACKAGES = {
    "gs": _GCSFS,
    "gcs": _GCSFS,
    "s3": "s3fs",
    "az": "adlfs",
    "abfs": "adlfs",
}


class Unavailable(OSError):
    """A store does not answer in time; to resume once it does, run the same command again."""


@runtime_checkable
class File(Protocol):
    """A file that is read in parts.

    Attributes:
      where: its path or URL, for errors.
      name: the last part of the path.
      size: in bytes.
    """

    where: str
    name: str
    size: int

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fills the buffer with the bytes from position `start` on."""

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each range (start, stop)."""

    def close(self) -> None:
        """Closes the file."""


class LocalFile:
    """A file on this machine; see `File`. `where` is the name in errors, by default the path.

    Raises:
      ValueError: it cannot be opened or read, or became shorter, or is a pointer to a file that
        Git LFS has not fetched.
    """

    def __init__(self, path: Path, where: str = ""):
        self.where, self.name = where or str(path), path.name
        try:
            self._file = path.open("rb", buffering=0)
            self.size = os.fstat(self._file.fileno()).st_size
            start = os.pread(self._file.fileno(), len(_POINTER), 0)
        except OSError as error:
            raise _unreadable(self.where, error) from None
        if start == _POINTER:
            self.close()
            raise ValueError(
                f"{self.where} is a pointer of Git LFS and not the file itself: run git lfs pull "
                "there, or download the file"
            )

    def read_into(self, start: int, buffer: memoryview) -> None:
        """See `File`."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._file.fileno(), [buffer[done:]], start + done)
            except OSError as error:
                raise _unreadable(self.where, error) from None
            if count == 0:
                raise _shrunk(self.where)
            done += count

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `File`."""
        parts = [bytearray(stop - start) for start, stop in ranges]
        for (start, _), part in zip(ranges, parts, strict=True):
            self.read_into(start, memoryview(part))
        return [bytes(part) for part in parts]

    def close(self) -> None:
        """See `File`."""
        self._file.close()


class RemoteFile:
    """A file at a URL; see `File`.

    Raises:
      ValueError: it cannot be read, or became shorter.
    """

    def __init__(self, url: str, size: int):
        self.where, self.name, self.size = url, url.rpartition("/")[2], size
        self._files, self._path = filesystem(url)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """See `File`."""
        firsts = range(0, len(buffer), _PIECE_BYTES)
        ranges = [(start + i, start + min(i + _PIECE_BYTES, len(buffer))) for i in firsts]
        for first, piece in zip(firsts, self.read_many(ranges), strict=True):
            buffer[first : first + len(piece)] = piece

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `File`."""
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        try:
            pieces = self._files.cat_ranges([self._path] * len(ranges), starts, stops)
        except Exception as error:  # packages raise unrelated types
            raise _unreadable(self.where, error) from None
        for (start, stop), piece in zip(ranges, pieces, strict=True):
            if isinstance(piece, Exception):
                raise _unreadable(self.where, piece)
            if len(piece) > stop - start:
                raise ValueError(
                    f"{self.where}: its server does not give parts of files: copy the model to a "
                    "directory, or to a bucket"
                )
            if len(piece) < stop - start:
                raise _shrunk(self.where)
        return pieces

    def close(self) -> None:
        """No-op: nothing is open."""


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, which pathlib would take for a local directory of that name."""
    return "://" in str(path)


def local_path(directory: str | os.PathLike[str]) -> Path:
    """Checks that a path to write to is on this machine.

    Raises:
      ValueError: it is a URL, which pathlib would turn into a local directory of that name.
    """
    if is_url(directory):
        raise ValueError(
            f"{directory} is not on this machine: give a local directory, and copy it there"
        )
    return Path(directory)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path in it.

    Raises:
      ValueError: there is no such filesystem, or its package is missing.
    """
    kind = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError:
        package = _PACKAGES.get(kind, f"fsspec[{kind}]")
        raise ValueError(
            f"{url}: the package for {kind}:// is missing: run pip install {package}"
        ) from None
    except Exception as error:  # unknown protocol, no credentials: many unrelated types
        raise _unreadable(url, error) from None


def sizes(url: str) -> dict[str, int]:
    """Name -> bytes of each file directly below a URL.

    Raises:
      ValueError: the URL cannot be listed, or the server does not report the size of a file.
    """
    files, path = filesystem(url)
    try:
        entries = files.ls(path, detail=True)
    except FileNotFoundError:
        entries = []
    except Exception as error:
        raise _unreadable(url, error) from None
    found = {}
    for entry in entries:
        above, _, name = entry["name"].rpartition("/")
        # In some buckets an object whose name ends in a slash stands for a folder.
        if entry["type"] != "file" or not name:
            continue
        size = entry["size"]
        if size is None:  # a web page: some links lead elsewhere or sort the list
            if above != path.rstrip("/") or "?" in name or "#" in name:
                continue
            size = _size(files, f"{url}/{name}", entry["name"])
        found[name] = size
    if not found:
        raise ValueError(f"{url} holds no files: check the URL and your rights to it")
    return found


def _size(files: Any, url: str, path: str) -> int:
    """Size of one file in bytes, for listings without sizes."""
    try:
        size = files.info(path)["size"]
    except Exception as error:
        raise _unreadable(url, error) from None
    if type(size) is not int:
        raise ValueError(
            f"{url}: its server does not say how large it is: copy the model to a directory, or to "
            "a bucket"
        )
    return size


def copy_into(directory: Path, url: str, sizes: dict[str, int], names: Iterable[str]) -> None:
    """Copies those of the files `names` that exist below a URL into a directory.

    Several processes may do this at once: each file appears complete, by one rename.

    Raises:
      ValueError: one cannot be read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in sizes:
            [content] = RemoteFile(f"{url}/{name}", sizes[name]).read_many([(0, sizes[name])])
            write(directory / name, content)
        else:
            (directory / name).unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Writes a local file atomically, also if other processes write it at the same time."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def cache_directory(url: str) -> Path:
    """Cache of the small files of a model at a URL: below XDG_CACHE_HOME or ~/.cache."""
    return _cache() / hashlib.sha256(url.encode()).hexdigest()[:16]


def is_cached(directory: Path) -> bool:
    """Whether a directory comes from `cache_directory`."""
    return directory.resolve().parent == _cache().resolve()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subjax"


def malformed(where: Any, reason: object) -> ValueError:
    """The error for a malformed file."""
    return ValueError(f"{where} is malformed ({one_line(reason)[:200]}): download or save it again")


def one_line(reason: object) -> str:
    """A reason without line breaks, with other control characters escaped."""
    shown = " ".join(str(reason).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def may_pass(error: Exception, where: str) -> bool:
    """Whether a store's error, which repeated requests did not avoid, may be temporary."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if where.startswith(("gs://", "gcs://")):
        retry: Any = sys.modules.get("gcsfs.retry")
        return retry is not None and bool(retry.is_retriable(error))
    status = getattr(error, "status", 0)  # from a web server
    return isinstance(status, int) and (status == 429 or status >= 500)


def _unreadable(where: str, error: Exception) -> ValueError | Unavailable:
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    what = f"cannot be read ({one_line(reason)[:200]})"
    if may_pass(error, where):
        return Unavailable(errno.EIO, what, where)
    return ValueError(f"{where} {what}: check the file and your rights to it")


def _shrunk(where: str) -> ValueError:
    return malformed(where, "it became shorter while it was read")
