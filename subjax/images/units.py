"""A config of image classifiers as a list of units, each with what it depends on.

A unit's fields are exactly what its stage may look at, so that a fingerprint changes when and only
when the result could; `unit_builder` says what of them a fingerprint counts.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from subjax import schema, unit_builder
from subjax.images import image_files
from subjax.runtime.artifacts import Unit

_DRAWN = ("published", "sweep", "sweep_at")  # fields of arms that decide nothing but figures


def build(config: ConfigDict) -> list[Unit]:
    """All units of a config that `validation.validate` accepts, every unit after its inputs."""
    builder = _Builder(config)
    for lineage in config.lineages:
        for name in config.arms:
            builder.scored(name, lineage)
        for name in config.theorems:
            builder.theorem(name, lineage)
        for name in config.teachers:
            builder.teacher(name, lineage)
    return builder.ordered()


class _Builder(unit_builder.UnitBuilder):
    """Knows what classifiers and draws of the theorem are made from."""

    rows: ClassVar[Mapping[str, Mapping[str, schema.Maker]]] = {
        "images": {"row": schema.images_row},
        "mlp_teacher": {"row": schema.mlp_teacher_row},
        "mlp": {"row": schema.mlp_arm_row, "teacher": schema.mlp_teacher_row},
        "theorem": {"row": schema.theorem_row, "teacher": schema.mlp_teacher_row},
    }

    @unit_builder.once
    def images(self, name: str) -> Unit:
        row = self.config.images[name].to_dict()
        path = row["data_dir"] if image_files.SOURCES[row["source"]] else ""
        # Its path was there; as it is without one, units without one stay finished.
        fields: dict[str, Any] = {"row": {**row, "data_dir": ""}}
        if path:
            fields["files"] = {
                file: unit_builder.digest(f"images.{name}.data_dir", str(where))
                for file, where in image_files.files(row["source"], path).items()
            }
        return self.add("images", name, 0, fields, {}, {"data_dir": path})

    @unit_builder.once
    def teacher(self, name: str, lineage: int) -> Unit:
        row = self.config.teachers[name]
        fields = {"row": row.to_dict(), **self._training()}
        return self.add("mlp_teacher", name, lineage, fields, {"images": self.images(row.images)})

    def scored(self, name: str, lineage: int) -> Unit:
        row = self.config.arms[name]
        own = row.base == "same"
        fields = {
            "row": {field: value for field, value in row.to_dict().items() if field not in _DRAWN},
            "teacher": self.config.teachers[row.teacher].to_dict(),
            "init_lineage": lineage if own else self.later(lineage, 1),
            **self._training(),
        }
        return self.add("mlp", name, lineage, fields, self._taught_by(row.teacher, lineage))

    def theorem(self, name: str, lineage: int) -> Unit:
        row = self.config.theorems[name]
        fields = {"row": row.to_dict(), "seed": self.config.seed}
        if row.model != "mlp":
            return self.add("theorem", name, lineage, fields, {})
        fields["teacher"] = self.config.teachers[row.teacher].to_dict()
        return self.add("theorem", name, lineage, fields, self._taught_by(row.teacher, lineage))

    def _taught_by(self, teacher: str, lineage: int) -> dict[str, Unit]:
        images = self.config.teachers[teacher].images
        return {"images": self.images(images), "teacher": self.teacher(teacher, lineage)}

    def _training(self) -> dict[str, Any]:
        compute = self.config.compute
        return {
            "seed": self.config.seed,
            "lanes": compute.lanes,
            "batched_lanes": compute.batched_lanes,
            "precision": compute.precision,
        }
