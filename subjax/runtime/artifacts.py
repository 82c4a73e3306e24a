"""Files that stages leave behind: units, manifests, jsonl, atomic writes, the run lock.

A unit is complete if and only if its manifest exists; the manifest is written last. Nothing here
knows what a stage does.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

MANIFEST = "manifest.json"
BEGUN = "begun.json"  # in a unit that is written in parts: which config its parts belong to
CHECKPOINTS = "checkpoints"  # folder in a unit; Orbax writes its files
REPLIES = "replies"  # folder in a unit of an eval that is not done: answers sampled so far
TIMINGS = "timings.jsonl"  # in a unit that trains or generates; differs from run to run
CURVES = "tensorboard"  # directory of the run; each unit has its own folder in it
PLAN = "plan.json"  # predicted times of a run


@runtime_checkable
class Store(Protocol):
    """The remote place of a work directory that is a URL; see `object_store.Bucket`."""

    url: str
    directory: Path

    def refresh(self) -> None:
        """Copies new remote files into the directory."""

    def fetch(self, path: Path) -> None:
        """Copies the remote tensors below a path into the directory."""

    def publish(self) -> None:
        """Uploads new files of the directory."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other runs out."""


_writes = True
_store: Store | None = None


def write_nothing() -> None:
    """Makes this process read-only: in a run of several processes, only the first one writes."""
    global _writes
    _writes = False


def use(store: Store | None) -> None:
    """Declares the work directory a copy of a remote one; None: it is an ordinary directory."""
    global _store
    _store = store


def publish() -> None:
    """Uploads what this process has written, for other processes and later runs."""
    if _store and _writes:
        _store.publish()


def refresh() -> None:
    """Downloads what the first process has published."""
    if _store and not _writes:
        _store.refresh()


def fetch(directory: Path) -> None:
    """Makes sure that the tensors below a directory are on this machine."""
    if _store:
        _store.fetch(directory)


def location(path: Path) -> str:
    """The name of a path in messages: itself, or its URL in a remote work directory."""
    if _store and path.is_relative_to(_store.directory):
        return f"{_store.url}/{path.relative_to(_store.directory)}"
    return str(path)


@dataclasses.dataclass(frozen=True)
class Unit:
    """One table row at one lineage: the smallest piece of work that is done or not done.

    Attributes:
      stage: name of the stage that makes it.
      row: name of the table row; "<eval>/<table>/<row>" in the evaluate stage.
      lineage: which replication.
      fields: the slice of the config that it depends on, JSON values only.
      inputs: role -> path of another unit, relative to the work directory.
      fingerprint: hash of everything above and of the inputs' fingerprints.
      input_fingerprints: path -> fingerprint of each input.
      settings: other settings, which do not change the result.
    """

    stage: str
    row: str
    lineage: int
    fields: dict[str, Any]
    inputs: dict[str, str]
    fingerprint: str
    input_fingerprints: dict[str, str]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def path(self) -> str:
        """Directory of the unit, relative to the work directory."""
        return unit_path(self.stage, self.row, self.lineage)

    def with_files(self, field: str) -> dict[str, Any]:
        """A row among its fields, with the paths of the files that it names."""
        named = {name: self.settings[name] for name in self.fields.get("digests", {})}
        return {**self.fields[field], **named}


def distinct(units: Iterable[Unit]) -> list[Unit]:
    """Each unit once; spare lanes of a population repeat its first unit."""
    return list({unit.path: unit for unit in units}.values())


def unit_path(stage: str, row: str, lineage: int) -> str:
    """The directory of a unit, relative to the work directory."""
    return f"{stage}/{row}/r{lineage}"


def make_unit(
    stage: str,
    row: str,
    lineage: int,
    fields: dict[str, Any],
    inputs: Mapping[str, Unit],
    settings: Mapping[str, Any] = types.MappingProxyType({}),
    told: Mapping[str, Any] | None = None,
) -> Unit:
    """Builds a unit and its fingerprint from what it depends on.

    Args:
      stage: as in `Unit`, like what follows.
      row: name of the table row.
      lineage: which replication.
      fields: what the stage may look at.
      inputs: role -> another unit.
      settings: what changes nothing about the result.
      told: the fields as the fingerprint counts them; None: as they are.
    """
    plain = json.loads(json.dumps(fields))
    counted = plain if told is None else json.loads(json.dumps(told))
    fingerprints = {unit.path: unit.fingerprint for unit in inputs.values()}
    roles = {role: unit.path for role, unit in inputs.items()}
    content = [stage, row, lineage, counted, roles, fingerprints]
    digest = hashlib.sha256(dumps(content).encode()).hexdigest()[:16]
    return Unit(stage, row, lineage, plain, roles, digest, fingerprints, dict(settings))


def dumps(value: Any) -> str:
    """JSON with sorted keys: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[TextIO]:
    """Opens a text file that appears under its name only when it is complete and on disk."""
    if not _writes:
        yield io.StringIO()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turns an error of a Rust package into the OSError behind it, such as a full disk."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON value, indented, keys sorted, atomically.

    Raises:
      ValueError: a number in it is not finite; names file and key.
    """
    if found := next(_not_finite(value), ""):
        raise ValueError(
            f"{found} in {location(path)}, which is no result: the model computes numbers that are "
            "not finite: lower its learning_rate, set config.compute.precision to 'float32', or "
            "check that its checkpoint is not damaged"
        )
    with atomic_write(path) as file:
        text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        file.write(text + "\n")


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Each number in a value that JSON cannot express (NaN, infinity), with its key."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{name or 'the value'} is {value}"
    inside = dict(enumerate(value)) if isinstance(value, list | tuple) else value
    for key, part in inside.items() if isinstance(inside, Mapping) else ():
        yield from _not_finite(part, f"{name}.{key}" if name else str(key))


def read_json(path: Path) -> Any:
    """Reads one JSON value.

    Raises:
      ValueError: missing or malformed; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: run the stage that writes it") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): {_again(path)}") from None


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines with sorted keys, atomically."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(dumps(row) + "\n")


def read_jsonl(
    path: Path, fields: Mapping[str, type] | None = None, *, num_rows: int | None = None
) -> list[dict[str, Any]]:
    """Reads JSON lines.

    Args:
      path: the file.
      fields: name -> type of the fields that every row must have.
      num_rows: how many rows there must be; None: any number.

    Raises:
      ValueError: missing, a line is not such a JSON object, or their number is another; names file,
        line and remedy.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing: run the stage that writes it")
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _damaged(path, number, f"is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise _damaged(path, number, "is not a JSON object")
            for name, kind in (fields or {}).items():
                if type(row.get(name)) is not kind:
                    raise _damaged(path, number, f"has no {name!r} of type {kind.__name__}")
            rows.append(row)
    if num_rows is not None and len(rows) != num_rows:
        raise ValueError(f"{path} has {len(rows)} rows and not {num_rows}: {_again(path)}")
    return rows


def read_parts(directory: Path, fields: Mapping[str, type] | None = None) -> list[dict[str, Any]]:
    """All rows of a directory written in parts `rows-00000.jsonl`, …, in their order.

    Raises:
      ValueError: there is no part, or a part is empty or malformed.
    """
    rows = []
    for part in sorted(directory.glob("rows-*.jsonl")):
        read = read_jsonl(part, fields)
        if not read:
            raise ValueError(f"{part} is empty: {_again(part)}")
        rows += read
    if not rows:
        raise ValueError(f"{directory} has no rows-*.jsonl: delete it and run again")
    return rows


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one line to a short log, atomically: a full disk must not leave half a line in it."""
    write_jsonl(path, [*(read_jsonl(path) if path.exists() else ()), row])


def _damaged(path: Path, number: int, what: str) -> ValueError:
    return ValueError(f"{path}, line {number} {what}: {_again(path)}")


def _again(path: Path) -> str:
    """How to restore a damaged file; a file outside of units may be the user's own."""
    units = (above for above in path.parents if re.fullmatch(r"r\d+", above.name))
    for directory in units:
        if (directory / MANIFEST).exists():
            return f"delete {directory} and run again"
        if (directory / BEGUN).exists():
            return f"delete {path} and run again"
    return f"restore it, or move {path} away and run again"


def utc_now() -> str:
    """The time as ISO 8601 in UTC with microseconds, so that equal lengths sort as times."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def _identity(unit: Unit) -> dict[str, Any]:
    return {
        "unit": unit.path,
        "fingerprint": unit.fingerprint,
        "fields": unit.fields,
        "inputs": unit.input_fingerprints,
    }


def begin(workdir: Path, unit: Unit) -> None:
    """Records which config these partial files belong to; stale ones must be refused before."""
    if not (workdir / unit.path / BEGUN).exists():
        write_json(workdir / unit.path / BEGUN, _identity(unit))


def write_manifest(workdir: Path, unit: Unit, wall_s: float) -> None:
    """Declares a unit complete, with the time of now."""
    times = {"wall_s": round(wall_s, 3), "finished_at": utc_now()}
    write_json(workdir / unit.path / MANIFEST, {**_identity(unit), **times})
    publish()


def remove_replies(workdir: Path, unit: Unit) -> None:
    """Deletes the parts from which the answers of a finished unit were put together."""
    if _writes:
        shutil.rmtree(workdir / unit.path / REPLIES, ignore_errors=True)


def forget_replies(workdir: Path, unit: Unit) -> None:
    """Lets a unit that has no manifest begin anew."""
    remove_replies(workdir, unit)
    if _writes:
        (workdir / unit.path / BEGUN).unlink(missing_ok=True)


def read_manifest(workdir: Path, unit: Unit) -> dict[str, Any] | None:
    """The manifest of a unit, or None while it is not complete."""
    path = workdir / unit.path / MANIFEST
    return read_json(path) if path.exists() else None


def read_origin(workdir: Path, unit: Unit) -> dict[str, Any] | None:
    """What a complete or partial unit was made from; None if there is nothing yet."""
    begun = workdir / unit.path / BEGUN
    return read_manifest(workdir, unit) or (read_json(begun) if begun.exists() else None)


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keeps a second process out of a work directory.

    Raises:
      ValueError: the directory cannot be written, or another run holds it.
    """
    if not _writes:
        yield  # the first process holds the lock
        return
    if _store:
        with _store.lock():
            _store.refresh()
            yield
            _store.publish()
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held while running)
    except OSError as error:
        raise ValueError(
            f"workdir {workdir} cannot be written ({error.strerror}): choose another --workdir"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"workdir {workdir} is in use by another run: wait for it, or choose another"
            ) from None
        yield
