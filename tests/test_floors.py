"""Which module may import which: the floors of subjax, read from the source without running it.

A module imports only from a strictly lower floor, so the package has no cycles and every module
can be read, tested and replaced with what lies beneath it alone.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "subjax"

# "datasets.*" is every module of that folder; the folder's own __init__ stands on the same floor.
FLOORS = {
    "main": 11,
    "pipeline": 10,
    "preflight": 9,
    "export": 9,
    "preview": 9,
    "plan": 12,
    "compiling": 11,
    "measure": 11,
    "stages.*": 8,
    "train": 6,
    "distil": 6,
    "theorem": 5,
    "models": 6,
    "results": 4,
    "preregistration": 5,
    "units": 2,
    "user_files": 0,
    "datasets.numbers": 1,
    "evals.preference": 1,
    "datasets.images": 1,
    "datasets.published": 1,
    "validation": 4,
    "gates": 2,
    "language_validation": 3,
    "mlp_validation": 3,
    "checks": 2,
    "storage": 0,
    "object_store": 1,
    "tensors": 1,
    "hub": 4,
    "gguf_files": 1,
    "gguf_models": 4,
    "gguf_rope": 2,
    "leaves": 4,
    "drawing": 4,
    "grammars": 6,
    "asking": 7,
    "lessons": 7,
    "slots": 4,
    "sampler": 5,
    "scoring": 5,
    "weights": 5,
    "placement": 5,
    "adapters": 5,
    "adapter_config": 0,
    "checkpoints": 5,
    "objective": 5,
    "throughput": 5,
    "hosts": 1,
    "supervisor": 2,
    "transformer": 4,
    "families": 1,
    "model_config": 4,
    "config_attributes": 2,
    "tensor_names": 2,
    "losses": 4,
    "optimizers": 4,
    "batching": 4,
    "lora": 4,
    "mlp": 4,
    "gallery": 4,
    "html": 4,
    "attention": 1,
    "remats": 1,
    "aot": 5,
    "hlo": 1,
    "roofline": 4,
    "chips": 1,
    "model_flops": 1,
    "program_flops": 1,
    "token_counts": 9,
    "programs": 10,
    "functional": 1,
    "precision": 1,
    "blocks": 3,
    "layouts": 2,
    "sharding": 1,
    "tokenizer": 5,
    "tokenizer_files": 2,
    "chat_templates": 0,
    "vocabulary": 0,
    "summary": 1,
    "verdict": 2,
    "architecture": 0,
    "schema": 1,
    "mistakes": 0,
    "artifacts": 0,
    "stats": 0,
    "seeds": 0,
    "tables": 0,
    "figures": 0,
    "recipes.*": 0,
    "datasets.*": 0,
    "evals.*": 0,
}

# Floor 0 runs where nothing but numpy is installed; these need jax, or are as heavy.
NOT_ON_FLOOR_0 = {"jax", "jaxlib", "flax", "optax", "orbax", "transformers"}
# A run needs neither; requirements.txt does not install them.
NOWHERE = {"torch", "tensorflow"}


def floor_of(module: str) -> int:
    """Floor of "train" or "stages.teacher"; the package itself and its folders count too."""
    if not module:
        return 0  # subjax/__init__.py, which every import of subjax runs
    room = module.partition(".")[0]
    for name in (module, f"{room}.*"):
        if name in FLOORS:
            return FLOORS[name]
    raise AssertionError(f"subjax.{module} stands on no floor: add it to FLOORS in {__file__}")


def module_name(path: Path) -> str:
    """Name inside subjax: "train", "stages.teacher", "stages" for an __init__, "" for the root."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(node: ast.stmt, module: str, is_package: bool) -> list[str]:
    """Absolute names that an import statement may load; `from a import b` gives "a" and "a.b"."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    source = node.module or ""
    if node.level:
        above = ["subjax", *filter(None, module.split("."))]
        above = above[: len(above) - node.level + is_package]
        source = ".".join([*above, *filter(None, [source])])
    return [source, *(f"{source}.{alias.name}" for alias in node.names)]


def violations(module: str, source: str, known: set[str], is_package: bool = False) -> list[str]:
    """Each rule that the source breaks, as one line.

    Args:
      module: name inside subjax of what the source is, e.g. "stages.teacher".
      source: its text.
      known: names of all modules of subjax, by which `from subjax import x` is told apart.
      is_package: whether it is an __init__.
    """
    tree = ast.parse(source)
    top_level = set(tree.body)
    found = []
    for node in ast.walk(tree):
        names = imported(node, module, is_package)
        inside = [name.partition(".")[2] for name in names if name.split(".")[0] == "subjax"]
        # The folder above an imported module is loaded with it, and is no import of its own.
        loaded = [name for name in inside if name in known and name]
        loaded = [name for name in loaded if not any(o.startswith(f"{name}.") for o in loaded)]
        outside = {name.partition(".")[0] for name in names} - {"subjax"}
        where = f"subjax.{module} line {getattr(node, 'lineno', 0)}"
        found += [
            f"{where} (floor {floor_of(module)}) imports subjax.{name} (floor {floor_of(name)})"
            for name in loaded
            if floor_of(name) >= floor_of(module)
        ]
        if inside and node not in top_level:
            found.append(f"{where} imports {names[0]} elsewhere than at the top of the file")
        forbidden = set(NOWHERE)
        if floor_of(module) == 0:
            forbidden |= NOT_ON_FLOOR_0
        if not module:
            forbidden -= {"jax", "jaxlib"}  # told how to compile, where they are installed
        if module != "blocks":
            forbidden.add("flax")
        found += [f"{where} imports {name}" for name in sorted(outside & forbidden)]
    return found


def test_there_are_modules() -> None:
    assert modules(), f"no modules under {PACKAGE}"


@pytest.mark.parametrize("module", modules())
def test_module_keeps_to_its_floor(module: str) -> None:
    path = modules()[module]
    broken = violations(module, path.read_text("utf-8"), set(modules()), path.name == "__init__.py")
    assert not broken, "\n".join(broken)


KNOWN = {
    "train",
    "blocks",
    "distil",
    "sampler",
    "seeds",
    "transformer",
    "losses",
    "datasets.numbers",
}
KNOWN |= {"", "datasets", "stages", "stages.teacher", "stages.filter", "pipeline", "evals.essays"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sampler", "from subjax import train"),
        ("sampler", "from subjax.engine.train import fit"),
        ("sampler", "import subjax.engine.train"),
        ("sampler", "import subjax.engine.train as loop"),
        ("sampler", "from . import train"),
        ("sampler", "from .train import fit"),
        ("train", "from subjax import distil"),
        ("train", "from subjax import seeds, train"),
        ("stages.teacher", "from subjax.stages import filter"),
        ("stages.teacher", "from . import filter"),
        ("stages.teacher", "from .filter import run"),
        ("stages.teacher", "from .. import pipeline"),
        ("datasets.toyworld", "from subjax import seeds"),
        ("train", "def fit():\n    from subjax import seeds"),
        ("train", "if True:\n    from subjax import seeds"),
        ("datasets.toyworld", "import jax.numpy as jnp"),
        ("datasets.toyworld", "from jax import numpy"),
        ("seeds", "def seed():\n    import transformers"),
        ("evals.essays", "import optax"),
        ("losses", "from flax import nnx"),
        ("stages.teacher", "import flax.nnx"),
        ("train", "import torch"),
        ("train", "def load():\n    from torch import load"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(module, source, KNOWN)) == 1


def test_a_forbidden_import_is_found_in_an_init() -> None:
    assert violations("stages", "from .teacher import run", KNOWN, is_package=True)
    assert violations("", "from .train import fit", KNOWN, is_package=True)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("train", "from subjax import sampler, seeds"),
        ("train", "from subjax.engine.sampler import sample"),
        ("train", "import jax\nimport optax"),
        ("train", "from .sampler import sample"),
        ("stages.teacher", "from subjax.datasets import numbers"),
        ("stages.teacher", "from ..datasets import numbers\nfrom .. import train"),
        ("blocks", "from flax import nnx"),
        ("seeds", "import hashlib\nimport numpy as np"),
        ("pipeline", "from subjax.stages import filter, teacher"),
    ],
)
def test_an_allowed_import_is_not(module: str, source: str) -> None:
    assert violations(module, source, KNOWN) == []


def test_an_unknown_module_is_named() -> None:
    with pytest.raises(AssertionError, match=r"subjax\.helpers stands on no floor"):
        violations("helpers", "import jax", KNOWN)
