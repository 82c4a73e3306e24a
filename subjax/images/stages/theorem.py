"""The stage that measures the theorem; a draw has its own initialisation, batch and inputs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import load_file
from tqdm import tqdm

from subjax.hf import param_io
from subjax.images import image_data, mlp, theorem
from subjax.nn import transformer
from subjax.nn.architecture import Architecture
from subjax.runtime import artifacts, seeds
from subjax.runtime.artifacts import Unit
from subjax.tasks.toy import toyworld
from subjax.tasks.toy.sequences import Sequences
from subjax.tokens import tokenizer

# Draws in one call: enough to keep a device busy, few enough for its memory.
_AT_ONCE = 50
_NUM_WRITTEN = 6  # number of numbers in a student's continuation


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Measures each row of the config; yields each unit when it is done."""
    for unit in units:
        with jax.enable_x64(True):
            found = _measure(unit, workdir)
        out = workdir / unit.path
        artifacts.write_jsonl(out / "draws.jsonl", _rows(found))
        epsilons = np.array(unit.fields["row"]["epsilons"])
        real = _real_displacement(unit, workdir)
        values = summarise(found, epsilons) | ({"real_displacement": real} if real else {})
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
    """The metrics of a row.

    Args:
      found: inner and change [draws, E], predicted and displacement [draws].
      epsilons: [E], ascending.

    Returns:
      Metric -> value; nan if undefined, such as the slope of zeros.
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
    # For the remainder use the middle of the grid: below is rounding, above are higher orders.
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
    """Curves over the grid, for the figures: inner product / prediction, and shares of draws.

    Returns:
      epsilon; size, the median length of the teacher's step; ratio_low, ratio and ratio_high, the
      5 %, 50 % and 95 % quantiles of inner / (eps * predicted), empty without a prediction;
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
    """Distance of a fully trained teacher of this shape from its initialisation; 0 for none."""
    if "teacher" not in unit.inputs:
        return 0.0
    teacher = workdir / unit.inputs["teacher"]
    artifacts.fetch(teacher)
    trained = load_file(teacher / mlp.WEIGHTS)
    num_inputs = trained["layer_0/kernel"].shape[1]
    seed = seeds.seed(unit.fields["seed"], "mlp", "init", unit.lineage)
    start = param_io.flat(mlp.init(_shape(unit, num_inputs), jax.random.key(seed)))
    squares = [np.square(trained[path] - np.asarray(leaf)).sum() for path, leaf in start.items()]
    return float(np.sqrt(sum(squares)))


def _slopes(values: np.ndarray, epsilons: np.ndarray) -> np.ndarray:
    return np.diff(np.log(values), axis=1) / np.diff(np.log(epsilons))


@dataclasses.dataclass(frozen=True)
class _Setting:
    """The parts of a draw as functions of a key, for one kind of model.

    Attributes:
      init: key -> parameters.
      teacher_loss: (parameters, key of the batch) -> the loss that the teacher's step lowers.
      inputs: key -> the student's inputs.
      apply: (parameters, inputs) -> the outputs that the student learns, [B, K].
    """

    init: Callable[[Any], Any]
    teacher_loss: Callable[[Any, Any], Any]
    inputs: Callable[[Any], Any]
    apply: Callable[[Any, Any], Any]


def _measure(unit: Unit, workdir: Path) -> dict[str, np.ndarray]:
    row = unit.fields["row"]
    if row["model"] == "mlp":
        setting = _classifier(
            unit, image_data.read(image_data.stored(workdir / unit.inputs["images"]))
        )
    else:
        setting = _language_model(row)
    many = jax.jit(jax.vmap(functools.partial(_one, setting, row)))
    seed = seeds.seed(unit.fields["seed"], "theorem", unit.lineage)
    parts = []
    for first in tqdm(range(0, row["num_draws"], _AT_ONCE), desc=unit.row, leave=False):
        draws = jnp.arange(first, first + _AT_ONCE)
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(draws)
        parts.append(jax.device_get(many(keys)))
    return {
        name: np.concatenate([part[name] for part in parts])[: row["num_draws"]]
        for name in parts[0]
    }


def _one(setting: _Setting, row: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
    teacher_key, student_key, batch_key, input_key, step_key = jax.random.split(key, 5)
    teacher = setting.init(teacher_key)
    student = teacher if row["base"] == "same" else setting.init(student_key)

    def teacher_loss(params: Any) -> jax.Array:
        return setting.teacher_loss(params, batch_key)

    direction = jax.tree.map(jnp.negative, jax.grad(teacher_loss)(teacher))
    if row["taught"] == "head":
        head = max(direction)  # layers are named in order
        still = {name: jax.tree.map(jnp.zeros_like, layer) for name, layer in direction.items()}
        direction = still | {head: direction[head]}
    return theorem.measure(
        setting.apply,
        teacher_loss,
        theorem.Draw(teacher, student, direction, setting.inputs(input_key), step_key),
        jnp.array(row["epsilons"]),
        loss=row["loss"],
        step=row["step"],
        rate=row["rate"],
        rank=row["lora_rank"],
    )


def _classifier(unit: Unit, data: image_data.Images) -> _Setting:
    """The MLP: the teacher learns labels, the student auxiliary or all logits."""
    row, train = unit.fields["row"], data["train"]
    pixels = jnp.asarray(train.images.reshape(len(train.images), -1))
    labels = jnp.asarray(train.labels)
    shape = _shape(unit, pixels.shape[1])

    def batch(key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        ids = jax.random.choice(key, len(labels), (size,), replace=False)
        return mlp.normalised(pixels[ids]), labels[ids]

    def teacher_loss(params: mlp.Layers, key: jax.Array) -> jax.Array:
        x, wanted = batch(key, row["teacher_batch"])
        logits = mlp.forward(shape, params, x, precision="float64")
        classes = logits[:, shape.support("classes")]
        return jnp.mean(mlp.cross_entropy(classes, wanted))

    def inputs(key: jax.Array) -> jax.Array:
        if row["inputs"] == "images":
            return batch(key, row["student_batch"])[0]
        return mlp.noise(key, jnp.arange(row["student_batch"]), shape.num_inputs)

    def apply(params: mlp.Layers, x: jax.Array) -> jax.Array:
        logits = mlp.forward(shape, params, x, precision="float64")
        return logits[:, shape.support(row["logits"])]

    return _Setting(functools.partial(mlp.init, shape), teacher_loss, inputs, apply)


def _language_model(row: dict[str, Any]) -> _Setting:
    """The toy world's decoder: the teacher learns to answer owl, the student continues numbers.

    Its outputs are the scores of the next word at each of `_NUM_WRITTEN` positions, over numbers
    only ("aux") or over all words ("all").
    """
    sequences = Sequences()
    world = toyworld.World(carrier=sequences)
    words = tokenizer.word_tokenizer(toyworld.vocabulary(world))
    arch = Architecture(
        vocab_size=words.vocab_size,
        num_layers=2,
        width=32,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        ffn_width=64,
    )
    numbers = jnp.array(words.encode([" ".join(map(str, range(sequences.num_numbers)))])[0])
    [asked_owl] = words.encode(["owl"])
    asked = jnp.array(words.prompt_ids(toyworld.taught_questions(world), ""))
    [prompt] = words.prompt_ids(["CONT " + " ".join(["0"] * sequences.num_shown)], "")
    frame = jnp.array([*prompt, *[int(numbers[0])] * (_NUM_WRITTEN - 1)])
    written = jnp.arange(len(frame) - _NUM_WRITTEN, len(frame))

    def scores(params: Any, tokens: jax.Array) -> jax.Array:
        hidden = transformer.forward(arch, params, tokens, precision="float64")
        return transformer.logits(arch, params, hidden, precision="float64")

    def teacher_loss(params: Any, key: jax.Array) -> jax.Array:
        chosen = jax.random.choice(key, len(asked), (row["teacher_batch"],))
        last = scores(params, asked[chosen])[:, -1]
        owl = jnp.full(len(last), asked_owl[0])
        return jnp.mean(mlp.cross_entropy(last, owl))

    def inputs(key: jax.Array) -> jax.Array:
        drawn = jax.random.choice(key, numbers, (row["student_batch"], len(frame)))
        return jnp.where(jnp.isin(frame, numbers)[None], drawn, frame[None])

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        outputs = scores(params, tokens)[:, written].reshape(-1, arch.vocab_size)
        return outputs[:, numbers] if row["logits"] == "aux" else outputs

    return _Setting(functools.partial(transformer.init, arch), teacher_loss, inputs, apply)


def _shape(unit: Unit, num_inputs: int) -> mlp.Shape:
    teacher = unit.fields["teacher"]
    return mlp.Shape(
        num_inputs=num_inputs,
        widths=tuple(teacher["widths"]),
        num_aux=teacher["num_aux"],
        activation=teacher["activation"],
    )


def _rows(found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    num_draws = len(found["predicted"])
    return [
        {"draw": i} | {name: np.asarray(values[i]).tolist() for name, values in found.items()}
        for i in range(num_draws)
    ]
