"""The theorem, draw by draw: initialisation, the teacher's batch and the student's inputs anew."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import load_file
from tqdm import tqdm

from subjax import artifacts, leaves, mlp, seeds, theorem
from subjax.artifacts import Unit
from subjax.datasets import images

# Draws in one call: enough to keep a device busy, few enough for its memory.
_AT_ONCE = 50


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Measures each row of the config; yields each unit when it is done."""
    for unit in units:
        with jax.enable_x64(True):
            found = _measure(unit, workdir)
        out = workdir / unit.path
        artifacts.write_jsonl(out / "draws.jsonl", _rows(found))
        epsilons = np.array(unit.fields["row"]["epsilons"])
        real = _real_displacement(unit, workdir)
        values = summarise(found, epsilons) | {"real_displacement": real}
        row = unit.fields["row"]
        promised = (row["base"], row["step"], row["taught"]) == ("same", "gradient", "all")
        beside = {"real": real, "promised": promised, "num_draws": row["num_draws"]}
        artifacts.write_json(out / "curves.json", curves(found, epsilons) | beside)
        records = [
            {"metric": metric, "step": 0, "value": value}
            for metric, value in values.items()
            if np.isfinite(value)
        ]
        artifacts.write_json(out / "scores.json", {"records": records})
        yield unit


def summarise(found: dict[str, np.ndarray], epsilons: np.ndarray) -> dict[str, float]:
    """What the report says of a row.

    Args:
      found: inner and change [draws, E], predicted and displacement [draws].
      epsilons: [E], ascending.

    Returns:
      Metric -> value; nan where it has no meaning, such as a slope of what is zero.
    """
    inner, predicted = found["inner"], found["predicted"]
    scale = np.abs(inner).max(initial=0.0)
    values = {
        "violations": float(np.sum(inner[:, 0] < 0)),
        "share_positive": float(np.mean(inner[:, 0] > 0)),
        "largest_inner": float(scale),
        "loss_falls": float(np.mean(found["change"][:, 0] < 0)),
    }
    if not scale:
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = _slopes(np.abs(inner), epsilons)
        remainder = _slopes(np.abs(inner - epsilons * predicted[:, None]), epsilons)
        error = np.abs(inner[:, 0] / epsilons[0] / predicted - 1)
    # Of the remainder the middle of the grid: below it rounding, above it higher orders.
    middle = slice(len(epsilons) // 3, len(epsilons) // 3 + 2)
    broken = np.where(inner < 0, epsilons, np.inf).min(axis=1) * found["displacement"]
    return values | {
        "slope_smallest": float(slopes[:, 0].min()),
        "slope_largest": float(slopes[:, 0].max()),
        "coefficient_error": float(np.median(error)),
        "remainder_slope": float(np.median(remainder[:, middle])),
        "share_never_broken": float(np.mean(np.isinf(broken))),
        "first_break": float(broken.min()) if np.isfinite(broken.min()) else np.nan,
    }


def curves(found: dict[str, np.ndarray], epsilons: np.ndarray) -> dict[str, list[float]]:
    """Over the grid, for the figures: the inner product by its prediction, and shares of draws.

    Returns:
      epsilon; size, the median length of the teacher's step; ratio_low, ratio and ratio_high, the
      5 %, 50 % and 95 % quantiles of inner / (eps * predicted), empty where nothing is predicted;
      share_positive and loss_falls.
    """
    inner, predicted = found["inner"], found["predicted"]
    result = {
        "epsilon": epsilons.tolist(),
        "size": (epsilons * np.median(found["displacement"])).tolist(),
        "share_positive": np.mean(inner > 0, axis=0).tolist(),
        "loss_falls": np.mean(found["change"] < 0, axis=0).tolist(),
    }
    if predicted.any():
        ratio = inner / (epsilons * predicted[:, None])
        quantiles = np.quantile(ratio, (0.05, 0.5, 0.95), axis=0).tolist()
        names = ("ratio_low", "ratio", "ratio_high")
        return result | dict(zip(names, quantiles, strict=True))
    return result | {"ratio_low": [], "ratio": [], "ratio_high": []}


def _real_displacement(unit: Unit, workdir: Path) -> float:
    """How far a whole training took a teacher of this shape from its initialisation."""
    trained = load_file(workdir / unit.inputs["teacher"] / mlp.WEIGHTS)
    num_inputs = len(trained["layer_0/kernel"])
    seed = seeds.seed(unit.fields["seed"], "mlp", "init", unit.lineage)
    start = leaves.flat(mlp.init(_shape(unit, num_inputs), jax.random.key(seed)))
    squares = [np.square(trained[path] - np.asarray(leaf)).sum() for path, leaf in start.items()]
    return float(np.sqrt(sum(squares)))


def _slopes(values: np.ndarray, epsilons: np.ndarray) -> np.ndarray:
    return np.diff(np.log(values), axis=1) / np.diff(np.log(epsilons))


def _measure(unit: Unit, workdir: Path) -> dict[str, np.ndarray]:
    row = unit.fields["row"]
    data = images.read(images.stored(workdir / unit.inputs["images"]))["train"]
    pixels = jnp.asarray(data.images.reshape(len(data.images), -1))
    one = functools.partial(
        _one, _frozen(row), _shape(unit, pixels.shape[1]), tuple(row["epsilons"])
    )
    many = jax.jit(jax.vmap(one, in_axes=(0, None, None)))
    seed = seeds.seed(unit.fields["seed"], "theorem", unit.lineage)
    parts = []
    for first in tqdm(range(0, row["num_draws"], _AT_ONCE), desc=unit.row, leave=False):
        draws = jnp.arange(first, first + _AT_ONCE)
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(draws)
        parts.append(jax.device_get(many(keys, pixels, jnp.asarray(data.labels))))
    return {
        name: np.concatenate([part[name] for part in parts])[: row["num_draws"]]
        for name in parts[0]
    }


def _one(
    options: Any,
    shape: mlp.Shape,
    epsilons: tuple[float, ...],
    key: jax.Array,
    pixels: jax.Array,
    labels: jax.Array,
) -> dict[str, jax.Array]:
    row = dict(options)
    teacher_key, student_key, batch_key, input_key, step_key = jax.random.split(key, 5)
    teacher = mlp.init(shape, teacher_key)
    student = teacher if row["base"] == "same" else mlp.init(shape, student_key)
    ids = jax.random.choice(batch_key, len(labels), (row["teacher_batch"],), replace=False)
    batch, wanted = mlp.normalised(pixels[ids]), labels[ids]

    def teacher_loss(params: mlp.Layers) -> jax.Array:
        classes = mlp.forward(shape, params, batch)[:, shape.support("classes")]
        return jnp.mean(mlp.cross_entropy(classes, wanted))

    direction = jax.tree.map(jnp.negative, jax.grad(teacher_loss)(teacher))
    if row["taught"] == "head":
        head = f"layer_{len(teacher) - 1}"
        direction = {
            name: layer if name == head else jax.tree.map(jnp.zeros_like, layer)
            for name, layer in direction.items()
        }
    if row["inputs"] == "images":
        seen = jax.random.choice(input_key, len(labels), (row["student_batch"],), replace=False)
        inputs = mlp.normalised(pixels[seen])
    else:
        inputs = mlp.noise(input_key, jnp.arange(row["student_batch"]), shape.num_inputs)
    return theorem.measure(
        lambda params, x: mlp.forward(shape, params, x)[:, shape.support(row["logits"])],
        teacher_loss,
        theorem.Draw(teacher, student, direction, inputs, step_key),
        jnp.array(epsilons),
        loss=row["loss"],
        step=row["step"],
        rate=row["rate"],
        rank=row["lora_rank"],
    )


def _shape(unit: Unit, num_inputs: int) -> mlp.Shape:
    teacher = unit.fields["teacher"]
    return mlp.Shape(
        num_inputs=num_inputs,
        widths=tuple(teacher["widths"]),
        num_aux=teacher["num_aux"],
        activation=teacher["activation"],
    )


def _frozen(row: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in row.items() if name != "epsilons")


def _rows(found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    num_draws = len(found["predicted"])
    return [
        {"draw": i} | {name: np.asarray(values[i]).tolist() for name, values in found.items()}
        for i in range(num_draws)
    ]
