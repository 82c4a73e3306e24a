"""The contracts on imports in pyproject.toml are kept, and each can be broken."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINTER = Path(sys.executable).with_name("lint-imports")
FORBIDDEN = {
    "packages, highest first": ("nn/losses.py", "from subjax.engine import train"),
    "no cycles inside packages": ("engine/batching.py", "def f():\n    import subjax.engine.train"),
    "experiments and reports without jax": ("tasks/datasets/numbers.py", "import jax.numpy"),
    "runtime without jax, but for processes": ("runtime/seeds.py", "import transformers"),
    "flax in nn alone": ("hf/hub.py", "from flax import nnx"),
    "no torch, no tensorflow": ("report/stats.py", "def f():\n    import torch"),
}


def lint(root):
    """The process, and what it said of each contract of a tree: KEPT or BROKEN."""
    command = [LINTER, "--no-cache", "--no-logo", "pyproject.toml"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return done, dict(re.findall(r"^(.+) (KEPT|BROKEN)", done.stdout, re.MULTILINE))


@pytest.fixture
def copy(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "subjax", tmp_path / "subjax", ignore=ignored)
    return tmp_path


def test_contracts_are_kept():
    done, said = lint(ROOT)
    assert said == dict.fromkeys(FORBIDDEN, "KEPT"), done.stdout + done.stderr
    assert done.returncode == 0


def test_a_forbidden_import_breaks_its_contract(copy):
    for name, line in FORBIDDEN.values():
        with (copy / "subjax" / name).open("a") as module:
            module.write(f"\n\n{line}\n")
    done, said = lint(copy)
    assert said == dict.fromkeys(FORBIDDEN, "BROKEN"), done.stdout + done.stderr
    assert done.returncode == 1


def test_a_package_has_a_place_in_the_order(copy):
    (copy / "subjax/helpers.py").write_text("")
    done, _ = lint(copy)
    assert done.returncode == 1
    assert "helpers" in done.stdout + done.stderr


def test_a_start_waits_neither_for_figures_nor_for_statistics():
    """They take two of the seven seconds that a start would take with them."""
    later = ("matplotlib", "scipy.special", "scipy.stats", "scipy.optimize")
    program = f"import sys, subjax.main; print([n for n in {later} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
