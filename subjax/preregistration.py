"""What was promised before it was run: a config's hash, the frozen file, and the status it earns.

The file holds what will be tested; the report says CONFIRMATORY only where that is what ran, and
nothing ran before. A file proves its own time to nobody: commit and push it before the run.
"""

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from subjax import artifacts, schema, units, validation
from subjax.artifacts import Unit
from subjax.summary import STATUSES, Contrast

EXPLORATORY, CONFIRMATORY = STATUSES


def config_hash(config: ConfigDict, planned: Sequence[Unit]) -> str:
    """sha256 of everything that decides results and analysis: all units, contrasts and gates.

    A base's path counts, since it names the weights. Titles, the work directory, the mesh and
    `config.preregistration` itself do not count.
    """
    content = {
        "units": {unit.path: unit.fingerprint for unit in planned},
        "contrasts": config.contrasts.to_dict(),
        "gates": config.gates.to_dict(),
    }
    return hashlib.sha256(artifacts.dumps(content).encode()).hexdigest()


def freeze(config: ConfigDict, path: Path, *, command: Sequence[str] = ()) -> None:
    """Writes the preregistration of a config, once.

    Args:
      config: an experiment with one primary contrast.
      path: a new file; one that exists is never written over.
      command: argv, kept in the file.

    Raises:
      ValueError: the config is wrong or has no primary contrast, or the file exists.
    """
    validation.validate(config)
    frozen = {
        "config": config.name,
        "config_hash": config_hash(config, units.build(config)),
        "lineages": list(config.lineages),
        "primary": _primary(config),
        "frozen_at": artifacts.utc_now(),
        "command": "python -m subjax.main " + " ".join(command[1:]),
    }
    text = json.dumps(frozen, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(
            f"{path} exists, and a preregistration is written once: give --freeze another path"
        ) from None


def status(config: ConfigDict, planned: Sequence[Unit], workdir: Path) -> tuple[str, str]:
    """CONFIRMATORY or EXPLORATORY, and the sentence that says why.

    Raises:
      ValueError: `config.preregistration` names no file that `freeze` wrote.
    """
    if not config.preregistration:
        return EXPLORATORY, "No frozen preregistration precedes this run."
    path = Path(config.preregistration)
    frozen = _read(path)
    manifests = [artifacts.read_manifest(workdir, unit) for unit in planned]
    # A manifest without a time is older than this field, and sorts before every other.
    finished = [(done.get("finished_at", ""), done["unit"]) for done in manifests if done]
    failures = _failures(frozen, config_hash(config, planned), min(finished, default=None))
    if failures:
        return EXPLORATORY, f"{path.name} does not cover this run: {'; '.join(failures)}."
    return CONFIRMATORY, (
        f"{path.name}, frozen at {frozen['frozen_at']}, precedes the first finished unit and "
        f"has the hash of this config ({frozen['config_hash'][:12]})."
    )


def _failures(frozen: dict[str, str], found: str, first: tuple[str, str] | None) -> list[str]:
    """Which of the two conditions fail, in words; `first` is (time, unit), None while none is."""
    failures = []
    if frozen["config_hash"] != found:
        failures.append(
            f"the config is another one (its hash is {found[:12]}, the frozen one is "
            f"{frozen['config_hash'][:12]})"
        )
    if first and (not first[0] or _time(first[0]) <= _time(frozen["frozen_at"])):
        failures.append(
            f"it was frozen at {frozen['frozen_at']}, after {first[1]} had finished at "
            f"{first[0] or 'a time that its manifest does not hold'}"
        )
    return failures


def _read(path: Path) -> dict[str, str]:
    try:
        frozen = json.loads(path.read_text(encoding="utf-8"))
        _time(frozen["frozen_at"])
        return {name: str(frozen[name]) for name in ("config_hash", "frozen_at")}
    except OSError as error:
        raise ValueError(
            f"config.preregistration {str(path)!r} cannot be read ({error.strerror}): write it "
            f"with --freeze={path}, or set the field to ''"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"config.preregistration {str(path)!r} is no file of --freeze "
            f"({type(error).__name__}: {error}): restore it, or set the field to ''"
        ) from None


def _time(text: str) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"the time {text!r} names no time zone")
    return time


def _primary(config: ConfigDict) -> dict[str, Any]:
    """What decides, in the words of the report."""
    rows = {name: row for name, row in config.contrasts.items() if row.primary}
    if len(rows) != 1:
        raise ValueError(
            f"config.contrasts has {len(rows)} rows with primary=True ({', '.join(rows) or 'none'})"
            "; a preregistration needs exactly one: mark the contrast that decides"
        )
    [(name, row)] = rows.items()
    contrast = Contrast(
        name=name, eval=row.eval, metric=row.metric, plus=row.plus, minus=row.minus, primary=True
    )
    primary = {
        "name": name,
        "formula": contrast.formula,
        "eval": row.eval,
        "metric": row.metric,
        "test": "two-sided sign-flip test over lineages",
        "interval": "95 % t-interval over lineages",
    }
    if row.expected_low > schema.OFF:
        primary["expected_low"] = row.expected_low
    if row.equivalence_margin:
        primary["equivalence_margin"] = row.equivalence_margin
    return primary
