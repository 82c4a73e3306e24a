"""Rows as a TFDS data set of array_record files, for TFDS, grain and the like.

Written and read without tensorflow.
"""

import contextlib
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

Splits = Mapping[str, Sequence[Mapping[str, Any]]]

VERSION = "1.0.0"


def write(name: str, features: Mapping[str, Any], splits: Splits, directory: Path) -> Path:
    """Writes a data set.

    Args:
      name: of the data set and of its directory.
      features: field -> feature of `tensorflow_datasets.features`; other fields are left out.
      splits: name -> rows, each with all of these fields.
      directory: a TFDS data_dir; a data set of this name in it is replaced.

    Returns:
      The directory for `tensorflow_datasets.builder_from_directory`.
    """
    # TFDS keeps existing files, which after an interrupted run may hold other rows.
    shutil.rmtree(directory / name, ignore_errors=True)
    maker = type(name, (_Rows,), {"name": name}, skip_registration=True)
    builder = maker(features, splits, data_dir=directory, file_format="array_record")
    tfds.disable_progress_bar()  # four bars for five seconds
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the path of the files
        builder.download_and_prepare()
    return directory / name / VERSION


class _Rows(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Rows in memory as a TFDS builder."""

    name = "rows"
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, features: Mapping[str, Any], splits: Splits, **options: Any):
        self._features, self._splits = features, splits
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(dict(self._features))
        # Records keep the order of the rows, so that a seed selects the same rows everywhere.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {name: self._generate_examples(rows) for name, rows in self._splits.items()}

    def _generate_examples(
        self, rows: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, row in enumerate(rows):
            yield i, {field: row[field] for field in self._features}
