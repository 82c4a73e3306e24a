"""Units as they are added from a config: which lineages share one, and what its fingerprint counts.

A field of a row that has the value with which it was released is left out of the fingerprint, so
that a new field makes nothing stale. Of files that a config names, the content counts and not where
they lie: their paths are settings. Which units there are, and of which fields, is for the builder
of each kind of experiment to say.
"""

import functools
import hashlib
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from ml_collections import ConfigDict

from subjax import schema
from subjax.runtime.artifacts import Unit, dumps, make_unit

# These fields are always in the fingerprint, even with their default value.
_ALWAYS = ("kind", "source", "weights", "method")
_OFFSETS = {"same": 0, "next_lineage": 1}
_SETTINGS = ("checkpoint_minutes", "keep_checkpoints", "log_seconds", "tensorboard")


_Builder = TypeVar("_Builder", bound="UnitBuilder")
_Args = ParamSpec("_Args")
_Made = TypeVar("_Made")


def once(
    make: Callable[Concatenate[_Builder, _Args], _Made],
) -> Callable[Concatenate[_Builder, _Args], _Made]:
    """A method of a builder that is called for the same by many, and does its work once."""

    @functools.wraps(make)
    def remembered(self: _Builder, *args: _Args.args, **kwargs: _Args.kwargs) -> _Made:
        key = (make.__name__, *args, *sorted(kwargs.items()))
        if key not in self.made:
            self.made[key] = make(self, *args, **kwargs)
        return self.made[key]

    return remembered


class UnitBuilder:
    """Makes units on demand and remembers them by path."""

    rows: ClassVar[Mapping[str, Mapping[str, schema.Maker]]]
    """Stage -> field of its units that is a row -> what makes such rows."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.units: dict[str, Unit] = {}
        self.made: dict[tuple[Any, ...], Any] = {}  # of methods that are `once`

    def add(
        self,
        stage: str,
        row: str,
        lineage: int,
        fields: dict[str, Any],
        inputs: dict[str, Unit],
        files: Mapping[str, Any] = types.MappingProxyType({}),
    ) -> Unit:
        """The unit of a row at a lineage; the same one for lineages that share it.

        Args:
          stage: that makes it.
          row: of a table.
          lineage: for which it is asked.
          fields: what the stage may look at.
          inputs: role -> unit.
          files: settings beside those of all units, such as paths.
        """
        order = schema.STAGES.index
        if order(stage) < order(self.config.lineage_from):
            lineage = 0
        settings = {**{name: self.config.compute[name] for name in _SETTINGS}, **files}
        told = self.told(stage, fields)
        unit = make_unit(stage, row, lineage, fields, inputs, settings, told)
        return self.units.setdefault(unit.path, unit)

    def told(self, stage: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields as a fingerprint counts them: rows without what they were released with."""
        makers = self.rows[stage].items()
        rows = {name: counted(fields[name], maker) for name, maker in makers if name in fields}
        return {**fields, **rows}

    def later(self, lineage: int, offset: int) -> int:
        """The lineage so many after this one in its block, cyclically."""
        cycle = self.config.lineage_cycle
        first = lineage // cycle * cycle
        return first + (lineage + offset - first) % cycle

    def ordered(self) -> list[Unit]:
        """All units in the order of what they need; of one stage by row, then by lineage."""
        rows = [name for table in schema.TABLES for name in self.config[table]]

        def order(unit: Unit) -> tuple[Any, ...]:
            names = [part for part in unit.row.split("/") if part in rows]
            return phase(unit), [rows.index(name) for name in names], unit.lineage

        return sorted(self.units.values(), key=order)


def offset(base: str) -> int | None:
    """How many lineages on the base of an arm is, by its field `base`; None if it is a row."""
    if base in _OFFSETS:
        return _OFFSETS[base]
    later = re.fullmatch(r"lineage\+([1-9][0-9]*)", base)
    return int(later[1]) if later else None


def phase(unit: Unit) -> tuple[int, int]:
    """Sort key of units: by stage; evals come right after the stage of their subject."""
    order = schema.STAGES.index
    if unit.stage == "evaluate":
        return max(order(path.partition("/")[0]) for path in unit.inputs.values()), 1
    return order(unit.stage), 0


def digest(field: str, path: str) -> str:
    """Hash of a file that a field of the config names; "" where it names none.

    Raises:
      ValueError: the file cannot be read.
    """
    if not path:
        return ""
    file = Path(path).expanduser()
    try:
        found = file.stat()
        return _hash(file, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise ValueError(
            f"config.{field} {path!r} cannot be read ({error.strerror}): give the path of a file"
        ) from None


@functools.cache
def _hash(file: Path, size: int, modified_ns: int) -> str:
    """Once for each state of a file, whose units may be hundreds."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def counted(row: Mapping[str, Any], maker: schema.Maker) -> dict[str, Any]:
    """What a fingerprint counts of a row: not the fields that are as they were released."""
    return _changed(row, schema.released(maker, row.get("kind", "")))


def _changed(row: Mapping[str, Any], released: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that are not as they were released, in rows inside it likewise."""
    changed: dict[str, Any] = {}
    for name, value in row.items():
        before = released.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            value, before = _changed(value, before), {}
        if name in _ALWAYS or name not in released or dumps(value) != dumps(before):
            changed[name] = value
    return changed
