"""Which program this is: a digest of its files, and the releases of the packages beneath."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path

_PACKAGES = (
    *("subjax", "jax", "jaxlib", "flax", "optax", "transformers", "tokenizers"),
    *("numpy", "scipy"),
)


def code() -> str:
    """A digest of the program's files."""
    root, content = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return content.hexdigest()


def packages() -> dict[str, str]:
    """Releases of Python and of the packages that decide what is computed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "source tree"
    return versions
