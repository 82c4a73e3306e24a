"""Fixtures of the tests of launch/tpu.sh: a checkout, and the fake cloud that runs it."""

import shutil
from pathlib import Path

import pytest
from tpu_cloud import Cloud, end_workers, make_checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A space in the path, which unquoted shell would trip over.
    root = tmp_path_factory.mktemp("check out") / "repository"
    make_checkout(root)
    return root


@pytest.fixture
def cloud(tmp_path: Path, checkout: Path):
    made = Cloud(tmp_path, checkout)
    yield made
    shutil.rmtree(checkout / "runs", ignore_errors=True)
    end_workers(made.folder)
