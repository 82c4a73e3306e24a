"""Orbax checkpoints, from which an interrupted training resumes, with a checksum of each leaf.

Orbax does not notice flipped bits. So the bits of every leaf are summed when it is saved, whatever
its sharding, and again when it is restored. A checkpoint that cannot be read or differs from what
was saved is skipped, and the one before it is used. Checkpoints are in the work directory itself,
also if that is a URL: all processes write to them.
"""

import contextlib
import errno
import functools
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from subjax.nn import sharding
from subjax.runtime import artifacts, processes, storage
from subjax.runtime.artifacts import Unit

FOLDER = artifacts.CHECKPOINTS  # in the first of the units that train together

Metrics = dict[str, np.ndarray]


class Checkpoints:
    """The checkpoints of one population's training, the newest few of them.

    Saving is asynchronous: training continues while the last state is written.
    """

    def __init__(
        self, directory: str | os.PathLike[str], run: str, every_minutes: float, *, keep: int = 2
    ):
        """Names a directory of checkpoints; the first save makes it.

        Args:
          directory: of this training only; a path or a URL.
          run: identifies this training; checkpoints of another one are refused.
          every_minutes: between checkpoints; 0 saves only at an interruption.
          keep: how many to keep.
        """
        where = directory if storage.is_url(directory) else os.path.abspath(directory)
        self._directory, self._run, self._keep = epath.Path(where), run, keep
        self._every_s, self._saved_at = 60 * every_minutes, time.monotonic()

    @classmethod
    def of(cls, workdir: Path, units: Sequence[Unit]) -> "Checkpoints":
        """The checkpoints of units that train together, in the directory of the first."""
        run = " ".join(f"{unit.path} {unit.fingerprint}" for unit in units)
        directory, told = artifacts.location(workdir / units[0].path / FOLDER), units[0].settings
        return cls(directory, run, told["checkpoint_minutes"], keep=told["keep_checkpoints"])

    @functools.cached_property
    def _checkpointer(self) -> Any:
        from orbax.checkpoint import v1 as ocp  # takes seconds; most runs need it late or never

        return ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            cleanup_tmp_directories=True,
        )

    def restore(self, state: Any) -> tuple[int, Any, Metrics]:
        """The newest undamaged state.

        Args:
          state: the initial state on the mesh of this run, for shapes and sharding; donated if
            there are checkpoints, since devices may not hold two states.

        Returns:
          Updates done so far, the state, and its metrics name -> [updates, lanes]; without
          checkpoints 0, `state` and no metrics.

        Raises:
          ValueError: the checkpoints are of another training, or none of them can be read.
        """
        if not processes.agreed(self._directory.exists()):
            return 0, state, {}
        steps = sorted((found.step for found in self._checkpointer.checkpoints), reverse=True)
        damaged: dict[int, str] = {}
        abstract = _abstract(state)
        for leaf in jax.tree.leaves(state) if steps else ():
            leaf.delete()
        for step in steps:
            content, damaged[step] = self._load(step, abstract)
            if damaged[step]:
                continue
            del damaged[step]
            self._pass_over(damaged)
            leaves = [content["state"][_name(i)] for i in range(len(jax.tree.leaves(abstract)))]
            metrics = {name: np.asarray(m) for name, m in content["metrics"].items()}
            return step, jax.tree.unflatten(jax.tree.structure(abstract), leaves), metrics
        if damaged:
            raise ValueError(
                f"no checkpoint in {self._directory} can be read ({damaged[steps[0]]}): free what "
                "is short and run again, or delete it to start over"
            )
        return 0, state, {}

    def _load(self, step: int, abstract: Any) -> tuple[Any, str]:
        """The saved state, and its damage in any process; "" if it is undamaged."""
        details, problem = self._details(step)
        if problem := _any_problem(problem):
            return None, problem
        if details["run"] != self._run:
            raise ValueError(
                f"{self._directory} holds checkpoints of another config or of other units that "
                "trained together: delete it to start over, or choose another --workdir"
            )
        try:
            shapes = {n: np.empty(shape, dtype) for n, (shape, dtype) in details["metrics"].items()}
            content = self._checkpointer.load(step, _content(abstract, shapes))
        except Exception as error:  # Orbax and tensorstore raise many kinds
            content, problem = None, _first_words(error)
        if problem := _any_problem(problem):
            return None, problem
        found = digests(content)
        for name, saved in details["digests"].items():
            if found.get(name) != saved:
                return None, f"{name} has other bits than were saved"
        return content, ""

    def _details(self, step: int) -> tuple[dict[str, Any], str]:
        """The metadata of a checkpoint, and its damage."""
        try:
            details = self._checkpointer.metadata(step).custom_metadata
        except Exception as error:
            return {}, _first_words(error)
        if not isinstance(details, dict) or not {"run", "digests", "metrics"} <= details.keys():
            return {}, "its metadata is missing"
        if details.get("sum") != _sum_of(details):
            return {}, "its metadata has other bits than were saved"
        return details, ""

    def _pass_over(self, damaged: dict[int, str]) -> None:
        """Renames damaged checkpoints, so that new ones can take their names."""
        if not damaged:
            return
        for step, damage in damaged.items() if processes.is_first() else ():
            path = self._directory / str(step)
            print(f"{path} is damaged ({damage}): the one before it is used", file=sys.stderr)
            aside = path.with_name(f"{step}.damaged")
            if aside.exists():
                aside.rmtree()
            path.replace(aside)
        processes.wait("passed over")
        self._checkpointer.reload()

    def due(self) -> bool:
        """Whether it is time for a checkpoint, by the first process's clock."""
        if not self._every_s:
            return False
        return bool(processes.agreed(time.monotonic() - self._saved_at >= self._every_s))

    def save(self, step: int, state: Any, metrics: Metrics) -> None:
        """Starts saving; the state may be donated once this returns.

        Raises:
          OSError: this checkpoint or the one before could not be written.
        """
        artifacts.publish()  # raises if another run has taken over the work directory
        content = _content(state, metrics)
        details = {
            "run": self._run,
            "digests": digests(content),
            "metrics": {name: [list(m.shape), str(m.dtype)] for name, m in metrics.items()},
        }
        details["sum"] = _sum_of(details)
        with self._failures():
            self._checkpointer.save_async(step, content, custom_metadata=details)
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          OSError: the last checkpoint could not be written.
        """
        if "_checkpointer" in self.__dict__:
            with self._failures():
                self._checkpointer.close()

    def remove(self) -> None:
        """Deletes the checkpoints of a finished training, even if the last save failed."""
        with contextlib.suppress(OSError):
            self.close()
        processes.wait("trained")
        if processes.is_first():
            _remove(self._directory)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            # All processes save together, so this error may mean that another process has ended.
            if lost := processes.loss_behind(error):
                raise lost from None
            text = f"a checkpoint could not be written ({_first_words(error)})"
            raise OSError(errno.EIO, text, str(self._directory)) from error


def clean(workdir: Path, unit: Unit) -> None:
    """Deletes the checkpoints of a finished unit, if a run ended before it deleted them."""
    folder = workdir / unit.path / FOLDER
    if folder.exists():
        _remove(epath.Path(artifacts.location(folder)))
        shutil.rmtree(folder, ignore_errors=True)


def _remove(directory: epath.Path) -> None:
    """Deletes checkpoints as far as possible; the next run deletes the rest."""
    with contextlib.suppress(Exception):  # OSError, or any type that gcsfs raises
        directory.rmtree(missing_ok=True)


def digests(tree: Any) -> dict[str, list[int]]:
    """Two sums of the bits of each leaf, by path; they do not depend on its sharding.

    The second one weights each number by its position, so that it detects swapped numbers.
    """
    # One program per leaf: metrics change shape, which would recompile the sums of all leaves.
    return {
        jax.tree_util.keystr(path): [int(part) for part in sharding.to_host(_sums(leaf))]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@jax.jit
def _sums(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    bits = array.view(f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        place = place * size + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    # Odd weights: no flipped bit is multiplied away.
    weighed = bits * (place * np.uint32(2654435761) | np.uint32(1))
    return jnp.sum(bits, dtype=jnp.uint32), jnp.sum(weighed, dtype=jnp.uint32)


def _sum_of(details: dict[str, Any]) -> str:
    """A checksum of the metadata itself."""
    plain = {name: details[name] for name in ("run", "digests", "metrics")}
    return hashlib.sha256(artifacts.dumps(plain).encode()).hexdigest()


def _any_problem(problem: str) -> str:
    """Broadcasts a problem of any process to all, so that all continue alike."""
    if jax.process_count() == 1:
        return problem
    seen = multihost_utils.process_allgather(np.int32(bool(problem)))
    return problem or ("another process cannot read it" if seen.any() else "")


def _first_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _name(index: int) -> str:
    return f"{index:05d}"


def _content(state: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """The tree to save: leaves by number, since optimizer states are not made of dicts."""
    leaves = {_name(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    return {"state": leaves, "metrics": metrics}


def _abstract(state: Any) -> Any:
    """Shapes of a state, and its sharding on this run's mesh."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
