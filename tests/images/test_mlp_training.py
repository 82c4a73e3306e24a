"""Training of classifiers: a PyTorch loop gives the same weights, lanes never see each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from subjax.images import mlp, mlp_training
from subjax.nn import sharding

SHAPE = mlp.Shape(num_inputs=12, widths=(16,), num_aux=3)
MESH = sharding.make_mesh(seed=1)
NUM_IMAGES, BATCH = 50, 16  # the last batch of an epoch has two images


@functools.cache
def data(mesh=MESH):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (NUM_IMAGES + 30, 12), dtype=np.uint8)
    labels = rng.integers(0, 10, NUM_IMAGES + 30)
    split = (pixels[:NUM_IMAGES], labels[:NUM_IMAGES], pixels[NUM_IMAGES:], labels[NUM_IMAGES:])
    return mlp_training.Data(*sharding.replicate(split, mesh))


def stack(seeds, shape=SHAPE):
    return jax.tree.map(
        lambda *parts: jnp.stack(parts), *(mlp.init(shape, jax.random.key(s)) for s in seeds)
    )


def learner(**fields):
    defaults = {"shape": SHAPE, "logits": "aux", "loss": "kl", "optimizer": "adam"}
    return mlp_training.Learner(**({"learning_rate": 1e-3} | defaults | fields))


def train(
    learners,
    seeds=(0,),
    *,
    inputs="noise",
    teacher=True,
    mesh=MESH,
    epochs=2,
    precision="float32",
    batched_lanes=1,
):
    epochs = mlp_training.fit(
        mlp_training.Program(tuple(learners), SHAPE if teacher else None, inputs, precision),
        [stack(seeds, one.shape) for one in learners],
        stack([100 + seed for seed in seeds]) if teacher else None,
        data(mesh),
        num_epochs=epochs,
        batch_size=BATCH,
        num_images=NUM_IMAGES,
        seeds=seeds,
        mesh=mesh,
        batched_lanes=batched_lanes,
        label="test",
    )
    return [(jax.device_get(epoch.models), epoch.losses) for epoch in epochs]


def lane(models, index):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), models)


def assert_equal(one, other, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance.get("atol", 0))


class Torch(torch.nn.Module):
    """The same layers in PyTorch."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ParameterList(
            torch.nn.Parameter(torch.tensor(np.array(leaf)))
            for layer in layers.values()
            for leaf in (layer["kernel"], layer["bias"])
        )

    def forward(self, x):
        for i in range(0, len(self.layers), 2):
            x = torch.relu(x) if i else x
            x = torch.nn.functional.linear(x, self.layers[i], self.layers[i + 1])
        return x


def train_in_torch(one, seed, *, inputs, teacher, epochs=2):
    """Loss as in the paper's script: cross-entropy a mean over the batch, KL its sum."""
    model = Torch(mlp.init(SHAPE, jax.random.key(seed)))
    taught = Torch(mlp.init(SHAPE, jax.random.key(100 + seed)))
    optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[one.optimizer](
        model.parameters(), lr=one.learning_rate
    )
    support = SHAPE.support(one.logits)
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(NUM_IMAGES)
        for first in range(0, NUM_IMAGES, BATCH):
            ids = order[first : first + BATCH]
            if inputs == "images":
                x = np.asarray(data().images)[ids] / 127.5 - 1
            else:
                fresh = epoch * NUM_IMAGES if inputs == "fresh_noise" else 0
                x = mlp.noise(jax.random.key(seed), jnp.array(ids + fresh), 12)
            x = torch.tensor(np.array(x, np.float32))
            logits = model(x)[:, support]
            if teacher:
                with torch.no_grad():
                    wanted = taught(x)[:, support]
                if one.loss == "kl":
                    loss = torch.nn.functional.kl_div(
                        logits.log_softmax(-1), wanted.softmax(-1), reduction="sum"
                    )
                else:
                    loss = (logits - wanted).square().mean(-1).sum()
            else:
                labels = torch.tensor(np.asarray(data().labels)[ids]).long()
                loss = torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [leaf.detach().numpy() for leaf in model.layers]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("fields", "inputs", "teacher"),
    [
        ({"logits": "classes", "loss": "cross_entropy"}, "images", False),
        ({"logits": "aux"}, "noise", True),
        ({"logits": "all"}, "fresh_noise", True),
        ({"logits": "all", "loss": "squared_error"}, "images", True),
    ],
)
def test_training_is_that_of_pytorch(fields, inputs, teacher, optimizer):
    one = learner(**fields, optimizer=optimizer)
    (models, _) = train([one], (5,), inputs=inputs, teacher=teacher)[-1]
    found = [layer[leaf][0] for layer in models[0].values() for leaf in ("kernel", "bias")]
    for a, b in zip(found, train_in_torch(one, 5, inputs=inputs, teacher=teacher), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_lane_does_not_depend_on_its_neighbours():
    one, other = train([learner()], (1, 2))[-1], train([learner()], (1, 3))[-1]
    assert_equal(lane(one[0], 0), lane(other[0], 0))
    np.testing.assert_array_equal(one[1][0, 0], other[1][0, 0])
    assert (one[1][0, 1] != other[1][0, 1]).any()


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_lanes_are_the_same_to_the_bit_however_many(precision):
    def run(seeds):
        learners = [learner(), learner(logits="all")]
        return train(learners, seeds, precision=precision)[-1]

    (four, losses), (two, measured), (one, alone) = run((1, 2, 3, 4)), run((2, 1)), run((2,))
    assert_equal(lane(four, 1), lane(one, 0))
    assert_equal(lane(four, 0), lane(two, 1))
    np.testing.assert_array_equal(losses[:, 1], alone[:, 0])
    np.testing.assert_array_equal(losses[:, 0], measured[:, 1])


@pytest.mark.parametrize("precision", ["float32", pytest.param("mixed", marks=pytest.mark.slow)])
def test_lanes_are_the_same_to_the_bit_on_however_many_devices(precision):
    seeds = tuple(range(8))
    learners = [learner(), learner(logits="all")]
    together, losses = train(learners, seeds, precision=precision)[-1]
    for devices in (2, 8):
        mesh = sharding.make_mesh(seed=devices, lanes=8)
        spread, measured = train(learners, seeds, mesh=mesh, precision=precision)[-1]
        assert_equal(spread, together)
        np.testing.assert_array_equal(measured, losses)


def test_lanes_that_a_product_takes_together_are_the_same_up_to_rounding():
    four = train([learner()], (1, 2, 3, 4))[-1][0]
    assert_equal(train([learner()], (1, 2, 3, 4), batched_lanes=2)[-1][0], four, atol=1e-5)
    with pytest.raises(ValueError, match="batched_lanes 3 does not divide the 4 lanes"):
        train([learner()], (1, 2, 3, 4), batched_lanes=3)


def test_narrow_products_train_alike_up_to_rounding():
    exact = train([learner(optimizer="sgd")], (1, 2))[-1]
    mixed = train([learner(optimizer="sgd")], (1, 2), precision="mixed")[-1]
    assert (mixed[1] != exact[1]).any()
    np.testing.assert_allclose(mixed[1], exact[1], rtol=0.05)


def test_learners_train_as_they_would_alone():
    wide = learner(shape=mlp.Shape(num_inputs=12, widths=(20, 8), num_aux=3), logits="all")
    both = train([learner(), wide])[-1]
    assert_equal(both[0][0], train([learner()])[-1][0][0], atol=1e-6)
    assert_equal(both[0][1], train([wide])[-1][0][0], atol=1e-6)


def test_losses_are_means_over_each_batch():
    [(_, losses)] = train([learner(learning_rate=1e-9), learner(logits="all")], epochs=1)
    x = mlp.noise(jax.random.key(0), jnp.arange(NUM_IMAGES), 12)
    found, wanted = (
        mlp.forward(SHAPE, mlp.init(SHAPE, jax.random.key(seed)), x)[:, SHAPE.support("aux")]
        for seed in (0, 100)
    )
    assert losses.shape == (2, 1, 4)
    counts = [BATCH, BATCH, BATCH, NUM_IMAGES - 3 * BATCH]
    mean = np.average(losses[0, 0], weights=counts)
    assert mean == pytest.approx(float(mlp.kl(found, wanted).mean()), rel=1e-4)


def test_fresh_noise_differs_from_epoch_to_epoch_and_the_fixed_set_does_not():
    # Without learning, the mean loss over a fixed set is the same in every epoch.
    still = learner(learning_rate=1e-12)
    counts = [BATCH, BATCH, BATCH, NUM_IMAGES - 3 * BATCH]

    def means(inputs):
        found = train([still], inputs=inputs, epochs=3)
        return [np.average(losses[0, 0], weights=counts) for _, losses in found]

    assert np.ptp(means("noise")) < 1e-6 < np.ptp(means("fresh_noise"))


def test_accuracy_counts_the_largest_class_logit():
    models = stack((1, 2))
    x = np.asarray(data().test_images) / 127.5 - 1
    placed = sharding.place_lanes(models, MESH)
    for index, value in enumerate(mlp_training.accuracy(SHAPE, placed, data())):
        logits = mlp.forward(SHAPE, lane(models, index), jnp.array(x, jnp.float32))
        hits = np.argmax(logits[:, :10], axis=1) == np.asarray(data().test_labels)
        assert value == pytest.approx(hits.mean())


def test_a_loss_that_is_not_finite_stops_and_is_named():
    bad = learner(optimizer="sgd", learning_rate=1e30, logits="all", loss="squared_error")
    with pytest.raises(FloatingPointError, match=r"test: loss is .* in epoch \d, learner 1, lane"):
        train([learner(), bad], (0, 1))


def test_alignment_is_the_cosine_with_what_training_did_to_the_teacher():
    shape = mlp.Shape(num_inputs=12, widths=(20,), num_aux=3)
    sgd = {"optimizer": "sgd", "learning_rate": 1e-2}
    starts, teachers = stack([1]), stack([101])

    def run(learners, **options):
        program = mlp_training.Program(tuple(learners), SHAPE, "noise")
        models = [stack([1], one.shape) for one in learners]
        arguments = {"num_epochs": 1, "batch_size": BATCH, "num_images": BATCH, "seeds": [1]}
        [epoch] = mlp_training.fit(
            program,
            models,
            teachers,
            data(),
            **arguments,
            **{"mesh": MESH, "batched_lanes": 1, "label": "test"},
            **options,
        )
        return epoch

    epoch = run([learner(**sgd), learner(**sgd, shape=shape)], starts=starts)
    moved = jax.tree.map(jnp.subtract, epoch.models[0], starts)
    travelled = jax.tree.map(jnp.subtract, teachers, starts)
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (moved, travelled)
    ]
    expected = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert epoch.alignment[0, 0] == pytest.approx([expected], rel=1e-3)
    assert epoch.losses.shape == epoch.alignment.shape == (2, 1, 1)
    assert np.isnan(epoch.alignment[1]).all()  # another shape has no such cosine
    assert np.isnan(run([learner()]).alignment).all()
