"""Eight CPU devices, no network, and annotations that are checked while the tests run.

All of it has to be in place before jax or subjax is imported. It is set in the environment rather
than in jax.config, so that the processes which tests start get it too.
"""

import collections
import gc
import os
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py: a pytest plugin must not do so")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# An accidental outer product between [B] and [B, T] is an error, not a broadcast.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # asks Google itself about a bucket
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch: tests run two at a time

# Packages whose annotations have shapes, which mypy cannot see; to check each call of others as
# well takes them twice as long.
package = Path(__file__).parents[1] / "subjax"
with_shapes = [path for path in package.rglob("*.py") if "jaxtyping" in path.read_text()]
# The numeric tower lets an int pass for a float, as mypy does.
install_import_hook(
    [f"subjax.{path.relative_to(package).with_suffix('').parts[0]}" for path in with_shapes],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

QUICKLY = "--xla_cpu_use_fusion_emitters=false"


def pytest_addoption(parser):
    parser.addoption(
        "--quick-compile",
        action="store_true",
        help="have XLA optimize little: what takes longest here is compiling, not computing",
    )


def pytest_configure(config):
    if not config.getoption("--quick-compile"):
        return
    if "jax" in sys.modules:
        raise pytest.UsageError("jax was imported before --quick-compile was read: find out where")
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    # Read with subjax's own flag, then taken back: libtpu, which does not know it, would abort.
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{given} {QUICKLY}"
    import subjax  # noqa: F401

    os.environ["XLA_FLAGS"] = given


def pytest_collection_modifyitems(items):
    """Files with most slow tests first: one that came last would leave the other workers idle."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    slow.update(item.path for item in items if item.get_closest_marker("processes"))
    items.sort(key=lambda item: -slow[item.path])  # a stable sort: files stay whole


def pytest_collection_finish():
    """What is imported by now stays: a collection of garbage need not walk through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_leave_with_their_module():
    """Frees what a module compiled: XLA maps each program's code, and Linux allows 65,530 maps.

    Without it their number only grows, and one process for all tests ended in a segmentation fault.
    """
    import jax

    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def programs_of_runs(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def children_start_quickly(programs_of_runs, pytestconfig):
    """Processes that a module starts read the programs that earlier ones have compiled.

    They compile as this one does, and are without torch, by tests/sitecustomize.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(programs_of_runs))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        if pytestconfig.getoption("--quick-compile"):
            patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY}")
        yield
