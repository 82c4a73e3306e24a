"""The MNIST experiment and the theorem, as the pipeline runs and the report shows them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from subjax import schema
from subjax.experiment import Experiment, Run
from subjax.images import mlp_training, units, validation
from subjax.images.stages import images, mlp, theorem
from subjax.runtime import artifacts
from subjax.runtime.artifacts import Unit
from subjax.tasks.api import Metric
from subjax.tasks.evals import theorem as draws

# What students must share to train on the same batches, and what of the same teacher.
_SAME_BATCHES = (
    *("model", "teacher", "inputs", "num_images", "epochs", "batch_size"),
    *("clone_epochs", "clone_inputs"),
)
_THEOREM = "theorem"  # what its scores stand under in the report


class _ImageClassifiers(Experiment):
    """Classifiers that learn from the outputs of others, and draws of the theorem about them."""

    name = "image classifiers"
    stages: ClassVar[Mapping[str, Run]] = {
        "images": images.run,
        "mlp_teacher": mlp.teach,
        "mlp": mlp.score,
        "theorem": theorem.run,
    }
    student_stage = "mlp"
    step_name = "Epoch"
    has_prompts = False
    has_gates = False
    is_planned = False
    own_metrics: ClassVar[Mapping[str, Sequence[Metric]]] = {_THEOREM: draws.METRICS}

    def validate(self, config: ConfigDict) -> None:
        validation.validate(config)

    def build(self, config: ConfigDict) -> list[Unit]:
        return units.build(config)

    def preflight(
        self,
        planned: Sequence[Unit],
        todo: Sequence[Unit],
        workdir: Path,
        mesh: Mesh,
        max_unsharded: float,
    ) -> None:
        """Refuses lanes of a device that cannot be batched."""
        for lanes, batched in {
            (unit.fields["lanes"], unit.fields["batched_lanes"])
            for unit in todo
            if "batched_lanes" in unit.fields
        }:
            mlp_training.check_lanes(lanes, batched, mesh)

    def shape(self, unit: Unit) -> str:
        if "lanes" not in unit.fields:
            return ""
        row = unit.fields["row"]
        same = _SAME_BATCHES if unit.stage == "mlp" else tuple(row)
        return artifacts.dumps({name: row[name] for name in same})

    def groups(self, todo: Sequence[Unit], planned: Sequence[Unit]) -> Iterator[list[Unit]]:
        """As for others, but students always train beside all that have the same batches."""
        for members in self.alike(todo):
            if members[0].stage == "mlp":
                yield from self._chunks(members, planned)
            else:
                yield from super().groups(members, planned)

    def _chunks(self, todo: Sequence[Unit], planned: Sequence[Unit]) -> Iterator[list[Unit]]:
        """Chunks of lineages that lack an arm, each with all arms that train on the same batches.

        Args:
          todo: students of one shape.
          planned: every unit of the config.
        """
        lanes, shape = todo[0].fields["lanes"], self.shape(todo[0])
        members = {(unit.row, unit.lineage): unit for unit in planned if unit.stage == "mlp"}
        arms = list(dict.fromkeys(u.row for u in members.values() if self.shape(u) == shape))
        lineages = list(dict.fromkeys(unit.lineage for unit in todo))
        for first in range(0, len(lineages), lanes):
            chunk = lineages[first : first + lanes]
            chunk += [chunk[0]] * (lanes - len(chunk))
            yield [members[arm, lineage] for arm in arms for lineage in chunk]

    def mesh_sizes(self, config: ConfigDict) -> dict[str, Any]:
        """One process splits classifiers by lane alone."""
        sizes = super().mesh_sizes(config)
        if jax.process_count() == 1:
            sizes["data"] = sizes["data"] or 1
        return sizes

    def files(self, config: ConfigDict) -> dict[str, str]:
        return {f"images.{name}": row.data_dir for name, row in config.images.items()}

    def scored_as(self, config: ConfigDict, unit: Unit) -> tuple[str, str] | None:
        if unit.stage == "mlp":
            return next(iter(config.evals), ""), unit.row
        return (_THEOREM, unit.row) if unit.stage == "theorem" else None

    def replication(self, config: ConfigDict) -> str:
        return "own initialisation, inputs and order" if config.arms else "own draws"

    def published(self, config: ConfigDict) -> dict[str, float]:
        arms = config.arms.items()
        return {name: row.published for name, row in arms if row.published > schema.OFF}

    def sweeps(self, config: ConfigDict) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for name, row in config.arms.items():
            if row.sweep:
                found[row.sweep][name] = row.sweep_at
        return dict(found)

    def theorems(self, done: Sequence[Unit], workdir: Path) -> dict[str, Any]:
        """Of several lineages the first one is drawn."""
        found: dict[str, Any] = {}
        for unit in done:
            if unit.stage == "theorem" and unit.row not in found:
                found[unit.row] = artifacts.read_json(workdir / unit.path / "curves.json")
        return found


IMAGE_CLASSIFIERS: Experiment = _ImageClassifiers()
