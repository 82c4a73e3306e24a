"""Preregistration: a config's hash, the frozen file, and the status of a run.

The file holds what will be tested, and what it is made with: code, packages, models and files. The
report says CONFIRMATORY only where all of that is what ran, all of it is done, and none of it was
in the work directory before. A file proves its own time to nobody: commit and push it before the
run. Nor does it know what ran in work directories elsewhere.
"""

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from subjax import schema
from subjax.hf import hub, model_files
from subjax.pipeline import experiments, validation
from subjax.report.contrasts import kinds
from subjax.report.results import STATUSES
from subjax.runtime import artifacts, versions
from subjax.runtime.artifacts import Unit

EXPLORATORY, CONFIRMATORY, INCOMPLETE = STATUSES

# Models up to this size are hashed whole, larger ones only by `hub.header_digest`.
_MOST_BYTES = 4 * 2**30
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


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


def freeze(config: ConfigDict, path: Path, workdir: Path, *, command: Sequence[str] = ()) -> None:
    """Writes the preregistration of a config, once.

    Args:
      config: an experiment with one primary contrast.
      path: a new file; one that exists is never written over.
      workdir: where it will run; nothing of it may be there.
      command: argv, kept in the file.

    Raises:
      ValueError: the config is wrong or has no primary contrast, the file exists, a unit of the
        config is in `workdir` or scored in a directory beside it, or a model or file that the
        config names cannot be read.
    """
    validation.settle(config)
    planned = experiments.of(config).build(config)
    primary = _primary(config)
    if path.exists():
        raise _written_once(path)
    _check_nothing_ran(config, planned, workdir)
    frozen = {
        "config": config.name,
        "config_hash": config_hash(config, planned),
        "lineages": list(config.lineages),
        "primary": primary,
        "made_with": made_with(config),
        "workdir": artifacts.location(workdir),
        "frozen_at": artifacts.utc_now(),
        "command": "python -m subjax.main " + " ".join(command[1:]),
    }
    text = json.dumps(frozen, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _written_once(path) from None


def _written_once(path: Path) -> ValueError:
    return ValueError(
        f"{path} exists, and a preregistration is written once: give --freeze another path"
    )


def _check_nothing_ran(config: ConfigDict, planned: Sequence[Unit], workdir: Path) -> None:
    """Raises a ValueError if results of a config, or unfinished work on it, exist already."""
    begun = [unit.path for unit in planned if (workdir / unit.path).exists()]
    if begun:
        raise ValueError(
            f"--freeze comes before the run, but {begun[0]} is in {artifacts.location(workdir)} "
            f"({len(begun)} of {len(planned)} units): give config.lineages that nobody has run, "
            "and another --workdir"
        )
    experiment = experiments.of(config)
    scored = [unit for unit in planned if experiment.scored_as(config, unit)]
    for beside in _beside(workdir):
        for unit in scored:
            manifest = artifacts.read_manifest(beside, unit)
            if manifest and manifest["fingerprint"] == unit.fingerprint:
                raise ValueError(
                    f"--freeze comes before the run, but {unit.path} of this config is done in "
                    f"{beside}: give config.lineages that nobody has run"
                )


def _beside(workdir: Path) -> list[Path]:
    """Other work directories in the same folder."""
    if not workdir.parent.is_dir():
        return []
    found = (path for path in workdir.parent.iterdir() if path.name != workdir.name)
    return sorted(path for path in found if (path / "config.json").is_file())


def made_with(config: ConfigDict) -> dict[str, dict[str, str]]:
    """Digests and versions of everything beside the config that decides results.

    Models that the run makes itself follow from the code. One from outside counts by its header,
    samples of each file, tokenizer and config.json (`hub.header_digest`), and where it lies on this
    machine and has up to 4 GiB by every byte of its weights. A hub id is downloaded for it.

    Returns:
      {"code": …, "packages": …, "models": …, "files": …}, each by name.

    Raises:
      ValueError: a model or file that the config names cannot be read.
    """
    experiment = experiments.of(config)
    models = {name: _model(*where) for name, where in experiment.models(config).items()}
    named = {"stimuli": config.stimuli, **experiment.files(config)}
    files = {name: _content(Path(path)) for name, path in named.items() if path}
    return {
        "code": {"subjax": versions.code()},
        "packages": versions.packages(),
        "models": models,
        "files": files,
    }


def _model(path: str, revision: str = "") -> str:
    directory = hub.resolve(path, revision)
    if (directory / _ADAPTER[0]).is_file():
        brought = [name for name in model_files.TOKENIZER_FILES if (directory / name).is_file()]
        return _of_files([directory / name for name in (*_ADAPTER, *brought)])
    model = hub.model_directory(directory)
    gguf = model_files.gguf_name(model)
    names = [gguf] if gguf else model_files.shard_names(model)[0]
    paths = [model if model.is_file() else model / name for name in names]
    told = f"sampled {hub.header_digest(directory)}"
    here = all(file.is_file() for file in paths)  # of a URL only the small files are
    if here and sum(file.stat().st_size for file in paths) <= _MOST_BYTES:
        told += f", whole {_of_files(paths)}"
    return told


def _content(path: Path) -> str:
    """Digest of a file, or of the files of a folder."""
    path = path.expanduser()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return _of_files(files)


def _of_files(paths: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}): check the path") from None
    return total.hexdigest()


def status(config: ConfigDict, planned: Sequence[Unit], workdir: Path) -> tuple[str, str]:
    """CONFIRMATORY, INCOMPLETE or EXPLORATORY, and the sentence that says why.

    INCOMPLETE: a frozen file covers the run, and some of its units are not done.

    Raises:
      ValueError: `config.preregistration` names no file that `freeze` wrote.
    """
    if not config.preregistration:
        return EXPLORATORY, "No frozen preregistration covers this run."
    path = Path(config.preregistration)
    frozen = _read(path)
    failures = list(_failures(frozen, config, planned, workdir))
    if failures:
        return EXPLORATORY, f"{path.name} does not cover this run: {'; '.join(failures)}."
    looked = Path(frozen["workdir"]).resolve() == Path(artifacts.location(workdir)).resolve()
    covered = (
        f"config ({frozen['config_hash'][:12]}), code, packages, models and files are those of "
        f"{path.name}, and "
        + ("nothing of it was" if looked else "no unit of it had finished")
        + f" in this work directory when it was frozen, at {frozen['frozen_at']}."
        + ("" if looked else f" Freezing looked into {frozen['workdir']}.")
    )
    missing = sum(not artifacts.read_manifest(workdir, unit) for unit in planned)
    if missing:
        return INCOMPLETE, f"{missing} of {len(planned)} frozen units are not done; {covered}"
    return CONFIRMATORY, covered[:1].upper() + covered[1:]


def _failures(
    frozen: Mapping[str, Any], config: ConfigDict, planned: Sequence[Unit], workdir: Path
) -> Iterator[str]:
    """What keeps a freeze from covering a run, in words."""
    found = config_hash(config, planned)
    if frozen["config_hash"] != found:
        yield (
            f"the config is another one (its hash is {found[:12]}, the frozen one is "
            f"{frozen['config_hash'][:12]})"
        )
    done = [manifest for unit in planned if (manifest := artifacts.read_manifest(workdir, unit))]
    # A manifest without a time is older than this field, and sorts before every other.
    finished = [(manifest.get("finished_at", ""), manifest["unit"]) for manifest in done]
    first = min(finished, default=None)
    if first and (not first[0] or _time(first[0]) <= _time(frozen["frozen_at"])):
        yield (
            f"it was frozen at {frozen['frozen_at']}, after {first[1]} had finished at "
            f"{first[0] or 'a time that its manifest does not hold'}"
        )
    if not frozen["made_with"]:
        yield "it was frozen by a version that did not note code, packages, models and files"
        return
    try:
        now = made_with(config)
    except ValueError as error:
        yield f"what it was made with cannot be compared ({error})"
        return
    for kind, noted in frozen["made_with"].items():
        for name in sorted({*noted, *now[kind]}):
            if (old := noted.get(name, "none")) != (new := now[kind].get(name, "none")):
                yield f"{kind} {name} is another one ({_short(old)} when frozen, now {_short(new)})"
    for start in _starts(workdir):
        if start.get("code") not in (None, frozen["made_with"]["code"]["subjax"]):
            yield f"the code of the start at {start['started_at']} was another one"


def _short(text: str) -> str:
    """The end of a digest, or a version."""
    return text if len(text) <= 12 else f"…{text[-12:]}"


def _starts(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / "commands.jsonl"
    return artifacts.read_jsonl(path) if path.exists() else []


def _read(path: Path) -> dict[str, Any]:
    try:
        frozen = json.loads(path.read_text(encoding="utf-8"))
        _time(frozen["frozen_at"])
        noted = frozen.get("made_with", {})
        for kind in ("code", "packages", "models", "files") if noted else ():
            dict.items(noted[kind])
        if noted:
            str(noted["code"]["subjax"])
        told = {name: str(frozen[name]) for name in ("config_hash", "frozen_at")}
        return {**told, "workdir": str(frozen.get("workdir", "")), "made_with": noted}
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
    contrast = kinds.KINDS[row.kind].of_row(config, name)
    primary = {
        "name": name,
        "formula": contrast.formula,
        "eval": row.eval,
        "metric": row.metric,
        "test": f"two-sided {contrast.test_words} over lineages",
        "interval": "95 % t-interval over lineages",
    }
    if row.expected_low > schema.OFF:
        primary["expected_low"] = row.expected_low
    if row.equivalence_margin:
        primary["equivalence_margin"] = row.equivalence_margin
    return primary
