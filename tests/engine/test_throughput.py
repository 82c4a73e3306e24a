"""Times of a training: what is counted, what a resume keeps, and curves that TensorBoard reads."""

import struct
from unittest import mock

import jax
import numpy as np
import pytest

from subjax.engine import batching, checkpoints, throughput, train
from subjax.nn import model_flops, sharding
from subjax.pipeline import units as units_of
from subjax.runtime import artifacts, chips, processes
from tests import tiny
from tests.engine.test_train import ARCH, PROGRAM, make_rows
from tests.engine.test_train import transformer as models

SEEDS = (3, 4)
ROWS = [make_rows(seed) for seed in SEEDS]


WORK = throughput.Work(trained=3, processed=4, computed=16, flops=459e12, real_flops=229.5e12)


def fit(log, *, program=PROGRAM, store=None, packing=None):
    """Six updates of two lanes of four rows, a call each; the metrics of all six."""
    trees = [models.init(ARCH, jax.random.key(seed)) for seed in SEEDS]
    *_, last = train.fit(
        program,
        train.stack(trees),
        {},
        ROWS,
        seeds=SEEDS,
        batch_size=4,
        probe_steps=(),
        steps_per_call=1,
        mesh=sharding.make_mesh(seed=1),
        label="test",
        store=store,
        log=log,
        packing=packing,
    )
    return last.metrics


def lines(directory):
    return artifacts.read_jsonl(directory / artifacts.TIMINGS)


def counted():
    """Targets, and tokens up to the last one, of all rows that the six updates see."""
    trained = processed = 0
    for rows, seed in zip(ROWS, SEEDS, strict=True):
        for step in range(PROGRAM.steps):
            for row in batching.rows(seed, step, num_rows=len(rows), batch_size=4):
                real = rows.weights[row] > 0
                trained += int(real.sum())
                processed += int(rows.positions[row][real].max()) + 1
    return trained, processed


PACKINGS = {None: 4 * 8, batching.Packing(3, 14, 12): 3 * 14, batching.Packing(1, 14, 12): 14}


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_update_and_token_is_counted_once(tmp_path, packing):
    fit(throughput.Log([tmp_path / "a", tmp_path / "b"], every_s=0.0), packing=packing)
    found = lines(tmp_path / "a")
    assert found == lines(tmp_path / "b")
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert [line["first_call"] for line in found] == [True, *[False] * 5]
    names = ("trained_tokens_per_s", "processed_tokens_per_s")
    for name, expected in zip(names, counted(), strict=True):
        total = sum(line[name] * line["seconds"] for line in found)
        assert total == pytest.approx(expected, rel=1e-3), name
    passes = batching.Batches(ROWS, SEEDS, 4, PROGRAM.steps, packing=packing).passes
    assert max(passes) == (1 if packing is None or packing.num_rows > 1 else 2)
    for line, number in zip(found, passes, strict=True):
        read = line["processed_tokens_per_s"] * line["seconds"]
        computed = len(SEEDS) * number * PACKINGS[packing]
        assert line["padding"] == pytest.approx(1 - read / computed, abs=1e-3)
    # No peak of a CPU is known, and it does not say what memory it holds.
    assert not {"mfu", "real_mfu", "peak_bytes"} & found[0].keys()


def test_rows_that_fill_a_batch_are_padding():
    one, filled = (
        throughput.Work.of(batching.Batches(ROWS[:1], SEEDS[:1], 3, 2, parts), ARCH, range(2))
        for parts in (1, 8)
    )
    assert filled == one._replace(computed=2 * 8 * 8)
    assert filled.padding == 1 - one.processed / 128


def test_flops_of_rows_are_counted_row_by_row():
    """Whatever the packing, which costs the FLOPs of each pass."""
    packing = batching.Packing(1, 14, 12)
    for made in (None, packing):
        batches = batching.Batches(ROWS, SEEDS, 4, PROGRAM.steps, packing=made)
        found = throughput.Work.of(batches, ARCH, range(2))
        alone = [
            model_flops.training(ARCH, rows=1, num_tokens=int(tokens), num_targets=int(targets))
            for step in range(2)
            for sizes in batches.sizes(step)
            for tokens, targets in sizes
        ]
        assert found.real_flops == pytest.approx(sum(alone))
    shape = {"num_tokens": 14, "num_targets": 12}
    rows = len(SEEDS) * sum(batches.passes[:2])
    assert rows > len(SEEDS) * 2
    assert found.flops == model_flops.training(ARCH, rows=rows, **shape)


def test_calls_share_a_line_until_its_seconds_are_over(tmp_path):
    log = throughput.Log([tmp_path], every_s=10.0)
    log.begin(lambda update: 0.0 * update, jax.devices()[:1], 0, {})
    with log:
        for step, seconds in enumerate((9.0, 4.0, 5.0, 2.0, 1.0), 1):
            log.add(step, seconds, WORK, {"loss": np.zeros((1, 1))})
    assert [(x["step"], x["updates"], x["seconds"]) for x in lines(tmp_path)] == [
        (1, 1, 9.0),  # of its own, since it may have compiled
        (4, 3, 11.0),
        (5, 1, 1.0),
    ]


def test_utilisation_is_model_flops_over_those_of_all_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "peak_of", lambda kind: 1e9)
    fit(throughput.Log([tmp_path], every_s=0.0))
    sizes = {"rows": 2 * 4, "num_tokens": 8, "num_targets": 7}
    flops = model_flops.training(ARCH, **sizes)
    for line in lines(tmp_path):
        assert line["mfu"] == pytest.approx(flops / (line["seconds"] * 1e9), rel=1e-3)
        assert 0.3 * line["mfu"] < line["real_mfu"] < line["mfu"]


def test_memory_is_that_of_the_fullest_device(tmp_path):
    def device(held):
        stats = {"memory_stats.return_value": {"peak_bytes_in_use": held}}
        return mock.Mock(jax.Device, device_kind="TPU v5p", process_index=0, **stats)

    log = throughput.Log([tmp_path])
    log.begin(lambda update: 0.0 * update, [device(5), device(7)], 0, {})
    shown = log.add(1, 2.0, WORK, {"loss": np.zeros((1, 1))})
    assert shown == {"tokens/s": "1.5", "padding": "75%"}
    [line] = lines(tmp_path)
    assert line["peak_bytes"] == 7
    assert (line["padding"], line["mfu"], line["real_mfu"]) == (0.75, 0.25, 0.125)


def events(directory):
    """Curve -> [(step, value)] of an event file, read record by record."""
    from tensorboardX.proto.event_pb2 import Event

    [path] = directory.iterdir()
    content, at, found = path.read_bytes(), 0, {}
    while at < len(content):
        [size] = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + size])
        at += size + 16
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_curves_hold_every_step_once_after_an_interruption(tmp_path, monkeypatch):
    def log():
        curves = [tmp_path / "curves" / name for name in "ab"]
        return throughput.Log([tmp_path], 0.0, curves)

    def store():
        return checkpoints.Checkpoints(tmp_path / "store", "run", 0.0)

    asked = iter([False, False, True])
    monkeypatch.setattr(processes, "told_to_leave", lambda: next(asked))
    with pytest.raises(processes.Interrupted, match="after 3 updates"):
        fit(log(), store=store())
    monkeypatch.undo()
    # As where a process was killed after its last checkpoint.
    artifacts.append_jsonl(tmp_path / artifacts.TIMINGS, {"step": 4})
    metrics = fit(log(), store=store())
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert sum(line["updates"] for line in lines(tmp_path)) == 6
    for lane, name in enumerate("ab"):
        found = events(tmp_path / "curves" / name)
        for curve in ("loss", "grad_norm"):
            steps, values = zip(*found[curve], strict=True)
            assert steps == (1, 2, 3, 4, 5, 6)
            np.testing.assert_allclose(values, metrics[curve][:, lane], rtol=1e-6)
        rates = PROGRAM.optimizer.rate(PROGRAM.steps)
        np.testing.assert_allclose(
            [value for _, value in found["learning_rate"]], rates(np.arange(6)), rtol=1e-6
        )
        speeds = [(line["step"], line["trained_tokens_per_s"]) for line in lines(tmp_path)]
        np.testing.assert_allclose(found["trained_tokens_per_s"], speeds, rtol=1e-6)


def test_only_the_first_process_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    fit(throughput.Log([], 0.0, [tmp_path / name for name in "ab"]))
    assert not list(tmp_path.iterdir())


def test_logs_change_no_fingerprint_and_lie_beside_the_units():
    made = tiny.config()
    before = units_of.build(made)
    made.compute.update(log_seconds=0.0, tensorboard=True)
    after = units_of.build(made)
    assert [u.fingerprint for u in before] == [u.fingerprint for u in after]
    assert after[0].settings["tensorboard"] and not before[0].settings["tensorboard"]
