"""Throughput of a training (tokens per second, MFU, memory), in a log and as curves.

Times differ from run to run, and the bytes of metrics.jsonl must not, so times are in a file of
their own, `timings.jsonl`, and in TensorBoard files if the config asks for them.
"""

import contextlib
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from subjax.runtime import artifacts, chips, processes
from subjax.runtime.artifacts import Unit

Metrics = Mapping[str, np.ndarray]


class Log:
    """The speed of one population's training, all lanes together.

    A line of `timings.jsonl`, which is the same for every unit of the population:

      step: updates done so far.
      updates: updates since the line before.
      seconds: duration of those updates, from rows on the host to losses on the host, without
        writing files between them (probes, checkpoints).
      first_call: whether they are the first of this process, which may have compiled.
      lanes: models that trained side by side.
      trained_tokens_per_s: target tokens with weight, in completions.
      processed_tokens_per_s: input tokens of each row up to its last prediction, no padding.
      mfu: model FLOPs utilisation: the model's FLOPs as a share of the devices' peak FLOP/s for
        dense bfloat16 products (at any precision). `model_flops.training` counts 6 FLOPs per
        matmul parameter and token, and causal attention, without embedding lookups and
        recomputation, but with padding, as a plan's bound does. Absent if the peak is unknown,
        as on CPU.
      peak_bytes: largest memory use of a device of this process so far; absent if the backend
        does not report it, as on CPU.
    """

    def __init__(
        self,
        directories: Sequence[Path] = (),
        every_s: float = 10.0,
        curves: Sequence[Path] = (),
    ):
        """Names the files; nothing is written before `begin`.

        Args:
          directories: directory of each lane's unit; empty writes nothing.
          every_s: seconds of training between lines; 0: one after every call.
          curves: directories of TensorBoard, by lane; empty draws none.
        """
        self._directories, self._every_s = list(dict.fromkeys(directories)), every_s
        # Spare lanes of a population repeat a unit.
        self._curve_of = (
            {path: curves.index(path) for path in curves} if processes.is_first() else {}
        )

    @classmethod
    def of(cls, workdir: Path, units: Sequence[Unit]) -> "Log":
        """The log of units that train together."""
        settings = units[0].settings
        curves = [
            workdir / artifacts.CURVES / unit.path for unit in units if settings["tensorboard"]
        ]
        return cls([workdir / unit.path for unit in units], settings["log_seconds"], curves)

    def begin(
        self,
        rate: optax.Schedule,
        flops: float,
        devices: Iterable[jax.Device],
        done: int,
        metrics: Metrics,
    ) -> None:
        """Starts at `done` updates; lines of an interrupted run about later updates are dropped.

        Args:
          rate: the learning rate by update.
          flops: model FLOPs of one update of all lanes.
          devices: the devices that compute them.
          done: updates done by an earlier process.
          metrics: name -> [done, lanes], of those updates.
        """
        devices = list(devices)
        peak = chips.peak_of(devices[0].device_kind)
        self._flops, self._peak = flops, peak and peak * len(devices)
        self._devices = [d for d in devices if d.process_index == jax.process_index()]
        self._rows = [row for row in self._written() if row["step"] <= done]
        self._first_call, self._since = True, done
        self._seconds, self._tokens = 0.0, np.zeros(2)
        self._rate, self._pending = rate, [metrics] if done else []
        self._curves = {lane: _Curves(path) for path, lane in self._curve_of.items()}
        self._draw(0, self._rows)

    def add(self, step: int, seconds: float, batch: Metrics, metrics: Metrics) -> str:
        """Adds one call.

        Args:
          step: updates done after the call.
          seconds: duration of the call.
          batch: name -> [lanes, updates, B, ...], of the whole mesh.
          metrics: name -> [updates, lanes].

        Returns:
          Trained tokens a second of this call, for the progress bar.
        """
        counted = np.array(tokens(batch))
        self._seconds, self._tokens = self._seconds + seconds, self._tokens + counted
        self._pending.append(metrics)
        self._step, self._lanes = step, len(batch["weights"])
        if self._first_call or self._seconds >= self._every_s:
            self._end_line()
            self._first_call = False
        return f"{counted[0] / seconds:.3g}"

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Writes the last line, unless training failed: a full disk is reported only once."""
        ended = kind is None or issubclass(kind, processes.Interrupted)
        with contextlib.nullcontext() if ended else contextlib.suppress(OSError):
            if self._seconds and ended:
                self._end_line()
            for curves in self._curves.values():
                curves.close()
        self._curves = {}

    def _written(self) -> list[dict[str, Any]]:
        """Lines that an earlier process wrote."""
        for path in (directory / artifacts.TIMINGS for directory in self._directories):
            if path.exists():
                return artifacts.read_jsonl(path, {"step": int})
        return []

    def _end_line(self) -> None:
        trained, processed = self._tokens / self._seconds
        updates = self._step - self._since
        row: dict[str, Any] = {
            "step": self._step,
            "updates": updates,
            "seconds": round(self._seconds, 6),
            "first_call": self._first_call,
            "lanes": self._lanes,
            "trained_tokens_per_s": float(f"{trained:.6g}"),
            "processed_tokens_per_s": float(f"{processed:.6g}"),
        }
        if self._peak:
            row["mfu"] = float(f"{self._flops * updates / self._seconds / self._peak:.6g}")
        stats = [device.memory_stats() or {} for device in self._devices]
        if all("peak_bytes_in_use" in held for held in stats):
            row["peak_bytes"] = max(held["peak_bytes_in_use"] for held in stats)
        self._rows.append(row)
        for directory in self._directories:
            artifacts.write_jsonl(directory / artifacts.TIMINGS, self._rows)
        self._draw(self._since, [row])
        self._since, self._seconds, self._tokens = self._step, 0.0, np.zeros(2)

    def _draw(self, since: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds the metrics since an update to the curves."""
        pending, self._pending = self._pending, []
        if not self._curves or not pending:
            return
        joined = {name: np.concatenate([part[name] for part in pending]) for name in pending[0]}
        updates = np.arange(since, since + len(joined["loss"]))
        rates = np.asarray(self._rate(updates), float)
        for lane, curves in self._curves.items():
            for at, update in enumerate(updates):
                values = {name: float(found[at, lane]) for name, found in joined.items()}
                curves.add(int(update) + 1, {**values, "learning_rate": float(rates[at])})
            for row in rows:
                names = ("trained_tokens_per_s", "processed_tokens_per_s", "mfu", "peak_bytes")
                curves.add(row["step"], {name: row[name] for name in names if name in row})
            curves.flush()


def tokens(batch: Metrics) -> tuple[int, int]:
    """Trained and processed tokens of a batch, as in `Log`; rows of weight zero have none."""
    counted = batch["weights"] > 0
    if "segments" in batch:
        return int(counted.sum()), int((batch["segments"] > 0).sum())
    return int(counted.sum()), int(((batch["positions"] + 1) * counted).max(axis=-1).sum())


class _Curves:
    """A TensorBoard event file with scalars; an existing one is replaced.

    A resumed run writes the steps of its checkpoint again, so that no step is there twice. Events
    are written in the calling thread: the package's own writer uses a background thread, and if
    that meets a full disk the training waits forever.
    """

    def __init__(self, directory: Path):
        from tensorboardX.event_file_writer import EventsWriter  # few runs need it

        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self._writer = EventsWriter(str(directory / "events"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each named curve."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in values.items():
            summary = scalar(name, value)
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
