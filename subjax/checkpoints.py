"""A training run that was interrupted goes on where it was: Orbax checkpoints, each leaf proved.

Orbax reads data whose bits have flipped without a word. So the bits of every leaf are summed when
they are saved, wherever they lie on the mesh, and again when they are read. A checkpoint that
cannot be read or is not what was saved is passed over for the one before it.
"""

import functools
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subjax import hosts, sharding
from subjax.artifacts import Unit

Metrics = dict[str, np.ndarray]


class Store:
    """The checkpoints of one population's training, the newest few of them.

    Saving is asynchronous: training goes on while the last state is written.
    """

    def __init__(self, directory: Path, run: str, every_minutes: float, *, keep: int = 2):
        """Names a directory of checkpoints; it is made when there is something to save.

        Args:
          directory: of this training alone.
          run: what tells this training from any other; the checkpoints of another are refused.
          every_minutes: between checkpoints; 0 keeps none but that of an interruption.
          keep: how many to keep.
        """
        self._directory, self._run, self._keep = directory, run, keep
        self._every_s, self._saved_at = 60 * every_minutes, time.monotonic()

    @classmethod
    def of(cls, workdir: Path, units: Sequence[Unit]) -> "Store":
        """The checkpoints of units that train together, in the directory of the first."""
        run = " ".join(f"{unit.path} {unit.fingerprint}" for unit in units)
        minutes = units[0].settings["checkpoint_minutes"]
        return cls(workdir / units[0].path / "checkpoints", run, minutes)

    @functools.cached_property
    def _checkpointer(self) -> Any:
        from orbax.checkpoint import v1 as ocp  # takes seconds, and most runs need it late or never

        return ocp.training.Checkpointer(
            self._directory.resolve(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            cleanup_tmp_directories=True,
        )

    def restore(self, state: Any) -> tuple[int, Any, Metrics]:
        """The newest state that is whole.

        Args:
          state: one of the same shapes on the mesh of this run, as training begins.

        Returns:
          Updates done so far, the state, and its metrics name -> [updates, lanes]; 0, `state` and
          none where nothing is left to go on from.

        Raises:
          ValueError: the directory holds the checkpoints of another training.
        """
        if not hosts.agreed(self._directory.exists()):
            return 0, state, {}
        for step in reversed([found.step for found in self._checkpointer.checkpoints]):
            content, damage = self._load(step, state)
            if not damage:
                leaves = [content["state"][_name(i)] for i in range(len(jax.tree.leaves(state)))]
                metrics = {name: np.asarray(m) for name, m in content["metrics"].items()}
                return step, jax.tree.unflatten(jax.tree.structure(state), leaves), metrics
            self._pass_over(step, damage)
        return 0, state, {}

    def _load(self, step: int, state: Any) -> tuple[Any, str]:
        """What was saved, and what is wrong with it; "" where nothing is."""
        try:
            details = self._checkpointer.metadata(step).custom_metadata
        except Exception as error:  # Orbax and tensorstore raise many kinds
            return None, _first_words(error)
        if not isinstance(details, dict) or "digests" not in details:
            return None, "its metadata is missing"
        if details["run"] != self._run:
            raise ValueError(
                f"{self._directory} holds checkpoints of another config or other units: delete it "
                "to start over, or choose another --workdir"
            )
        abstract = _abstract(state, details["metrics"])
        try:
            content = self._checkpointer.load(step, abstract)
        except Exception as error:
            return None, _first_words(error)
        found = digests(content)
        for name, saved in details["digests"].items():
            if found.get(name) != saved:
                return None, f"{name} has other bits than were saved"
        return content, ""

    def _pass_over(self, step: int, damage: str) -> None:
        """Moves a damaged checkpoint out of the way of those to come."""
        path = self._directory / str(step)
        if hosts.is_first():
            print(f"{path} is damaged ({damage}): the one before it is used", file=sys.stderr)
            path.replace(path.with_name(f"{step}.damaged"))
        hosts.wait("passed over")
        self._checkpointer.reload()

    def due(self) -> bool:
        """Whether it is time for a checkpoint, by the first process's clock."""
        if not self._every_s:
            return False
        return bool(hosts.agreed(time.monotonic() - self._saved_at >= self._every_s))

    def save(self, step: int, state: Any, metrics: Metrics) -> None:
        """Begins to save; the state may be given away once this returns."""
        content = _content(state, metrics)
        details = {
            "run": self._run,
            "digests": digests(content),
            "metrics": {name: [list(m.shape), str(m.dtype)] for name, m in metrics.items()},
        }
        self._checkpointer.save_async(step, content, custom_metadata=details)
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Waits until everything is on disk."""
        if "_checkpointer" in self.__dict__:
            self._checkpointer.close()

    def remove(self) -> None:
        """Deletes the checkpoints of a training that is finished."""
        self.close()
        hosts.wait("trained")
        if hosts.is_first():
            shutil.rmtree(self._directory, ignore_errors=True)


def digests(tree: Any) -> dict[str, list[int]]:
    """Two sums of the bits of each leaf, by path; the same however it lies on a mesh.

    The second one weighs each number by where it stands, so that it sees what was swapped.
    """
    found = sharding.to_host(_sums(tree))
    return {
        jax.tree_util.keystr(path): [int(leaf[0]), int(leaf[1])]
        for path, leaf in jax.tree_util.tree_leaves_with_path(found, is_leaf=_is_pair)
    }


@jax.jit
def _sums(tree: Any) -> Any:
    def leaf(array: jax.Array) -> tuple[jax.Array, jax.Array]:
        array = jnp.asarray(array)
        bits = array.view(f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(array.shape, jnp.uint32)
        for axis, size in enumerate(array.shape):
            place = place * size + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        weighed = bits * (
            place * np.uint32(2654435761) | np.uint32(1)
        )  # odd: no flipped bit is multiplied away
        return jnp.sum(bits, dtype=jnp.uint32), jnp.sum(weighed, dtype=jnp.uint32)

    return jax.tree.map(leaf, tree)


def _is_pair(node: Any) -> bool:
    return isinstance(node, tuple)


def _first_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _name(index: int) -> str:
    return f"{index:05d}"


def _content(state: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """What is saved: leaves by number, since optimizer states are not made of dicts."""
    leaves = {_name(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    return {"state": leaves, "metrics": metrics}


def _abstract(state: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """Shapes of what was saved, on this run's mesh."""
    shapes = {name: np.empty(shape, dtype) for name, (shape, dtype) in metrics.items()}
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    return _content(abstract, shapes)
