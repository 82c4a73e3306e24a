"""A work directory in an object store, and the local copy of it in which stages work.

The copy is a new, empty directory in each process of each run, so nothing in it is ever stale.
Small files are copied at the start, tensors when a model is loaded. Tensors that are in the store
are removed from the copy if they would fill the disk (the disk of TMPDIR, which must hold one model
in float32). Files that the first process writes are published one by one, and the manifest of a
unit after all its other files, by one create-only write: a unit with a manifest is complete and
never changes, a unit that was published in part has none. The other processes download published
files whenever they wait for the first process. Checkpoints exist only in the store: Orbax writes
them there directly, from all processes.

The lock is an object too, made by a create-only write. Its holder changes it every `BEAT_S`
seconds. A second run watches it: if it changes, the second run is refused; if it has not changed
for `STALE_S` seconds, its holder is dead and the second run takes it over. No two clocks are ever
compared. A holder that was wrongly taken for dead finds its object gone and stops publishing.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from subjax.runtime import artifacts, storage

BEAT_S = 20.0
STALE_S = 120.0
_LOOK_S = 2.0  # between two reads of another run's lock
_LOCK = ".lock"
_PREFIX = ".subjax-copy-"  # prefix of the copy's directory, reserved for it
_NEW_S = 60.0  # a copy this new may not be locked yet


@contextlib.contextmanager
def opened(name: str) -> Iterator[Path]:
    """The work directory of that name: the directory itself, or the local copy if it is a URL.

    Raises:
      ValueError: the URL is not in a Google Cloud Storage bucket; gcsfs is missing.
      OSError: the store cannot be read.
      storage.Unavailable: the store does not answer for now.
    """
    if not storage.is_url(name):
        yield Path(name)
        return
    if not name.startswith("gs://") or not name.removeprefix("gs://").strip("/").count("/"):
        raise ValueError(
            f"workdir {name} is a URL of no run: give gs://BUCKET/NAME, or mount what it names and "
            "give the directory"
        )
    # gcsfs warns at every request if a bucket does not tell its kind.
    logging.getLogger("gcsfs").setLevel(logging.ERROR)
    # Listings are not cached: other processes, and Orbax, write to the store too.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    _remove_abandoned(Path(tempfile.gettempdir()))
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX) as directory,
        _in_use(Path(directory)),
    ):
        store = Bucket(name, Path(directory).resolve())
        store.refresh()
        artifacts.use(store)
        try:
            yield store.directory
        finally:
            artifacts.use(None)


@contextlib.contextmanager
def _in_use(copy: Path) -> Iterator[None]:
    """Locks a copy, so that other processes of this machine do not remove it."""
    handle = os.open(copy, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    """Removes the copies of killed processes, which would fill the disk in the end."""
    for copy in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, owned by somebody else, or already gone
            if time.time() - copy.stat().st_ctime < _NEW_S:
                continue
            handle = os.open(copy, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(copy, ignore_errors=True)
            finally:
                os.close(handle)


def named(message: str, workdir: Path, name: str) -> str:
    """The message with the URL of a work directory in place of the path of its copy."""
    return message.replace(str(workdir), name.rstrip("/")) if storage.is_url(name) else message


class Bucket:
    """A work directory at a URL and its copy.

    Attributes:
      url: of the work directory.
      directory: the copy.
    """

    def __init__(self, url: str, directory: Path):
        self.url, self.directory = url.rstrip("/"), directory
        self._files, self._root = storage.filesystem(self.url)
        self._generations: dict[str, str] = {}  # of each object at the last listing
        self._copies: dict[str, tuple[int, ...]] = {}  # what identifies the copy of each object
        self._lost = ""  # why the lock is no longer held
        self._unreachable = ""  # why the lock could not be renewed

    def refresh(self) -> None:
        """Copies new objects from the store, and removes from the copy what the store lost."""
        with self._errors("read"):
            listed = {
                name: str(details["generation"])
                for path, details in self._files.find(self._root, detail=True).items()
                if (name := self._name(path))
            }
        held = {name for name in listed if artifacts.CHECKPOINTS in name.split("/")}
        for name in held:  # an empty folder stands for them
            before, _, _ = name.partition(f"/{artifacts.CHECKPOINTS}/")
            (self.directory / before / artifacts.CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        listed = {name: found for name, found in listed.items() if name not in held}
        changed = [name for name in listed if listed[name] != self._generations.get(name)]
        for name in [*(self._generations.keys() - listed.keys()), *changed]:
            (self.directory / name).unlink(missing_ok=True)
        self._generations = listed
        self._get([name for name in changed if not _is_large(name)])
        self._make_room()

    def fetch(self, path: Path) -> None:
        """Downloads the tensors below a directory of the copy, unless they are in it."""
        if path.is_relative_to(self.directory):
            below = f"{path.relative_to(self.directory)}/"
            known = sorted(self._generations.keys() | self._copies.keys())
            names = [name for name in known if name.startswith(below)]
            self._get([name for name in names if not (self.directory / name).exists()])

    def publish(self) -> None:
        """Uploads what has changed in the copy; manifests last.

        A run removes only two things from the store, if they are gone from the copy: curves, which
        are drawn anew under another name, and the replies to an eval that is done.

        Raises:
          OSError: it cannot be written.
          ValueError: another run writes there too.
        """
        changed = {
            name: copy
            for path in sorted(self.directory.rglob("*"))
            if path.is_file() and path.suffix != ".partial"
            for name in [str(path.relative_to(self.directory))]
            if (copy := _identity(path)) != self._copies.get(name)
        }
        removed = [
            name
            for name in self._copies
            if _is_passing(name) and not (self.directory / name).exists()
        ]
        manifests = [name for name in changed if PurePosixPath(name).name == artifacts.MANIFEST]
        begun = [name for name in changed if PurePosixPath(name).name == artifacts.BEGUN]
        others = [name for name in changed if name not in (*manifests, *begun)]
        self._check_lock()
        # Parts come after what says whose they are, manifests after all that they vouch for.
        for names in filter(None, (begun, others)):
            with self._errors("written"):
                paths = [str(self.directory / name) for name in names]
                self._files.put(paths, [self._path(name) for name in names])
        for name in removed:
            with self._errors("written"), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))
            del self._copies[name]
        for name in manifests:
            self._check_lock()
            self._create(name, (self.directory / name).read_bytes())
        self._copies |= changed
        self._make_room()

    def _make_room(self) -> None:
        """Removes uploaded tensors from the copy if they take more space than is free on the disk.

        `fetch` downloads them again. Must not run between a fetch and the reading of its files.
        """
        held = [
            self.directory / name
            for name, copy in self._copies.items()
            if _is_large(name)
            and (self.directory / name).exists()
            and _identity(self.directory / name) == copy
        ]
        if sum(path.stat().st_size for path in held) > shutil.disk_usage(self.directory).free:
            for path in held:
                path.unlink()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other runs out of the work directory.

        Raises:
          ValueError: another run that is alive holds it.
          OSError: it cannot be written.
        """
        owner = {"run": uuid.uuid4().hex, "host": socket.gethostname(), "pid": str(os.getpid())}
        generation = self._acquire(owner)
        done = threading.Event()
        beats = threading.Thread(target=self._beat, args=(owner, generation, done), daemon=True)
        beats.start()
        try:
            yield
        finally:
            done.set()
            beats.join()
            with contextlib.suppress(Exception):  # held by another run, or it will go stale
                self._call("DELETE", generation)

    def _acquire(self, owner: dict[str, str]) -> str:
        """Takes the lock and returns its generation."""
        seen: Any = None
        while True:
            with self._errors("written"), contextlib.suppress(FileExistsError):
                about = f"{owner['host']}, process {owner['pid']}\n".encode()
                self._files.pipe_file(self._path(_LOCK), about, metadata=owner, mode="create")
            with self._errors("read"):
                try:
                    found = self._files.info(self._path(_LOCK))
                except FileNotFoundError:
                    continue  # given up just now
            holder = found.get("metadata", {})
            if holder.get("run") == owner["run"]:
                return str(found["generation"])
            state = (found["generation"], found["metageneration"])
            if seen is None:
                seen, since = state, time.monotonic()
                print(f"{self.url} is locked: waiting for a sign of life", file=sys.stderr)
            if state != seen:
                raise ValueError(
                    f"workdir {self.url} is in use by another run (on {holder.get('host')}, "
                    f"process {holder.get('pid')}): wait for it, or choose another"
                )
            if time.monotonic() - since > STALE_S:
                # Another waiting run may be quicker; the next write shows it.
                gone = contextlib.suppress(FileExistsError, FileNotFoundError)
                with self._errors("written"), gone:
                    self._call("DELETE", str(found["generation"]))
            else:
                time.sleep(_LOOK_S)

    def _beat(self, owner: dict[str, str], generation: str, done: threading.Event) -> None:
        beaten, count = time.monotonic(), 0
        while not done.wait(BEAT_S):
            count += 1
            try:
                self._call("PATCH", generation, {"metadata": {**owner, "beat": str(count)}})
                beaten = time.monotonic()
            except (FileNotFoundError, FileExistsError):  # HTTP 404 and 412
                self._lost = "another run has taken it over"
                return
            except Exception as error:  # the network may come back
                if time.monotonic() - beaten > STALE_S - 2 * BEAT_S:
                    self._unreachable = storage.one_line(error)[:120]
                    return

    def _call(self, method: str, generation: str, content: dict[str, Any] | None = None) -> None:
        """Changes or deletes the lock, if it still has that generation."""
        bucket, key, _ = self._files.split_path(self._path(_LOCK))
        self._files.call(
            method, "b/{}/o/{}", bucket, key, ifGenerationMatch=generation, json=content
        )

    def _check_lock(self) -> None:
        if self._unreachable:
            text = f"its lock could not be renewed ({self._unreachable})"
            raise storage.Unavailable(errno.EIO, text, self.url)
        if self._lost:
            raise ValueError(f"workdir {self.url} is no longer this run's ({self._lost}): see it")

    def _create(self, name: str, content: bytes) -> None:
        """One create-only write."""
        with self._errors("written"):
            try:
                self._files.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                # A request that is repeated because its answer was lost finds its own object.
                if self._files.cat_file(self._path(name)) != content:
                    raise ValueError(
                        f"{self.url}/{name} was written by another run meanwhile: run again"
                    ) from None

    def _get(self, names: Sequence[str]) -> None:
        if not names:
            return
        with self._errors("read"):
            paths = [str(self.directory / name) for name in names]
            self._files.get([self._path(name) for name in names], paths)
        self._copies |= {name: _identity(self.directory / name) for name in names}

    def _name(self, path: str) -> str:
        """An object's name in the work directory; "" for the lock and for folder placeholders."""
        name = path.removeprefix(f"{self._root}/")
        if name == _LOCK or name.endswith("/"):
            return ""
        if ".." in name.split("/"):
            raise ValueError(
                f"{self.url} holds {name}, which is no file of a run: give another --workdir"
            )
        return name

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Raises any error of gcsfs as an OSError that names the work directory."""
        try:
            yield
        except (ValueError, FileExistsError):
            raise
        except Exception as error:
            reason = f"cannot be {what} ({type(error).__name__}: {storage.one_line(error)[:200]})"
            kind = storage.Unavailable if storage.may_pass(error, self.url) else OSError
            raise kind(errno.EIO, reason, self.url) from error


def _is_large(name: str) -> bool:
    """Whether a file holds tensors, which are copied only on request."""
    return name.endswith(".safetensors")


def _is_passing(name: str) -> bool:
    """Whether a run may remove a file of this name; rows of tables may be called as folders are."""
    parts = PurePosixPath(name).parts
    return parts[0] == artifacts.CURVES or parts[-2:-1] == (artifacts.REPLIES,)


def _identity(path: Path) -> tuple[int, ...]:
    """Values that change whenever the file is written again."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
