"""What a kind of experiment is to the pipeline and the report, whatever it trains.

There are two: language models (`pipeline.experiments`) and image classifiers
(`images.experiment`). `pipeline.experiments.of` says which one a config is; nothing else asks.
"""

import abc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jax.sharding import Mesh
from ml_collections import ConfigDict

from subjax.runtime.artifacts import Unit
from subjax.tasks.api import Metric

Run = Callable[[Sequence[Unit], Path, Mesh], Iterator[Unit]]


class Experiment(abc.ABC):
    """One kind of experiment."""

    name: ClassVar[str]
    """What it is about, in the plural."""

    stages: ClassVar[Mapping[str, Run]]
    """Stage -> what runs a group of its units, and yields each one when it is done."""

    student_stage: ClassVar[str]
    """The stage that trains what arms are, whose losses are drawn."""

    step_name: ClassVar[str]
    """What a step of an arm is, for axes."""

    has_prompts: ClassVar[bool]
    """Whether there is text for `--preview` to show."""

    has_gates: ClassVar[bool]
    """Whether gates can be about its models."""

    is_planned: ClassVar[bool]
    """Whether its programs are large enough for `subjax.plan`."""

    own_metrics: ClassVar[Mapping[str, Sequence[Metric]]] = {}
    """What is scored without a row in `evals`: name in the report -> what it measures."""

    @abc.abstractmethod
    def validate(self, config: ConfigDict) -> None:
        """Checks what no other kind has; raises a ValueError of one line."""

    @abc.abstractmethod
    def build(self, config: ConfigDict) -> list[Unit]:
        """All units of a config that is valid, every unit after its inputs."""

    @abc.abstractmethod
    def preflight(
        self,
        planned: Sequence[Unit],
        todo: Sequence[Unit],
        workdir: Path,
        mesh: Mesh,
        max_unsharded: float,
    ) -> None:
        """Raises a ValueError for what would stop a run later, before any device work.

        Args:
          planned: every unit of the config.
          todo: those that this run makes.
          workdir: of the run.
          mesh: where it runs.
          max_unsharded: share of a model that may lie whole on every device.
        """

    @abc.abstractmethod
    def shape(self, unit: Unit) -> str:
        """What units must share to be lanes of one population; "" of one that is in none."""

    @abc.abstractmethod
    def scored_as(self, config: ConfigDict, unit: Unit) -> tuple[str, str] | None:
        """The eval, and its subject as reports name it, that a unit holds scores of."""

    @abc.abstractmethod
    def replication(self, config: ConfigDict) -> str:
        """What is a lineage's own and what all share, as "own teachers, order; same base"."""

    def groups(self, todo: Sequence[Unit], planned: Sequence[Unit]) -> Iterator[list[Unit]]:
        """Units to run in one call: lanes of one population, or all that need no population.

        Args:
          todo: units of one stage.
          planned: every unit of the config.
        """
        for members in self.alike(todo):
            lanes = members[0].fields.get("lanes", len(members))
            for first in range(0, len(members), lanes):
                yield members[first : first + lanes]

    def alike(self, todo: Sequence[Unit]) -> Iterator[list[Unit]]:
        """Units by shape; within a shape, the order of the plan stays."""
        for _, members in itertools.groupby(sorted(todo, key=self.shape), key=self.shape):
            yield list(members)

    def mesh_sizes(self, config: ConfigDict) -> dict[str, Any]:
        """Axis of the mesh -> devices; 0 takes as many as there are."""
        sizes: dict[str, Any] = config.mesh.to_dict()
        return sizes

    def models(self, config: ConfigDict) -> dict[str, tuple[str, str]]:
        """Models from outside: the field that names one -> its path and revision."""
        return {}

    def files(self, config: ConfigDict) -> dict[str, str]:
        """Files and folders that rows name -> their paths."""
        return {}

    def published(self, config: ConfigDict) -> dict[str, float]:
        """Arm -> mean that was published for it."""
        return {}

    def sweeps(self, config: ConfigDict) -> dict[str, dict[str, float]]:
        """Curve -> arm -> where it lies on the curve's axis."""
        return {}

    def theorems(self, done: Sequence[Unit], workdir: Path) -> dict[str, Any]:
        """Row of `theorems` -> curves over the teacher's step, of units that are done."""
        return {}
