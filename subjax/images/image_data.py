"""Labelled images as arrays: from tensorflow-datasets, IDX files or scikit-learn.

A run stores its images, from any source, as a TFDS data set of array_record files with a Tensor
feature, which needs no tensorflow. Refuses tfrecord, whose reader needs tensorflow.
"""

import dataclasses
import gzip
import hashlib
import importlib.util
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from subjax.images import image_files
from subjax.runtime import tfds_records

SPLITS = ("train", "test")
_NAME = "arrays"
_NUM_CLASSES = 10
_NUM_DIGITS_TEST = 360
# Records to read at once: a record has a few hundred bytes, so memory stays small.
_READ_AT_ONCE = 5000


@dataclasses.dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
      images: [N, H, W], uint8, 0 to 255.
      labels: [N], 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


Images = dict[str, Split]  # the splits of SPLITS


def load(source: str, data_dir: str) -> Images:
    """Reads a data set from its source.

    Args:
      source: one of `image_files.SOURCES`.
      data_dir: a directory of the original IDX files, or a TFDS data_dir that holds `source` as
        array_record; "" downloads through TFDS, which needs tensorflow. Not used by "digits".

    Raises:
      ValueError: no data, another format, damaged files, or images of unequal sizes.
    """
    if not image_files.SOURCES[source]:
        return _digits()
    if not data_dir:
        return _download(source)
    directory = Path(data_dir).expanduser()
    prepared = image_files.prepared(source, directory)
    return _read_idx(directory) if prepared is None else read(prepared)


def store(images: Images, directory: Path) -> None:
    """Writes a data set below `directory` for `read`; other TFDS readers open it too."""
    features = {
        "image": tfds.features.Tensor(shape=images["train"].images.shape[1:], dtype=np.uint8),
        "label": tfds.features.Scalar(np.int64),
    }
    rows = {
        name: [
            {"image": image, "label": int(label)}
            for image, label in zip(split.images, split.labels, strict=True)
        ]
        for name, split in images.items()
    }
    tfds_records.write(_NAME, features, rows, directory)


def stored(directory: Path) -> Path:
    """The data set that `store` wrote below `directory`."""
    return directory / _NAME / tfds_records.VERSION


def read(directory: Path) -> Images:
    """Reads every image of a prepared TFDS data set, in the order of its records.

    Raises:
      ValueError: files are damaged or not array_record, or an image is not of the common size.
    """
    info = directory / "dataset_info.json"
    try:
        found = json.loads(info.read_text("utf-8")).get("fileFormat", "tfrecord")
    except (OSError, ValueError) as error:
        raise ValueError(f"{info} cannot be read ({error}): prepare the data set again") from None
    if found != "array_record":
        raise ValueError(
            f"{directory} holds {found} files, which only tensorflow reads; convert them where it "
            "is installed: python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={directory} --out_file_format=array_record --out_dir=DIR"
        )
    try:
        builder = tfds.builder_from_directory(directory)
        rows = {split: _rows(builder.as_data_source(split=split)) for split in SPLITS}
    except Exception as error:  # the record reader raises unrelated types
        text = str(error).partition("\n")[0]
        raise ValueError(
            f"{directory} is damaged or lacks a split ({type(error).__name__}: {text}): prepare "
            "the data set again"
        ) from None
    return check({split: _stack(directory, *columns) for split, columns in rows.items()}, directory)


def check(images: Images, where: Path | str) -> Images:
    """Returns the images, or raises ValueError if they are no data set of ten classes."""
    sizes = {split: content.images.shape[1:] for split, content in images.items()}
    if len(set(sizes.values())) != 1 or any(len(size) != 2 for size in sizes.values()):
        raise ValueError(f"{where} has images of sizes {sizes}: every image must be [H, W] alike")
    for split, (pixels, labels) in ((name, _arrays(part)) for name, part in images.items()):
        if not len(pixels) or len(pixels) != len(labels):
            raise ValueError(
                f"{where} has {len(pixels)} {split} images and {len(labels)} labels: give one "
                "label an image, and at least one image"
            )
        if labels.min() < 0 or labels.max() >= _NUM_CLASSES:
            raise ValueError(
                f"{where} has {split} labels {labels.min()} to {labels.max()}: they must be 0 to 9"
            )
    return images


def digest(images: Images) -> str:
    """Hash of every pixel and label in order."""
    content = hashlib.sha256()
    for split in SPLITS:
        for array in _arrays(images[split]):
            content.update(repr((split, array.shape)).encode())
            content.update(np.ascontiguousarray(array, np.uint8).tobytes())
    return content.hexdigest()[:16]


def _arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
    return split.images, split.labels


def _digits() -> Images:
    """scikit-learn's 1,797 images of 8 x 8 pixels, shades 0 to 16 stretched to 0 to 255."""
    from sklearn.datasets import load_digits  # takes a second; only this source needs it

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)[order]
    labels = found.target.astype(np.int64)[order]
    first = len(order) - _NUM_DIGITS_TEST
    return {
        "train": Split(pixels[:first], labels[:first]),
        "test": Split(pixels[first:], labels[first:]),
    }


def _download(source: str) -> Images:
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(f"no data_dir for {source!r}: {image_files.ways(source)}")
    builder = tfds.builder(source, file_format="array_record")
    builder.download_and_prepare()
    return read(Path(builder.data_dir))


def _read_idx(directory: Path) -> Images:
    arrays = {part: _parse_idx(path, part[1]) for part, path in image_files.idx(directory).items()}
    return check(
        {split: Split(arrays[split, 3], arrays[split, 1].astype(np.int64)) for split in SPLITS},
        directory,
    )


def _parse_idx(path: Path, num_axes: int) -> np.ndarray:
    """One IDX file of unsigned bytes: two zeros, type 8, number of axes, sizes, data."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}): get it again") from None
    header = 4 + 4 * num_axes
    if len(content) < header or content[:4] != bytes((0, 0, 8, num_axes)):
        raise ValueError(f"{path} is no IDX file of {num_axes} axes of bytes: get it again")
    shape = tuple(np.frombuffer(content, ">u4", num_axes, 4).tolist())
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(content) - header} bytes, its header says {math.prod(shape)}: it "
            "is truncated or damaged; get it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _rows(source: Any) -> tuple[list[np.ndarray], list[int]]:
    images, labels = [], []
    for first in range(0, len(source), _READ_AT_ONCE):
        for row in source.__getitems__(range(first, min(first + _READ_AT_ONCE, len(source)))):
            images.append(row["image"])
            labels.append(int(row["label"]))
    return images, labels


def _stack(directory: Path, images: list[np.ndarray], labels: list[int]) -> Split:
    sizes = sorted({image.shape for image in images})
    if len(sizes) != 1:
        raise ValueError(f"{directory} has images of sizes {sizes[:3]}: they must be alike")
    stacked = np.stack(images)
    if stacked.ndim == 4 and stacked.shape[-1] == 1:
        stacked = stacked[..., 0]  # TFDS adds a channel axis to grey images
    return Split(stacked, np.array(labels, np.int64))
