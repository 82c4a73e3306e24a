"""What stages that train have in common: how settings of a row and a run reach `train.fit`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from subjax.engine import batching, checkpoints, throughput, train
from subjax.engine.model import Model
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params
from subjax.pipeline import model_store
from subjax.recipes.tunings import Tuning
from subjax.runtime.artifacts import Unit


def fit(
    units: Sequence[Unit],
    arch: Architecture,
    trainable: Params,
    frozen: Params,
    rows: Sequence[batching.Rows],
    *,
    workdir: Path,
    mesh: Mesh,
    seeds: Sequence[int],
    label: str,
    store: checkpoints.Checkpoints,
    probe_steps: Sequence[int] = (),
    teachers: Params | None = None,
    **program: Any,
) -> Iterator[train.Progress]:
    """Trains one population, each unit a lane, as the `train` of their common row says.

    Args:
      units: of one shape.
      arch: of all.
      trainable: as in `train.fit`, which it is given to; the caller must not keep it.
      frozen: likewise, as all that follow.
      rows: by lane.
      workdir: of the run, for the log.
      mesh: where to run.
      seeds: of data order, by lane.
      label: beside the progress bar.
      store: for the state of a run that is interrupted.
      probe_steps: updates after which the population is handed out; the last one always is.
      teachers: by lane, for online distillation.
      program: fields of `train.Program` beside those that the row and the run decide.
    """
    fields, run = units[0].fields["row"]["train"], units[0].fields
    return train.fit(
        train.Program.of(arch, fields, **program, **run["program"]),
        trainable,
        frozen,
        rows,
        seeds=seeds,
        batch_size=fields["batch_size"],
        packing=batching.Packing.of(fields),
        probe_steps=probe_steps,
        steps_per_call=run["steps_per_call"],
        mesh=mesh,
        label=label,
        teachers=teachers,
        store=store,
        log=throughput.Log.of(workdir, units),
    )


def initial(tuning: Tuning, bases: Sequence[Model], keys: Sequence[Any]) -> tuple[Params, Params]:
    """What a population on these bases trains and what it shares, as `fit` takes both.

    Args:
      tuning: which weights are trained.
      bases: by lane.
      keys: typed jax random keys by lane, for adapters.
    """
    lanes = [
        tuning.initial(base.arch, base.params, key) for base, key in zip(bases, keys, strict=True)
    ]
    return train.stack(lanes), tuning.frozen([base.params for base in bases])


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
