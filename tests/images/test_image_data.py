"""Images from every kind of source come out as the same arrays; damaged ones are one clear line."""

import gzip
import io
import json
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from subjax.images import image_data, image_files
from subjax.images.image_data import Split

NAMES = {
    "train-images-idx3-ubyte": ("train", "images"),
    "train-labels-idx1-ubyte": ("train", "labels"),
    "t10k-images-idx3-ubyte": ("test", "images"),
    "t10k-labels-idx1-ubyte": ("test", "labels"),
}


@pytest.fixture
def made():
    rng = np.random.default_rng(0)

    def split(count):
        pixels = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        return Split(pixels, np.arange(count) % 10)

    return {"train": split(23), "test": split(11)}


def idx(array):
    array = np.asarray(array, np.uint8)
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


@pytest.fixture
def directory(made, tmp_path):
    for name, (split, field) in NAMES.items():
        (tmp_path / name).write_bytes(idx(getattr(made[split], field)))
    return tmp_path


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for split in expected:
        np.testing.assert_array_equal(found[split].images, expected[split].images)
        np.testing.assert_array_equal(found[split].labels, expected[split].labels)


def test_idx_files_plain_and_compressed(made, directory):
    assert_equal(image_data.load("mnist", str(directory)), made)
    for name in NAMES:
        content = (directory / name).read_bytes()
        (directory / f"{name}.gz").write_bytes(gzip.compress(content))
        (directory / name).unlink()
    assert_equal(image_data.load("kmnist", str(directory)), made)


def test_what_is_stored_is_read_back_and_is_a_tfds_data_set(made, tmp_path):
    image_data.store(made, tmp_path)
    assert_equal(image_data.read(image_data.stored(tmp_path)), made)
    source = tfds.builder_from_directory(image_data.stored(tmp_path)).as_data_source(split="test")
    np.testing.assert_array_equal(source[3]["image"], made["test"].images[3])
    assert image_data.digest(image_data.read(image_data.stored(tmp_path))) == image_data.digest(
        made
    )


def test_storing_again_replaces_what_an_interrupted_run_left(made, tmp_path):
    image_data.store(made, tmp_path)
    other = {"train": made["test"], "test": made["train"]}
    image_data.store(other, tmp_path)
    assert_equal(image_data.read(image_data.stored(tmp_path)), other)
    assert image_data.digest(other) != image_data.digest(made)


def prepare_as_tfds_does(made, data_dir, file_format="array_record"):
    """A data set of encoded images with a channel, as TFDS's own mnist is."""

    def png(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="png")
        return buffer.getvalue()

    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "mnist"
        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(5, 4, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(split) for name, split in made.items()}

        def _generate_examples(self, split):
            for i, pixels in enumerate(split.images):
                yield i, {"image": png(pixels), "label": int(split.labels[i])}

    Mnist(data_dir=data_dir, file_format=file_format).download_and_prepare()


def test_array_record_of_encoded_images(made, tmp_path):
    prepare_as_tfds_does(made, tmp_path)
    assert_equal(image_data.load("mnist", str(tmp_path)), made)
    assert_equal(image_data.load("mnist", str(tmp_path / "mnist" / "3.0.1")), made)
    decide = image_files.files("mnist", str(tmp_path))
    assert decide == image_files.files("mnist", str(tmp_path / "mnist" / "3.0.1"))
    assert "dataset_info.json" in decide and sum("array_record" in name for name in decide) == 2


def test_tfrecord_is_refused_with_the_command_that_converts(made, tmp_path):
    prepare_as_tfds_does(made, tmp_path)
    info = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    content = json.loads(info.read_text()) | {"fileFormat": "tfrecord"}
    info.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"holds tfrecord files.*convert_format.*array_record"):
        image_data.load("mnist", str(tmp_path))


def test_digits_need_no_file():
    found = image_data.load("digits", "")
    assert found["train"].images.shape == (1437, 8, 8)
    assert found["test"].images.shape == (360, 8, 8)
    assert found["train"].images.min() == 0
    assert found["train"].images.max() == 255
    assert set(found["test"].labels.tolist()) == set(range(10))


def test_without_a_source_the_error_says_the_three_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(image_data.importlib.util, "find_spec", lambda name: None)
    for data_dir in ("", str(tmp_path)):
        with pytest.raises(ValueError, match=r"IDX.*array_record.*tensorflow") as raised:
            image_data.load("mnist", data_dir)
        assert "\n" not in str(raised.value)


def spoil(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:-1], "holds 459 bytes, its header says 460"),
        (lambda content: content + b"\0", "holds 461 bytes"),
        (lambda content: content[:7], "no IDX file of 3 axes"),
        (lambda content: b"", "no IDX file of 3 axes"),
        (lambda content: content[:2] + b"\x0d" + content[3:], "no IDX file of 3 axes"),
        (lambda content: content[:4] + b"\xff\xff\xff\xff" + content[8:], "truncated or damaged"),
    ],
)
def test_a_damaged_idx_file_is_named(directory, change, said):
    spoil(directory / "train-images-idx3-ubyte", change)
    with pytest.raises(ValueError, match=said) as raised:
        image_data.load("mnist", str(directory))
    assert "train-images-idx3-ubyte" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda packed: packed[:-9], "cannot be read"),
        (lambda packed: packed[:10] + b"\xff" * 9 + packed[19:], "cannot be read .*decompress"),
        (lambda packed: packed[:-8] + b"\0" * 8, "cannot be read .*CRC"),
        (lambda packed: packed + b"owl", "cannot be read"),
        (lambda packed: packed + gzip.compress(b"owl"), "holds 14 bytes, its header says 11"),
        (lambda packed: gzip.decompress(packed), "cannot be read .*gzip"),
        (lambda packed: b"", "no IDX file of 1 axes"),
    ],
)
def test_a_damaged_gz_file_is_named(directory, change, said):
    path = directory / "t10k-labels-idx1-ubyte"
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(change(gzip.compress(path.read_bytes())))
    path.unlink()
    with pytest.raises(ValueError, match=rf"{packed.name} (is )?{said}") as raised:
        image_data.load("mnist", str(directory))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_whatever_bytes_a_file_has_it_is_read_or_named(directory, ending):
    """A cheap part of a fuzz: bytes changed, cut and added, packed and not."""
    path = directory / "train-images-idx3-ubyte"
    good = path.read_bytes()
    path.unlink()
    good = gzip.compress(good) if ending else good
    path, rng = path.with_name(path.name + ending), np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(good[: rng.integers(len(good) + 1)] if rng.random() < 0.2 else good)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(bad) + 1))
            bad[at : at + int(rng.integers(2))] = rng.bytes(int(rng.integers(3)))
        path.write_bytes(bad)
        try:
            image_data.load("mnist", str(directory))
        except ValueError as error:
            assert path.name in str(error) or str(directory) in str(error)
            assert "\n" not in str(error)


def test_a_missing_idx_file_is_named(directory):
    (directory / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ValueError, match="lacks t10k-images-idx3-ubyte"):
        image_data.load("mnist", str(directory))


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("t10k-images-idx3-ubyte", np.zeros((11, 4, 4)), "images of sizes"),
        ("train-labels-idx1-ubyte", np.zeros(22), "23 train images and 22 labels"),
        ("train-labels-idx1-ubyte", np.full(23, 10), "train labels 10 to 10"),
    ],
)
def test_images_that_make_no_data_set_are_refused(directory, name, array, said):
    (directory / name).write_bytes(idx(array))
    with pytest.raises(ValueError, match=said):
        image_data.load("mnist", str(directory))


@pytest.mark.parametrize("cut", [10, 2000])
def test_a_truncated_array_record_is_one_line(made, tmp_path, cut):
    image_data.store(made, tmp_path)
    [record] = image_data.stored(tmp_path).glob("*train.array_record*")
    spoil(record, lambda content: content[:-cut])
    with pytest.raises(ValueError, match="is damaged or lacks a split") as raised:
        image_data.read(image_data.stored(tmp_path))
    assert "\n" not in str(raised.value)
