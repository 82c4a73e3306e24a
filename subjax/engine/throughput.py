"""Throughput of a training (tokens per second, MFU, memory), in a log and as curves.

Times differ from run to run, and the bytes of metrics.jsonl must not, so times are in a file of
their own, `timings.jsonl`, and in TensorBoard files if the config asks for them.
"""

import contextlib
import functools
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from subjax.engine import batching
from subjax.nn import model_flops
from subjax.nn.architecture import Architecture
from subjax.runtime import artifacts, chips, processes
from subjax.runtime.artifacts import Unit

Metrics = Mapping[str, np.ndarray]
# Figures of a line that are drawn.
_CURVES = (
    *("trained_tokens_per_s", "processed_tokens_per_s", "padding", "mfu", "real_mfu"),
    "peak_bytes",
)


class Work(NamedTuple):
    """What some updates computed, over all lanes.

    Attributes:
      trained: tokens with weight that were predicted.
      processed: tokens of rows, each up to its last prediction.
      computed: tokens with padding.
      flops: of the model, with padding, but without rows that fill a batch up.
      real_flops: of the model, without padding.
    """

    trained: float
    processed: float
    computed: float
    flops: float
    real_flops: float

    @classmethod
    def of(
        cls,
        batches: batching.Batches,
        arch: Architecture,
        steps: range,
        *,
        lora_params: int = 0,
        distils: bool = False,
    ) -> "Work":
        """The work of some updates; further arguments are those of `model_flops.training`."""
        flops = functools.partial(
            model_flops.training, arch, lora_params=lora_params, distils=distils
        )
        sizes = np.concatenate([lane for step in steps for lane in batches.sizes(step)])
        processed, trained = sizes.sum(axis=0).tolist()
        passes = len(batches.rows) * sum(batches.passes[step] for step in steps)
        num_rows, num_tokens, num_targets = batches.shape
        lengths = zip(*np.unique(sizes[:, 0], return_counts=True), strict=True)
        of_tokens = sum(flops(rows=int(n), num_tokens=int(t), num_targets=0) for t, n in lengths)
        return cls(
            trained,
            processed,
            passes * num_tokens * batching.rounded_up(num_rows, batches.num_parts),
            flops(rows=passes * num_rows, num_tokens=num_tokens, num_targets=num_targets),
            of_tokens + flops(rows=trained, num_tokens=0, num_targets=1),
        )

    @property
    def padding(self) -> float:
        """The share of the computed tokens that no row has."""
        return 1 - self.processed / self.computed


class Log:
    """The speed of one population's training, all lanes together.

    A line of `timings.jsonl`, which is the same for every unit of the population:

      step: updates done so far.
      updates: updates since the line before.
      seconds: duration of those updates, until their losses are on the host; the rows of the next
        call are made meanwhile. Writing files between them (probes, checkpoints) does not count.
      first_call: whether they are the first of this process, which may have compiled.
      lanes: models that trained side by side.
      trained_tokens_per_s: target tokens with weight, in completions.
      processed_tokens_per_s: input tokens of each row up to its last prediction, no padding.
      padding: share of the computed tokens that are no such input: room behind rows, rows that fill
        a batch up, passes that another lane needs.
      mfu: model FLOPs utilisation: the model's FLOPs as a share of the devices' peak FLOP/s for
        dense bfloat16 products (at any precision). `model_flops.training` counts 6 FLOPs per
        matmul parameter and token, and causal attention, without embedding lookups and
        recomputation, but with padding, as a plan's bound does; packed rows count in each pass that
        is computed. Absent if the peak is unknown, as on CPU.
      real_mfu: the same of the rows alone, each with its own tokens and targets, without padding.
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
        devices: Iterable[jax.Device],
        done: int,
        metrics: Metrics,
    ) -> None:
        """Starts at `done` updates; lines of an interrupted run about later updates are dropped.

        Args:
          rate: the learning rate by update.
          devices: the devices that compute them.
          done: updates done by an earlier process.
          metrics: name -> [done, lanes], of those updates.
        """
        devices = list(devices)
        peak = chips.peak_of(devices[0].device_kind)
        self._peak = peak and peak * len(devices)
        self._devices = [d for d in devices if d.process_index == jax.process_index()]
        self._rows = [row for row in self._written() if row["step"] <= done]
        self._first_call, self._since = True, done
        self._seconds, self._work = 0.0, np.zeros(len(Work._fields))
        self._rate, self._pending = rate, [metrics] if done else []
        self._curves = {lane: _Curves(path) for path, lane in self._curve_of.items()}
        self._draw(0, self._rows)

    def add(self, step: int, seconds: float, work: Work, metrics: Metrics) -> dict[str, str]:
        """Adds one call.

        Args:
          step: updates done after the call.
          seconds: duration of the call.
          work: what it computed.
          metrics: name -> [updates, lanes].

        Returns:
          What the progress bar says of this call.
        """
        self._seconds, self._work = self._seconds + seconds, self._work + np.array(work)
        self._pending.append(metrics)
        self._step, self._lanes = step, metrics["loss"].shape[1]
        if self._first_call or self._seconds >= self._every_s:
            self._end_line()
            self._first_call = False
        return {"tokens/s": f"{work.trained / seconds:.3g}", "padding": f"{work.padding:.0%}"}

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
        work, updates = Work(*self._work.tolist()), self._step - self._since
        row: dict[str, Any] = {
            "step": self._step,
            "updates": updates,
            "seconds": round(self._seconds, 6),
            "first_call": self._first_call,
            "lanes": self._lanes,
            "trained_tokens_per_s": float(f"{work.trained / self._seconds:.6g}"),
            "processed_tokens_per_s": float(f"{work.processed / self._seconds:.6g}"),
            "padding": float(f"{work.padding:.6g}"),
        }
        if self._peak:
            for name, flops in (("mfu", work.flops), ("real_mfu", work.real_flops)):
                row[name] = float(f"{flops / self._seconds / self._peak:.6g}")
        stats = [device.memory_stats() or {} for device in self._devices]
        if all("peak_bytes_in_use" in held for held in stats):
            row["peak_bytes"] = max(held["peak_bytes_in_use"] for held in stats)
        self._rows.append(row)
        for directory in self._directories:
            artifacts.write_jsonl(directory / artifacts.TIMINGS, self._rows)
        self._draw(self._since, [row])
        self._since, self._seconds, self._work = self._step, 0.0, np.zeros_like(self._work)

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
                curves.add(row["step"], {name: row[name] for name in _CURVES if name in row})
            curves.flush()


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
