"""What a training gets done in a second: tokens, model FLOPs, memory; in a log and as curves.

Times differ from run to run, so they lie apart from metrics.jsonl, whose bytes do not: in
`timings.jsonl` beside it, and for TensorBoard where that is asked for.
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

from subjax.engine import chips
from subjax.runtime import artifacts, processes
from subjax.runtime.artifacts import Unit

Metrics = Mapping[str, np.ndarray]


class Log:
    """The speed of one population's training, all lanes together.

    A line of `timings.jsonl`, the same in the directory of each unit that trains along:

      step: updates done at its end.
      updates: done since the line before.
      seconds: that those took, from rows on the host to losses on the host. What is written
        between updates (probes, checkpoints) does not count.
      first_call: whether they are the first of this process, which may have compiled.
      lanes: models that trained side by side.
      trained_tokens_per_s: predicted tokens, those of completions that carry weight.
      processed_tokens_per_s: tokens read, of each row up to its last prediction; no padding.
      mfu: model FLOPs utilisation, the share of the devices' peak FLOP/s of dense bfloat16
        products (whatever the precision) that the model's FLOPs are. Those are 6 a matmul
        parameter and token, and causal attention, by `model_flops.training`: embeddings that are
        looked up do not count, nor does recomputation; padding does, as it does in a plan's bound.
        Left out where the peak is not known, as on CPU.
      peak_bytes: most that a device of this process has held so far; left out where the backend
        does not say, as on CPU.
    """

    def __init__(
        self,
        directories: Sequence[Path] = (),
        every_s: float = 10.0,
        curves: Sequence[Path] = (),
    ):
        """Names the files; nothing is written before `begin`.

        Args:
          directories: of the units that train together, by lane; empty writes nothing.
          every_s: seconds of training between lines; 0: one after every call.
          curves: directories of TensorBoard, by lane; empty draws none.
        """
        self._directories, self._every_s = list(dict.fromkeys(directories)), every_s
        # Lanes that fill a population up repeat a unit.
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
        """Starts at `done` updates; what an interrupted run wrote of later ones is dropped.

        Args:
          rate: the learning rate by update.
          flops: of the model in one update, all lanes.
          devices: that share them.
          done: updates done by an earlier process.
          metrics: name -> [done, lanes], theirs.
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
        """Counts a call.

        Args:
          step: updates done at its end.
          seconds: that it took.
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
        """Writes what is left, unless training failed: a disk that is full is reported once."""
        ended = kind is None or issubclass(kind, processes.Interrupted)
        with contextlib.nullcontext() if ended else contextlib.suppress(OSError):
            if self._seconds and ended:
                self._end_line()
            for curves in self._curves.values():
                curves.close()
        self._curves = {}

    def _written(self) -> list[dict[str, Any]]:
        """Lines of an earlier process."""
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
        """Adds to the curves what happened since an update."""
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
    """Trained and processed tokens of a batch, as `Log` has them; rows of no weight have none."""
    counted = batch["weights"] > 0
    if "segments" in batch:
        return int(counted.sum()), int((batch["segments"] > 0).sum())
    return int(counted.sum()), int(((batch["positions"] + 1) * counted).max(axis=-1).sum())


class _Curves:
    """An event file of TensorBoard with scalars; one that is there is replaced.

    A resumed run draws anew what its checkpoint holds, so that no step is there twice. Events are
    written where they arise: the package's own writer does it in a thread, and where that meets a
    full disk the training waits for ever.
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
