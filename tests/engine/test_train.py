"""The training loop: lanes are independent, order is a function of seed and step, NaN stops it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from subjax.engine import batching, train, train_step
from subjax.nn import lora, sharding, transformer
from subjax.nn.architecture import Architecture

ARCH = Architecture(
    vocab_size=23, num_layers=2, width=8, num_heads=2, num_kv_heads=2, head_dim=4, ffn_width=12
)
PROGRAM = train.Program(ARCH, train.Optimizer(learning_rate=1e-2, warmup_steps=2), steps=6)


def make_rows(seed, num_rows=20):
    rng = np.random.default_rng(seed)
    examples = [
        (rng.integers(0, 23, rng.integers(4, 8)).tolist(), int(rng.integers(1, 4)))
        for _ in range(num_rows)
    ]
    return batching.make_rows(examples, num_tokens=8, num_targets=7, pad_id=0)


def run(lanes, *, program=PROGRAM, mesh=None, probe_steps=(), rows=make_rows, packing=None):
    trees = [transformer.init(ARCH, jax.random.key(lane)) for lane in lanes]
    history = train.fit(
        program,
        train.stack(trees),
        {},
        [rows(lane) for lane in lanes],
        seeds=lanes,
        batch_size=4,
        probe_steps=probe_steps,
        steps_per_call=3,
        mesh=mesh or sharding.make_mesh(seed=1),
        label="test",
        packing=packing,
    )
    return [(p.step, jax.tree.map(np.asarray, p.trainable), p.metrics) for p in history]


def leaves_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def assert_same_training(one, other):
    [(_, trained, metrics)], [(_, again, measured)] = one, other
    np.testing.assert_allclose(metrics["loss"], measured["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), trained, again)


def test_a_lane_does_not_depend_on_its_place_or_its_neighbours():
    [(_, first, _)] = run([0, 1, 2])
    [(_, second, _)] = run([7, 2, 0])
    assert leaves_equal(train.lane(first, 0), train.lane(second, 2))
    assert leaves_equal(train.lane(first, 2), train.lane(second, 1))


def test_the_update_is_compiled_once():
    program = dataclasses.replace(PROGRAM, optimizer=train.Optimizer(3e-3))
    run([0, 1], program=program)  # two calls
    assert train._compile(program)[1]._cache_size() == 1


def test_the_loss_falls():
    program = dataclasses.replace(PROGRAM, steps=60)
    [(_, _, metrics)] = run([0, 1], program=program)
    assert (metrics["loss"][-1] < 0.6 * metrics["loss"][0]).all()


def test_splitting_lanes_over_devices_gives_the_same_lanes():
    [(_, one, _)] = run([0, 1, 2, 3])
    [(_, two, _)] = run([0, 1, 2, 3], mesh=sharding.make_mesh(seed=2, lanes=4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)


def test_splitting_the_batch_over_devices_gives_the_same_model():
    [(_, one, _)] = run([0])
    [(_, two, _)] = run([0], mesh=sharding.make_mesh(seed=1, data=2, fsdp=2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, two)


def test_probes_do_not_disturb_the_run():
    *_, (step, plain, _) = run([0, 1])
    probed = run([0, 1], probe_steps=(0, 3))
    assert [s for s, _, _ in probed] == [0, 3, 6]
    assert step == 6
    assert leaves_equal(plain, probed[-1][1])
    assert not leaves_equal(plain, probed[1][1])


def test_a_probe_after_the_end_is_refused():
    with pytest.raises(ValueError, match=r"must lie in 0\.\.6"):
        run([0], probe_steps=(9,))


def test_a_nan_loss_stops_and_names_the_step():
    program = dataclasses.replace(PROGRAM, optimizer=train.Optimizer(1e30, clip_norm=0.0))
    with pytest.raises(FloatingPointError, match="at step"):
        run([0], program=program)


def test_a_gradient_that_overflows_stops_where_the_loss_is_finite():
    with pytest.raises(FloatingPointError, match="grad_norm is inf at step 3 of lane 1"):
        train._check_finite(
            {"loss": np.ones((2, 2)), "grad_norm": np.array([[1, 1], [1, np.inf]])}, first=2
        )


def adapted(mesh, lanes=(0,)):
    """An adapter per lane on one base, which lies where a single model is loaded."""
    base = sharding.place(
        transformer.init(ARCH, jax.random.key(0)), sharding.lane_mesh(mesh), lanes=False
    )
    [progress] = train.fit(
        dataclasses.replace(PROGRAM, lora_scale=2.0),
        train.stack([lora.init(ARCH, jax.random.key(1 + lane), rank=2) for lane in lanes]),
        base,
        [make_rows(lane) for lane in lanes],
        seeds=lanes,
        batch_size=4,
        probe_steps=(),
        steps_per_call=3,
        mesh=mesh,
        label="test",
    )
    return progress


def test_adapters_on_one_base_split_over_devices():
    one = adapted(sharding.make_mesh(seed=1), lanes=(0, 1))
    two = adapted(sharding.make_mesh(seed=2, lanes=2), lanes=(0, 1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.trainable, two.trainable
    )


@pytest.mark.parametrize(
    "shape",
    [
        {"seed": 4},
        pytest.param({"seed": 2, "data": 2}, marks=pytest.mark.slow),
        pytest.param({"seed": 2, "fsdp": 2}, marks=pytest.mark.slow),
    ],
)
def test_each_adapter_of_a_population_equals_its_run_alone(shape):
    lanes = (3, 5, 8, 9)
    population = adapted(sharding.make_mesh(lanes=len(lanes), **shape), lanes)
    for place, lane in enumerate(lanes):
        alone = adapted(sharding.make_mesh(seed=1), (lane,))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            train.lane(population.trainable, place),
            train.lane(alone.trainable, 0),
        )
        np.testing.assert_allclose(
            population.metrics["loss"][:, place], alone.metrics["loss"][:, 0], rtol=1e-5
        )


def test_lora_trains_the_adapter_alone():
    adapter = lora.init(ARCH, jax.random.key(1), rank=2)
    progress = adapted(sharding.make_mesh(seed=1))
    trained = train.lane(progress.trainable, 0)
    assert jax.tree.structure(trained) == jax.tree.structure(adapter)
    assert not leaves_equal(trained, adapter)


def test_parts_add_up_to_the_whole_batch():
    whole, parts = run([0, 1]), run([0, 1], program=dataclasses.replace(PROGRAM, accumulate=2))
    # Rows have one to six targets, so parts of equal rows are unequal in what they count.
    assert_same_training(whole, parts)


def test_a_batch_that_does_not_divide_the_mesh_is_filled_up():
    one = run([0])  # four rows a step, on eight devices
    assert_same_training(one, run([0], mesh=sharding.make_mesh(seed=1, data=2, fsdp=4)))
    assert_same_training(one, run([0], program=dataclasses.replace(PROGRAM, accumulate=3)))


@pytest.mark.parametrize("num_segments", [0, 3])
@pytest.mark.parametrize("arch", ["everywhere", "local"])
def test_packed_rows_train_as_rows_by_themselves(arch, num_segments):
    local = {"local": (True, False), "window": 3, "local_rope_theta": 100.0}
    changed = dataclasses.replace(ARCH, **(local if arch == "local" else {}))
    program = dataclasses.replace(PROGRAM, arch=changed)
    assert_same_training(
        run([0, 1], program=program),
        run([0, 1], program=program, packing=batching.Packing(2, 18, 12, num_segments)),
    )


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 2}, {"data": 2, "tensor": 2}])
def test_segments_attend_by_themselves_on_a_mesh(shape):
    packing = batching.Packing(4, 10, 8, num_segments=2)
    mesh = sharding.make_mesh(seed=1, **shape)
    assert_same_training(run([0, 1]), run([0, 1], packing=packing, mesh=mesh))


# A pass holds one or two of the four rows of a step, or all where they are short.
NARROW = batching.Packing(num_rows=1, num_tokens=8, num_targets=7)


def make_uneven_rows(seed):
    """Those of even lanes are short, so that these need fewer passes."""
    rows = make_rows(seed)
    short = np.where(np.arange(rows.positions.shape[1]) < 1, rows.weights, 0)
    return dataclasses.replace(rows, weights=rows.weights if seed % 2 else short)


def passes(lanes, *, packing=NARROW, rows=make_uneven_rows):
    made = [rows(lane) for lane in lanes]
    return batching.Batches(made, lanes, 4, PROGRAM.steps, packing=packing).passes


def test_rows_that_do_not_fit_one_pass_are_in_further_ones():
    assert set(passes([1])) == {2, 3, 4} and set(passes([0])) == {1, 2}
    assert_same_training(
        run([0, 1], rows=make_uneven_rows), run([0, 1], rows=make_uneven_rows, packing=NARROW)
    )


def test_a_lane_does_not_depend_on_the_passes_of_others():
    [(_, alone, metrics)] = run([0, 2], rows=make_uneven_rows, packing=NARROW)
    [(_, beside, measured)] = run([0, 1], rows=make_uneven_rows, packing=NARROW)
    assert leaves_equal(train.lane(alone, 0), train.lane(beside, 0))
    for name, values in metrics.items():
        np.testing.assert_array_equal(values[:, 0], measured[name][:, 0])
    mesh = sharding.make_mesh(seed=2, lanes=2)
    assert_same_training(
        run([0, 1], rows=make_uneven_rows),
        run([0, 1], rows=make_uneven_rows, packing=NARROW, mesh=mesh),
    )


def test_a_pass_that_a_lane_does_not_need_changes_nothing():
    rows, at = make_rows(1), np.arange(4)
    soft = np.log(np.full((*rows.targets.shape, 2), 0.5, np.float32))
    batch = {**rows.take(at), "soft": soft[at]}
    own = NARROW.num_passes(rows.sizes[at])
    packed = NARROW.pack(batch, rows.sizes[at], own + 2)
    packed["soft"][:, own:] = np.nan
    program = dataclasses.replace(PROGRAM, support=(3, 4))
    params = transformer.init(ARCH, jax.random.key(0))
    found = functools.partial(train_step.value_and_grad, program, params, {}, {})
    expected = jax.jit(found)(packed)
    assert np.isfinite(expected[0])
    assert leaves_equal(expected, jax.jit(found)(packed, most_passes=own + 2))


def test_packing_is_checked_before_the_first_step():
    with pytest.raises(ValueError, match="packed_tokens is 3: raise it"):
        run([0], packing=batching.Packing(9, 3, 9))
    with pytest.raises(ValueError, match="packed_targets is 2: raise it"):
        run([0], packing=batching.Packing(9, 18, 2))
    for changed, said in (
        ({"distils": True}, "set packed_rows = 0"),
        ({"accumulate": 2}, "accumulate is 2, and packed rows have passes instead: set accumulate"),
    ):
        program = dataclasses.replace(PROGRAM, **changed)
        with pytest.raises(ValueError, match=said):
            run([0], program=program, packing=batching.Packing(1, 18, 18))


def test_the_next_rows_are_made_while_the_devices_compute(monkeypatch):
    """What is done, in its order: six updates, three in a call, and what a bad loss stops."""
    done = []
    place, check = sharding.place_batch, train._check_finite
    monkeypatch.setattr(
        sharding, "place_batch", lambda *args, **kw: done.append("rows") or place(*args, **kw)
    )
    monkeypatch.setattr(
        train, "_check_finite", lambda metrics, first: done.append(first) or check(metrics, first)
    )
    run([0])
    assert done == ["rows", "rows", 0, 3]
