"""Image classifiers of a chunk of lineages: trains teachers on labels, trains and scores arms.

Arms whose students have the same inputs and the same teacher train in one program. They always
train together, even if only some are missing, so that a resumed run gives the same bytes.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh

from subjax.hf import param_io
from subjax.images import image_data, mlp, mlp_training
from subjax.nn import sharding
from subjax.runtime import artifacts, processes, seeds
from subjax.runtime.artifacts import Unit


def teach(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Trains teachers of one row, one lane each; yields each unit when it is done."""
    row = units[0].fields["row"]
    data = _data(workdir / units[0].inputs["images"], mesh)
    shape = _shape(row, data)
    learner = mlp_training.Learner(
        shape, "classes", "cross_entropy", row["optimizer"], row["learning_rate"]
    )
    models = _stack([mlp.init(shape, _key(unit, "init", unit.lineage)) for unit in units])
    history = []
    for epoch in mlp_training.fit(
        mlp_training.Program((learner,), None, "images", units[0].fields["precision"]),
        [models],
        None,
        data,
        num_epochs=row["epochs"],
        batch_size=row["batch_size"],
        num_images=len(data.images),
        seeds=[_seed(unit, "teach", unit.lineage) for unit in units],
        mesh=mesh,
        batched_lanes=units[0].fields["batched_lanes"],
        label=f"teaching {units[0].row}",
    ):
        [models] = epoch.models
        history.append((epoch, mlp_training.accuracy(shape, models, data)))
    host = sharding.to_host(models)
    for lane, unit in enumerate(units):
        out = workdir / unit.path
        artifacts.write_jsonl(
            out / "metrics.jsonl",
            [
                {
                    "step": epoch.epoch,
                    "loss": float(epoch.losses[0, lane].mean()),
                    "accuracy": float(accuracy[lane]),
                }
                for epoch, accuracy in history
            ],
        )
        if processes.is_first():
            with param_io.partial(out / mlp.WEIGHTS) as partial:
                safetensors.numpy.save_file(param_io.flat(_lane(host, lane)), partial)
        yield unit


def score(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Scores all arms of one kind in the lineages of one chunk; yields each unit when it is done.

    Args:
      units: arm by arm, each arm with the same lineages in the same order.
      workdir: work directory of the run.
      mesh: where to run.
    """
    arms = list({unit.row: unit for unit in units}.values())
    chunk = [unit for unit in units if unit.row == arms[0].row]
    data = _data(workdir / units[0].inputs["images"], mesh)
    shape = _shape(units[0].fields["teacher"], data)
    untrained = _stack([mlp.init(shape, _key(unit, "init", unit.lineage)) for unit in chunk])
    teachers = _stack([_load(workdir / unit.inputs["teacher"]) for unit in chunk])
    scored = arms[0].fields["row"]["model"]
    if scored == "student":
        members = [[unit for unit in units if unit.row == arm.row] for arm in arms]
        found, curves = _distil(members, shape, untrained, teachers, data, mesh)
    else:
        model = {"untrained": untrained, "teacher": teachers}[scored]
        step = units[0].fields["teacher"]["epochs"] if scored == "teacher" else 0
        values = mlp_training.accuracy(shape, sharding.place_lanes(model, mesh), data)
        found, curves = {arm.row: [(step, values)] for arm in arms}, {}
    lanes = {unit.lineage: lane for lane, unit in enumerate(chunk)}
    for unit in units:
        out = workdir / unit.path
        if (out / artifacts.MANIFEST).exists():
            continue  # already done; it only trained with the others
        records = [
            {"metric": "accuracy", "step": step, "value": float(values[lanes[unit.lineage]])}
            for step, values in found[unit.row]
        ]
        artifacts.write_json(out / "scores.json", {"records": records})
        if curves:
            rows = _curve(*curves[unit.row], lanes[unit.lineage])
            artifacts.write_jsonl(out / "metrics.jsonl", rows)
        yield unit


def _curve(losses: np.ndarray, alignment: np.ndarray, lane: int) -> list[dict[str, float]]:
    """One row per update, without alignments that are nan."""
    rows = []
    for step, (loss, cosine) in enumerate(zip(losses[lane], alignment[lane], strict=True), 1):
        aligned = {"alignment": float(cosine)} if np.isfinite(cosine) else {}
        rows.append({"step": step, "loss": float(loss), **aligned})
    return rows


def _distil(
    arms: Sequence[Sequence[Unit]],
    taught: mlp.Shape,
    untrained: mlp.Layers,
    teachers: mlp.Layers,
    data: mlp_training.Data,
    mesh: Mesh,
) -> tuple[dict[str, list[tuple[int, np.ndarray]]], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Trains the students of all arms.

    Returns:
      arm -> (epoch, accuracy of each lane); arm -> losses and alignment, [lanes, updates].
    """
    row, chunk = arms[0][0].fields["row"], arms[0]
    learners = tuple(_learner(units[0], data) for units in arms)
    models = tuple(
        _stack([_initial(unit, learner.shape, taught) for unit in units])
        for units, learner in zip(arms, learners, strict=True)
    )
    names = [units[0].row for units in arms]
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    found: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in names}

    def keep(epoch: int) -> None:
        for name, learner, model in zip(names, learners, models, strict=True):
            found[name].append((epoch, mlp_training.accuracy(learner.shape, model, data)))

    def train(
        phase: str, learners: tuple[mlp_training.Learner, ...], teachers: mlp.Layers, inputs: str
    ) -> Iterator[mlp_training.Epoch]:
        return mlp_training.fit(
            mlp_training.Program(learners, taught, inputs, chunk[0].fields["precision"]),
            models,
            teachers,
            data,
            num_epochs=row["clone_epochs"] if phase == "clone" else row["epochs"],
            batch_size=row["batch_size"],
            num_images=row["num_images"] or len(data.images),
            seeds=[_seed(unit, phase, unit.lineage) for unit in chunk],
            mesh=mesh,
            batched_lanes=chunk[0].fields["batched_lanes"],
            label=f"{phase}: {shown}",
            starts=untrained if phase == "distil" else None,
        )

    if row["clone_epochs"]:
        for epoch in train("clone", _cloning(arms, learners), untrained, row["clone_inputs"]):
            models = epoch.models
    models = sharding.place_lanes(models, mesh)
    keep(0)
    measured = []
    for epoch in train("distil", learners, teachers, row["inputs"]):
        models = epoch.models
        keep(epoch.epoch)
        measured.append((epoch.losses, epoch.alignment))
    losses, alignment = (np.concatenate(parts, axis=2) for parts in zip(*measured, strict=True))
    return found, dict(zip(names, zip(losses, alignment, strict=True), strict=True))


def _cloning(
    arms: Sequence[Sequence[Unit]], learners: Sequence[mlp_training.Learner]
) -> tuple[mlp_training.Learner, ...]:
    """The learners of all arms while they clone the untrained teacher."""
    return tuple(
        dataclasses.replace(learner, logits=units[0].fields["row"]["clone_logits"])
        for units, learner in zip(arms, learners, strict=True)
    )


def _learner(unit: Unit, data: mlp_training.Data) -> mlp_training.Learner:
    row, teacher = unit.fields["row"], unit.fields["teacher"]
    shape = mlp.Shape(
        num_inputs=data.num_pixels,
        widths=tuple(row["widths"] or teacher["widths"]),
        num_aux=teacher["num_aux"],
        activation=row["activation"] or teacher["activation"],
        biases=row["biases"],
    )
    return mlp_training.Learner(
        shape, row["logits"], row["loss"], row["optimizer"], row["learning_rate"]
    )


def _initial(unit: Unit, shape: mlp.Shape, taught: mlp.Shape) -> mlp.Layers:
    """A student before training: an initialisation of its own or another lineage."""
    layers = mlp.init(shape, _key(unit, "init", unit.fields["init_lineage"]))
    if unit.fields["row"]["base"] == "next_lineage_same_head":
        own = mlp.init(taught, _key(unit, "init", unit.lineage))
        head = f"layer_{len(own) - 1}"
        layers[head] = own[head]
    return layers


@functools.lru_cache(maxsize=1)  # every chunk of lineages asks for it again
def _data(directory: Path, mesh: Mesh) -> mlp_training.Data:
    found = image_data.read(image_data.stored(directory))
    train, test = (found[split] for split in image_data.SPLITS)
    arrays = (
        *(train.images.reshape(len(train.images), -1), train.labels),
        *(test.images.reshape(len(test.images), -1), test.labels),
    )
    return mlp_training.Data(*sharding.replicate(arrays, mesh))


def _shape(teacher: dict[str, Any], data: mlp_training.Data) -> mlp.Shape:
    return mlp.Shape(
        num_inputs=data.num_pixels,
        widths=tuple(teacher["widths"]),
        num_aux=teacher["num_aux"],
        activation=teacher["activation"],
    )


def _seed(unit: Unit, name: str, lineage: int) -> int:
    return seeds.seed(unit.fields["seed"], "mlp", name, lineage)


def _key(unit: Unit, name: str, lineage: int) -> jax.Array:
    return jax.random.key(_seed(unit, name, lineage))


def _load(directory: Path) -> mlp.Layers:
    layers: mlp.Layers = {}
    artifacts.fetch(directory)
    for path, array in safetensors.numpy.load_file(directory / mlp.WEIGHTS).items():
        layer, _, leaf = path.partition("/")
        layers.setdefault(layer, {})[leaf] = jnp.asarray(array)
    return layers


def _stack(models: Sequence[mlp.Layers]) -> mlp.Layers:
    return jax.tree.map(lambda *parts: jnp.stack(parts), *models)


def _lane(models: mlp.Layers, lane: int) -> mlp.Layers:
    return jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[lane]), models)
