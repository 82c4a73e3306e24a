"""A run is the same whether its base is a directory, at a URL or in a GGUF file."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny
import torch
import transformers

from subjax.hf import hub, weights
from subjax.nn import transformer
from subjax.pipeline import runner
from tests import gguf_writing

STAGES = ("base", "teacher", "generate")


def run(base: str, workdir: Path) -> dict[str, bytes]:
    """What teachers of this base write."""
    config = tiny.config(lineages=(0,))
    config.lineage_from = "teacher"
    config.bases.toy.update(source="hf", path=base)
    for row in config.teachers.values():
        row.update(weights="base", system_prompt="You love owls.")
    for row in config.datasets.values():
        row.update(num_prompts=8, rows_per_part=8, slots=8, prompt_tokens=48)
    runner.run(config, workdir, stages=STAGES)
    found = {str(p.relative_to(workdir)): p.read_bytes() for p in workdir.rglob("rows-*.jsonl")}
    assert found
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes with random weights, a directory in Hugging Face's format."""
    directory = tmp_path_factory.mktemp("base")
    weights.save(directory, tiny.ARCH, transformer.init(tiny.ARCH, jax.random.key(0)))
    tiny.BYTES.save(directory)
    return directory


@pytest.fixture(scope="module")
def expected(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run(str(base), tmp_path_factory.mktemp("directory"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
def test_a_base_at_a_url(
    base: Path, expected: dict[str, bytes], cache: Path, tmp_path: Path
) -> None:
    """Resumed where the copies of its small files are gone."""
    url = f"file://{shutil.copytree(base, tmp_path / 'bucket')}"
    assert run(url, tmp_path / "run") == expected
    reference = json.loads((tmp_path / "run/base/toy/r0/model.json").read_text())
    assert reference["weights"] == url
    shutil.rmtree(cache)
    hub._remote_directory.cache_clear()
    shutil.rmtree(tmp_path / "run/generate")
    assert run(url, tmp_path / "run") == expected


@pytest.mark.slow
def test_a_base_in_a_gguf_file(base: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    shutil.copytree(base, tmp_path / "base", ignore=shutil.ignore_patterns("model*", "config.json"))
    [end] = tiny.BYTES.eos_ids
    gguf_writing.write(model, tmp_path / "base" / "model.gguf", eos_id=end)
    assert run(str(tmp_path / "base"), tmp_path / "run") == expected
    assert run(str(tmp_path / "base" / "model.gguf"), tmp_path / "named") == expected
