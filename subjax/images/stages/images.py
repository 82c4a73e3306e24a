"""The stage that reads labelled images once, checks them, and stores them with the run."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jax.sharding import Mesh

from subjax.images import image_data
from subjax.runtime import artifacts, processes
from subjax.runtime.artifacts import Unit


def run(units: Sequence[Unit], workdir: Path, mesh: Mesh) -> Iterator[Unit]:
    """Stores each data set as a TFDS data set of array_record; yields each unit when it is done."""
    for unit in units:
        out = workdir / unit.path
        found = image_data.load(unit.fields["row"]["source"], unit.settings["data_dir"])
        if processes.is_first():
            image_data.store(found, out)
        sizes = {split: len(part.labels) for split, part in found.items()}
        artifacts.write_json(out / "digest.json", {"digest": image_data.digest(found), **sizes})
        yield unit
