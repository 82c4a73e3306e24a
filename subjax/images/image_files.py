"""The files of a data set of images in a directory: those that are read and fingerprinted."""

from pathlib import Path

# Name -> whether images are read from a data_dir; else a package contains them.
SOURCES = {"digits": False, "mnist": True, "fashion_mnist": True, "kmnist": True}

# Known names of the four original files, with and without .gz.
_IDX_NAMES = {
    ("train", 3): ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    ("train", 1): ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    ("test", 3): ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    ("test", 1): ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}


def files(source: str, data_dir: str) -> dict[str, Path]:
    """The files that `image_data.load` reads; other files beside them are ignored.

    Args:
      source: a TFDS name, such as "mnist".
      data_dir: a directory of the original IDX files, or a TFDS data_dir.

    Returns:
      Name in the data set's own directory -> path.

    Raises:
      ValueError: there is no such data set, or an IDX file is missing.
    """
    directory = Path(data_dir).expanduser()
    found = prepared(source, directory)
    if found is None:
        return {path.name: path for path in idx(directory).values()}
    inside = {path.relative_to(found).as_posix(): path for path in sorted(found.rglob("*"))}
    return {
        name: path for name, path in inside.items() if path.is_file() and not name.startswith(".")
    }


def prepared(source: str, directory: Path) -> Path | None:
    """The data set below a TFDS data_dir; None if `directory` has original IDX files.

    Raises:
      ValueError: it has neither.
    """
    if any(_idx_path(directory, names) for names in _IDX_NAMES.values()):
        return None
    found = _newest(directory, source)
    if found is None:
        raise ValueError(
            f"data_dir {str(directory)!r} holds neither IDX files nor {source!r}: {ways(source)}"
        )
    return found


def idx(directory: Path) -> dict[tuple[str, int], Path]:
    """The four original files by split and number of axes.

    Raises:
      ValueError: one is missing.
    """
    found = {}
    for part, names in _IDX_NAMES.items():
        path = _idx_path(directory, names)
        if path is None:
            raise ValueError(f"{directory} lacks {names[0]}: all four IDX files must be there")
        found[part] = path
    return found


def ways(source: str) -> str:
    """Advice if a source is missing."""
    return (
        f"set data_dir of its row, such as config.images.{source}, to (1) a directory with the "
        f"four original IDX files, or (2) a TFDS data_dir that holds {source} as array_record, or "
        "(3) leave it empty where tensorflow is installed (pip install 'tensorflow>=2.18,<3'), and "
        "TFDS downloads it"
    )


def _idx_path(directory: Path, names: tuple[str, ...]) -> Path | None:
    paths = (directory / f"{name}{ending}" for name in names for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _newest(directory: Path, source: str) -> Path | None:
    """The newest version of `source` below a TFDS data_dir, or the directory of one version."""
    found = [
        info.parent
        for pattern in ("dataset_info.json", "*/dataset_info.json", f"{source}/*/dataset_info.json")
        for info in directory.glob(pattern)
    ]
    return max(found, key=lambda path: _version(path.name), default=None)


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in name.split("."))
