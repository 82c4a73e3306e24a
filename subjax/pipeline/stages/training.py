"""What stages that train have in common: units as lanes of one population, from start to end."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from subjax.engine import batching, checkpoints, throughput, train
from subjax.engine.model import Model
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.pipeline import model_store
from subjax.recipes.tunings import Tuning
from subjax.runtime import artifacts
from subjax.runtime.artifacts import Unit

# Takes a lane, the updates done so far, and what the lane trains.
Keep = Callable[[int, int, Params], None]


@dataclasses.dataclass(frozen=True)
class Population:
    """Units of one shape that train side by side, as the `train` of their common row says.

    Attributes:
      units: by lane.
      workdir: of the run.
      mesh: where to run.
      seed: of a unit, by what it is for.
    """

    units: Sequence[Unit]
    workdir: Path
    mesh: Mesh
    seed: Callable[[Unit, str], int]

    def initial(self, tuning: Tuning, bases: Sequence[Model]) -> tuple[Params, Params]:
        """What the lanes train and what they share, as `fit` takes both.

        Args:
          tuning: which weights are trained.
          bases: by lane.
        """
        lanes = [
            tuning.initial(base.arch, base.params, jax.random.key(self.seed(unit, "adapter")))
            for unit, base in zip(self.units, bases, strict=True)
        ]
        return train.stack(lanes), tuning.frozen([base.params for base in bases])

    def fit(
        self,
        arch: Architecture,
        trainable: Params,
        frozen: Params,
        rows: Sequence[batching.Rows],
        keep: Keep,
        *,
        probe_steps: Sequence[int] = (),
        teachers: Params | None = None,
        **program: Any,
    ) -> Iterator[Unit]:
        """Trains all lanes, has each kept, and yields the units when all are done.

        It goes on from the checkpoint of a run that was interrupted.

        Args:
          arch: of all.
          trainable: as in `train.fit`, which it is given to; the caller must not keep it.
          frozen: likewise.
          rows: by lane.
          keep: called for each lane after each probe step and at the end.
          probe_steps: updates, 0 for before training.
          teachers: by lane, for online distillation.
          program: fields of `train.Program` beside those that the row and the run decide.
        """
        fields, run = self.units[0].fields["row"]["train"], self.units[0].fields
        store = checkpoints.Checkpoints.of(self.workdir, self.units)
        updates = train.fit(
            train.Program.of(arch, fields, **program, **run["program"]),
            trainable,
            frozen,
            rows,
            seeds=[self.seed(unit, "order") for unit in self.units],
            batch_size=fields["batch_size"],
            packing=batching.Packing.of(fields),
            probe_steps=probe_steps,
            steps_per_call=run["steps_per_call"],
            mesh=self.mesh,
            label=f"training {', '.join(sorted({unit.row for unit in self.units}))}",
            teachers=teachers,
            store=store,
            log=throughput.Log.of(self.workdir, self.units),
        )
        # Not here, since a generator would hold what it was given as long as it runs.
        return self._kept(updates, keep, store)

    def _kept(
        self,
        updates: Generator[train.Progress, None, None],
        keep: Keep,
        store: checkpoints.Checkpoints,
    ) -> Iterator[Unit]:
        history = []
        # Where a model cannot be written, the progress bar is gone before the error is shown.
        with contextlib.closing(updates):
            for progress in updates:
                history.append(dataclasses.replace(progress, trainable={}))  # a model is large
                for lane in range(len(self.units)):
                    keep(lane, progress.step, train.lane(progress.trainable, lane))
        for lane, unit in enumerate(self.units):
            metrics = train.metric_rows(history, lane)
            artifacts.write_jsonl(self.workdir / unit.path / "metrics.jsonl", metrics)
        # Only now: a population of which some lanes are done could not go on from its checkpoint.
        yield from self.units
        store.remove()


def bases(units: Sequence[Unit], workdir: Path, mesh: Mesh, tuning: Tuning) -> list[Model]:
    """The base of each unit; weights that will be trained are float32."""
    precision = units[0].fields["program"]["precision"] if tuning.is_adapter else "float32"
    return [
        model_store.load(workdir / unit.inputs["base"], mesh, precision=precision) for unit in units
    ]


def save(out: Path, base: Model, tuning: Tuning, tree: Params) -> None:
    """Writes what one lane trained.

    Args:
      out: directory of its unit or of a kept step.
      base: from which it started.
      tuning: which weights were trained.
      tree: those.
    """
    if tuning.is_adapter:
        model_store.save_adapter(out, base, tree, rank=tuning.rank, alpha=tuning.alpha)
    else:
        model_store.save_weights(out, base.arch, tree, base.tokenizer)
