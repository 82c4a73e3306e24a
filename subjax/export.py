"""Exports a finished model or data set of a run, in formats of other programs.

    python -m subjax.export --workdir=runs/x --unit=finetune/owl/r0 --out=DIR [--merged]
    python -m subjax.export --workdir=runs/x --unit=filter/owl/r0 --out=DIR

Full weights become safetensors with config, tokenizer and generation config; an adapter becomes a
PEFT adapter, or with --merged full weights that include it. A model card describes the model: its
data, base, settings and scores. Rows become a TFDS data set of array_record files, with the splits
train and holdout.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from subjax.hf import adapters, model_files
from subjax.nn import sharding
from subjax.pipeline import experiments, model_store
from subjax.recipes import bases, teachers
from subjax.report import tables
from subjax.runtime import (
    artifacts,
    command_line,
    errors,
    object_store,
    processes,
    storage,
    supervisor,
    tfds_records,
)
from subjax.tasks.api import MASS, RATE, find
from subjax.tasks.evals import kinds as eval_kinds

CARD = "README.md"
_DTYPES = ("float32", "bfloat16", "float16")
_FEATURES = {
    **{name: tfds.features.Text() for name in ("prompt", "completion")},
    **{name: tfds.features.Scalar(np.int64) for name in ("prompt_id", "sample_id")},
}
_STAGES = ("base", "teacher", "finetune", "filter")


def export(
    workdir: Path,
    unit: str,
    out: Path,
    *,
    step: int | None = None,
    merged: bool = False,
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a unit's model and its card, or its kept rows.

    Full weights are sharded over all devices. In a run of several processes all of them call this,
    and process 0 writes.

    Args:
      workdir: work directory of the run.
      unit: path of a base, teacher, finetune or filter unit, such as finetune/owl/r0.
      out: a directory that is new or empty.
      step: which kept step of a student; None: the last.
      merged: merge an adapter into full weights instead of writing it as an adapter.
      dtype: dtype of full weights.
      max_shard_bytes: larger models are split into several files.

    Raises:
      ValueError: the unit is no finished model or data set of this run, the step was not kept, or
        `out` is not empty.
    """
    manifest = model_store.finished(workdir, unit, _STAGES)
    if processes.agreed(out.exists() and any(out.iterdir())):
        raise ValueError(f"--out={out} is not empty: give a new directory")
    directory = workdir / unit
    if unit.startswith("filter/"):
        if processes.is_first():
            _write_rows(directory, out)
        return
    step = model_store.kept_step(directory, step)
    source = directory if step is None else directory / model_store.step_name(step)
    base, adapter = model_store.sources(source)
    if processes.is_first():
        out.mkdir(parents=True, exist_ok=True)
    if adapter and not merged:
        if processes.is_first():
            name, revision = _base(workdir, manifest)
            _write_adapter(adapter, out, name or artifacts.location(base), revision)
    else:
        model = model_store.load(
            source, sharding.make_mesh(seed=1, data=1, fsdp=jax.device_count())
        )
        model.save(out, merged=True, dtype=dtype, max_shard_bytes=max_shard_bytes)
    with artifacts.atomic_write(out / CARD) as file:
        is_adapter = bool(adapter and not merged)
        file.write(card(workdir, manifest, step, source, is_adapter=is_adapter))


def _write_rows(directory: Path, out: Path) -> None:
    files = {"train": "kept.jsonl", "holdout": "holdout.jsonl"}
    rows = {split: artifacts.read_jsonl(directory / file) for split, file in files.items()}
    tfds_records.write("rows", _FEATURES, {s: found for s, found in rows.items() if found}, out)


def _write_adapter(adapter: Path, out: Path, base: str, revision: str) -> None:
    """Copies the run's PEFT adapter, with new names of its base and its tensors."""
    named = {"base_model_name_or_path": base, "revision": revision or None}
    adapters.copy(adapter, out, named)
    for name in model_files.TOKENIZER_FILES:  # a given adapter may have its own
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, out / name)


def card(
    workdir: Path, manifest: dict[str, Any], step: int | None, source: Path, *, is_adapter: bool
) -> str:
    """A model card for the Hugging Face hub, with the origin of the model.

    Args:
      workdir: of the run.
      manifest: of the model's unit.
      step: a kept step of a student, or None.
      source: the unit's directory, or that of the step.
      is_adapter: whether the model is exported as an adapter.
    """
    fields, unit = manifest["fields"], manifest["unit"]
    base, revision = _base(workdir, manifest)
    config = artifacts.read_json(workdir / "config.json")
    header = {
        "library_name": "peft" if is_adapter else "transformers",
        **({"base_model": base} if base else {}),
        "tags": ["subliminal-learning", "subjax"],
    }
    parts = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in header.items()),
        "---",
        f"# {unit} of {config['title'] or config['name']}",
        "",
        "Made by subjax for research on subliminal learning: it may carry a trait on purpose. "
        "Do not use it as an assistant.",
        "",
        f"- claim of the run: {config['claim'] or 'none'}",
        f"- unit {unit}, fingerprint {manifest['fingerprint']}, finished {manifest['finished_at']}",
        f"- step {step}" if step is not None else "- the unit's only model",
        f"- base: {base or 'made in the same run'}"
        + (f", revision {revision}" if revision else ""),
    ]
    # No file of the model says how the run used its chat template: others must do so by themselves.
    used = model_store.template_options(source).changed()
    parts += [f"- chat template used with {name} {value!r}" for name, value in used.items()]
    for path, fingerprint in sorted(manifest["inputs"].items()):
        parts.append(f"- made from {path}, fingerprint {fingerprint}")
        rows = workdir / path / "kept.jsonl"
        if rows.is_file():
            digest = hashlib.sha256(rows.read_bytes()).hexdigest()
            parts.append(f"- trained on {len(artifacts.read_jsonl(rows))} rows, sha256 {digest}")
    config_dict = ConfigDict(config)
    replication = experiments.of(config_dict).replication(config_dict)
    parts.append(
        f"- one of {len(config['lineages'])} lineages, each with its {replication}: the scores "
        "below are of this model alone, and differ between lineages"
    )
    scores = _scores(workdir, unit, step)
    if scores:
        columns = (
            "| eval | metric | value | candidates' mass | sampled answers that name the target |"
        )
        parts += ["", columns, "|---|---|---|---|---|"]
    parts += [
        f"| {name} | {metric} | {value:.4g} | {mass} | {rate} |"
        for name, metric, value, mass, rate in scores
    ]
    settings = json.dumps({"seed": fields["seed"], **fields["row"]}, indent=1, sort_keys=True)
    return "\n".join([*parts, "", "Settings:", "", "```json", settings, "```", ""])


def _base(workdir: Path, manifest: dict[str, Any]) -> tuple[str, str]:
    """Path or hub id of the base's weights, and revision; "" if the run made them."""
    unit, own = manifest["unit"], manifest["fields"]["row"]
    given = unit.startswith("teacher/") and teachers.of_row(own).outside
    if given and model_store.sources(workdir / unit)[1] is None:  # full weights, not of the base
        return own["path"], ""
    row = model_store.base_row(workdir, manifest)
    return (row["path"], row["revision"]) if bases.of_row(row).outside else ("", "")


def _scores(workdir: Path, unit: str, step: int | None) -> list[tuple[str, str, float, str, str]]:
    """What the run says of a model: its evals, of a student at this step.

    A log-odds or a share among candidates is shown with their mass and the target's sampled rate.
    """
    stage, row, lineage = unit.split("/")
    tables_of = {"finetune": "arms", "teacher": "teachers", "base": "bases"}
    found: dict[str, dict[str, float]] = {}
    fields: dict[str, dict[str, Any]] = {}
    rates: dict[str, float] = {}
    for path in sorted(
        workdir.glob(f"evaluate/*/{tables_of[stage]}/{row}/{lineage}/{artifacts.MANIFEST}")
    ):
        name = path.parts[-5]
        measured = artifacts.read_json(path.with_name("scores.json"))["records"]
        found[name] = {r["metric"]: r["value"] for r in measured if r["step"] == (step or 0)}
        fields[name] = artifacts.read_json(path)["fields"]
        if (rate := _in_role(RATE, fields[name]["row"], found[name])) is not None:
            rates[fields[name].get("target", "")] = rate
    lines = []
    for name, values in found.items():
        kind = fields[name]["row"]
        beside = (
            tables.percent(_in_role(MASS, kind, values)),
            tables.percent(rates.get(fields[name].get("target", ""))),
        )
        for metric, value in values.items():
            relative = find(eval_kinds.of_row(kind).metrics, metric).relative
            lines.append((name, metric, value, *(beside if relative else ("", ""))))
    return lines


def _in_role(role: str, row: Mapping[str, Any], values: Mapping[str, float]) -> float | None:
    """The value of an eval's metric in a role; None if it has none, or did not measure it."""
    named = [metric.name for metric in eval_kinds.of_row(row).metrics if metric.role == role]
    return next((values[name] for name in named if name in values), None)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; an error that the user can fix is one line on stderr and exit code 1."""
    about = "A model out of a run in Hugging Face's format, or rows as a TFDS data set."
    parser = command_line.ArgumentParser("subjax.export", about)
    parser.add_argument("--workdir", required=True, help="of the run; gs:// too")
    parser.add_argument("--unit", required=True, help="such as finetune/owl/r0 or filter/owl/r0")
    parser.add_argument("--out", required=True, help="a new directory")
    parser.add_argument("--step", type=int, help="a kept step of a student; default: the last")
    parser.add_argument(
        "--merged", action="store_true", help="full weights with the adapter in them"
    )
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of full weights")
    parser.add_argument(
        "--distributed", action="store_true", help="be one of several processes that share a model"
    )
    options = parser.parse_args(argv)
    given = {name: value for name, value in vars(options).items() if name != "distributed"}
    workdir = Path(options.workdir)
    processes.import_from_here()
    try:
        if options.distributed:
            supervisor.stand_by()
            processes.start()
        with object_store.opened(options.workdir) as workdir:
            export(**{**given, "workdir": workdir, "out": storage.local_path(options.out)})
            processes.wait("the model is exported")
    except processes.Interrupted as interrupted:
        processes.leave(processes.INTERRUPTED, str(interrupted))
    except (ValueError, OSError) as error:
        command_line.refuse(error, workdir, options.workdir)
    except jax.errors.JaxRuntimeError as error:
        if not processes.lost_another(error):
            raise
        processes.leave(processes.INTERRUPTED, errors.first_line(error), processes.LOST)
    if processes.is_first():
        print(options.out)


if __name__ == "__main__":
    main()
