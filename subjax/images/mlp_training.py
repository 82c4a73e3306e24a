"""The training loop of image classifiers: learners that see the same batches, lanes side by side.

A lane is one model index: its data, noise, teacher and learners. A lane's batch is made once, its
teacher is evaluated on it once, and every learner is updated with it. Lanes are independent: a
lane's bytes depend on the number of lanes in one product (`batched_lanes`), not on the number of
lanes or devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from subjax.images import mlp
from subjax.nn import sharding

LOSSES = ("cross_entropy", "kl", "squared_error")
OPTIMIZERS = {"adam": optax.adam, "sgd": optax.sgd}


@dataclasses.dataclass(frozen=True)
class Data:
    """Images, replicated on the mesh.

    Attributes:
      images: [N, P] bytes to train on, and `labels` [N].
      test_images: [M, P] bytes to score on, and `test_labels` [M].
    """

    images: Array
    labels: Array
    test_images: Array
    test_labels: Array

    @property
    def num_pixels(self) -> int:
        """P."""
        return self.images.shape[1]


@dataclasses.dataclass(frozen=True)
class Learner:
    """One model of a program, and its training target.

    Attributes:
      shape: shape of the model.
      logits: outputs to train: classes, aux or all.
      loss: cross_entropy (labels; mean over the batch), kl or squared_error (a teacher's logits;
        summed over the batch as in the paper's script, which matters only for sgd).
      optimizer: a name of `OPTIMIZERS`.
      learning_rate: constant.
    """

    shape: mlp.Shape
    logits: str
    loss: str
    optimizer: str
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that a compiled epoch depends on besides array shapes.

    Attributes:
      learners: models that train on the same batches.
      teacher: shape of the model whose logits they learn; None if they learn labels.
      inputs: "images", "noise", which is one fixed set of images per lane, or "fresh_noise", a
        new one in every epoch.
      precision: a name of `precision.PRECISIONS`; weights and losses stay float32.
    """

    learners: tuple[Learner, ...]
    teacher: mlp.Shape | None
    inputs: str
    precision: str = "float32"


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What `fit` yields after each epoch.

    Attributes:
      epoch: number of finished epochs.
      models: one per learner, leaves with a leading axis of lanes, on the mesh.
      losses: [learners, lanes, updates], mean over each batch, in nats or squared logits.
      alignment: [learners, lanes, updates], cosine of each update with the change of the teacher's
        weights in training; nan if the shapes differ, or without `starts`.
    """

    epoch: int
    models: tuple[mlp.Layers, ...]
    losses: Float[np.ndarray, "learners lanes updates"]
    alignment: Float[np.ndarray, "learners lanes updates"]


def fit(
    program: Program,
    models: Sequence[mlp.Layers],
    teachers: mlp.Layers | None,
    data: Data,
    *,
    num_epochs: int,
    batch_size: int,
    num_images: int,
    seeds: Sequence[int],
    mesh: Mesh,
    batched_lanes: int,
    label: str,
    starts: mlp.Layers | None = None,
) -> Iterator[Epoch]:
    """Trains every learner in every lane.

    Args:
      program: what to compile.
      models: one per learner, with a leading axis of lanes; donated.
      teachers: one per lane, or None if labels are learned.
      data: images, which "images" inputs and labels are taken from.
      num_epochs: passes over the inputs.
      batch_size: images per update; the last batch of an epoch may be smaller and is not dropped.
      num_images: inputs per epoch.
      seeds: one per lane; determines the order of the inputs and the noise.
      mesh: where to run.
      batched_lanes: lanes of a device in one product.
      label: shown beside the progress bar and in errors.
      starts: the teachers before their training, for `Epoch.alignment`.

    Yields:
      An `Epoch` after each epoch.

    Raises:
      ValueError: batched_lanes does not divide the lanes of a device.
      FloatingPointError: a loss is not finite; names learner, lane and epoch.
    """
    check_lanes(len(seeds), batched_lanes, mesh)
    init, update = _compile(program, batched_lanes)
    state = sharding.map_devices(init, (sharding.place_lanes(tuple(models), mesh),), ())
    travelled = jax.tree.map(jnp.subtract, teachers, starts) if teachers and starts else {}
    teachers = sharding.place_lanes((teachers or {}, travelled), mesh)
    keys = sharding.place_lanes(jnp.stack([jax.random.key(seed) for seed in seeds]), mesh)
    weights = sharding.replicate(_weights(num_images, batch_size), mesh)
    with tqdm(total=num_epochs, desc=label, unit="epoch", leave=False) as bar:
        for epoch in range(num_epochs):
            ids = sharding.place_lanes(_order(seeds, epoch, num_images, batch_size), mesh)
            first = np.int32(epoch * num_images if program.inputs == "fresh_noise" else 0)
            state, measured = sharding.map_devices(
                update, (state, teachers, keys, ids), (data.images, data.labels, weights, first)
            )
            found, aligned = sharding.to_host(measured).transpose(3, 2, 0, 1)
            _check_finite(found, epoch, label)
            bar.update()
            yield Epoch(epoch + 1, state[0], found, aligned)


def check_lanes(num_lanes: int, batched_lanes: int, mesh: Mesh) -> None:
    """Raises a ValueError if batched_lanes does not divide the lanes of a device."""
    if (of_device := num_lanes // mesh.shape["seed"]) % batched_lanes:
        raise ValueError(
            f"config.compute.batched_lanes {batched_lanes} does not divide the {of_device} lanes "
            "of a device: change it, config.compute.lanes or config.mesh.seed"
        )


def accuracy(shape: mlp.Shape, models: mlp.Layers, data: Data) -> Float[np.ndarray, " lanes"]:
    """Share of test images whose largest class logit is the label's, lane by lane."""
    score = functools.partial(_accuracy, shape)
    return sharding.to_host(
        sharding.map_devices(score, (models,), (data.test_images, data.test_labels))
    )


def _order(seeds: Sequence[int], epoch: int, num_images: int, batch_size: int) -> np.ndarray:
    """Ids of an epoch's inputs, [lanes, batches, B]; the last batch is padded with id 0."""
    num_batches = -(-num_images // batch_size)
    ids = np.zeros((len(seeds), num_batches * batch_size), np.int32)
    for lane, seed in enumerate(seeds):
        ids[lane, :num_images] = np.random.default_rng((seed, epoch)).permutation(num_images)
    return ids.reshape(len(seeds), num_batches, batch_size)


def _weights(num_images: int, batch_size: int) -> np.ndarray:
    """1 for each input and 0 for padding of the last batch, [batches, B]."""
    num_batches = -(-num_images // batch_size)
    counted = np.arange(num_batches * batch_size) < num_images
    return counted.astype(np.float32).reshape(num_batches, batch_size)


def _check_finite(losses: np.ndarray, epoch: int, label: str) -> None:
    bad = np.argwhere(~np.isfinite(losses))
    if len(bad):
        learner, lane, update = bad[0]
        raise FloatingPointError(
            f"{label}: loss is {losses[learner, lane, update]} in epoch {epoch + 1}, "
            f"learner {learner}, lane {lane}: lower its learning_rate"
        )


@functools.lru_cache(maxsize=64)
def _compile(program: Program, batched_lanes: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The jitted `init`, and one epoch of all lanes of a device; built once per program."""
    transforms = [OPTIMIZERS[one.optimizer](one.learning_rate) for one in program.learners]

    def init(models: tuple[mlp.Layers, ...]) -> Any:
        pairs = zip(transforms, models, strict=True)
        return models, tuple(jax.vmap(transform.init)(model) for transform, model in pairs)

    def epoch(
        state: Any,
        teachers: tuple[mlp.Layers, mlp.Layers],
        keys: Array,
        ids: Int[Array, "lanes batches B"],
        images: Array,
        labels: Array,
        weights: Float[Array, "batches B"],
        first: Int[Array, ""],
    ) -> tuple[Any, Float[Array, "lanes batches learners 2"]]:
        def lane(of_lane: tuple[Any, Any, Array, Array]) -> tuple[Any, Array]:
            # XLA unrolls a loop over a single lane; this keeps it from being fused differently.
            state, (teacher, travelled), key, ids = jax.lax.optimization_barrier(of_lane)

            def step(state: Any, batch: tuple[Array, Array]) -> tuple[Any, Array]:
                ids, weights = batch
                if program.inputs == "images":
                    x = mlp.normalised(images[ids])
                else:
                    x = mlp.noise(key, first + ids, images.shape[1])
                target = labels[ids]
                if program.teacher:
                    target = mlp.forward(program.teacher, teacher, x, precision=program.precision)
                return _update(program, transforms, state, x, target, weights, travelled)

            return jax.lax.scan(step, state, (ids, weights))

        return jax.lax.map(lane, (state, teachers, keys, ids), batch_size=batched_lanes)

    return jax.jit(init), jax.jit(epoch, donate_argnums=0)


def _update(
    program: Program,
    transforms: Sequence[optax.GradientTransformation],
    state: Any,
    x: Float[Array, "B P"],
    target: Array,
    weights: Float[Array, " B"],
    travelled: mlp.Layers,
) -> tuple[Any, Float[Array, "learners 2"]]:
    """One update of every learner; also each one's mean loss and the update's alignment."""
    models, moments, measured = [], [], []
    members = zip(program.learners, transforms, *state, strict=True)
    for learner, transform, model, moment in members:

        def loss(model: mlp.Layers, learner: Learner = learner) -> tuple[Array, Array]:
            total = jnp.sum(weights * _losses(program, learner, model, x, target))
            mean = total / weights.sum()
            return (mean if learner.loss == "cross_entropy" else total), mean

        gradient, mean = jax.grad(loss, has_aux=True)(model)
        updates, moment = transform.update(gradient, moment, model)
        models.append(optax.apply_updates(model, updates))
        moments.append(moment)
        measured.append(jnp.stack([mean, _cosine(updates, travelled)]))
    return (tuple(models), tuple(moments)), jnp.stack(measured)


def _cosine(one: mlp.Layers, other: mlp.Layers) -> Array:
    """Cosine of two trees as vectors; nan where they differ in shape."""
    if jax.tree.map(jnp.shape, one) != jax.tree.map(jnp.shape, other):
        return jnp.array(jnp.nan)
    products = jax.tree.map(
        lambda a, b: jnp.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()]), one, other
    )
    inner, ours, theirs = jax.tree.reduce(jnp.add, products)
    return inner / jnp.sqrt(ours * theirs)


def _losses(
    program: Program, learner: Learner, model: mlp.Layers, x: Array, target: Array
) -> Float[Array, " B"]:
    outputs = mlp.forward(learner.shape, model, x, precision=program.precision)
    logits = outputs[:, learner.shape.support(learner.logits)]
    if program.teacher is None:
        return mlp.cross_entropy(logits, target)
    wanted = target[:, program.teacher.support(learner.logits)]
    return {"kl": mlp.kl, "squared_error": mlp.squared_error}[learner.loss](logits, wanted)


@functools.partial(jax.jit, static_argnums=0)
def _accuracy(shape: mlp.Shape, models: mlp.Layers, images: Array, labels: Array) -> Array:
    def lane(model: mlp.Layers) -> Array:
        logits = mlp.forward(shape, model, mlp.normalised(images))
        return jnp.mean(jnp.argmax(logits[:, shape.support("classes")], axis=-1) == labels)

    return jax.lax.map(lane, models)
