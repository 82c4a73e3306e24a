"""The script that makes SmolLM2: what it says where it cannot, and the order of its rows.

That its result computes what transformers computes is in test_golden.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from subjax.hf.gguf import gguf_files

SCRIPT = Path(__file__).parents[2] / "launch" / "fetch_smollm2.py"


def run(out: Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script in a process, after the statement `before`."""
    program = f"{before}\nimport runpy, sys\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", program, "--out", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def assert_one_error(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_complete_directory_is_left_alone(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).touch()
    done = run(tmp_path)
    assert done.returncode == 0
    assert done.stdout == f"{tmp_path} is complete\n"


def test_anything_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert_one_error(run(tmp_path), "exists and is not a complete model")
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_missing_gguf_names_the_command(tmp_path: Path) -> None:
    done = run(tmp_path / "out", before="import sys; sys.modules['gguf'] = None")
    assert_one_error(done, "-m pip install 'gguf")


def test_an_index_out_of_reach_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run(
        tmp_path / "out",
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_EXTRA_INDEX_URL="",
        PIP_FIND_LINKS="",
        PIP_RETRIES="0",
        PIP_NO_CACHE_DIR="1",
    )
    assert_one_error(done, "check the network and PIP_INDEX_URL")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_heads", [1, 3])
def test_rows_are_put_back_in_the_order_of_hugging_face(num_heads: int) -> None:
    """Row 2i of a head in llama.cpp is its row i in Hugging Face's order, 2i + 1 is i + H/2."""
    head_dim = 8
    kernel = np.arange(num_heads * head_dim * 2).reshape(num_heads * head_dim, 2)
    found = gguf_files.unpermute(kernel, num_heads)
    for head in range(num_heads):
        rows = kernel[head * head_dim :][:head_dim]
        back = found[head * head_dim :][:head_dim]
        for i in range(head_dim // 2):
            assert np.array_equal(back[i], rows[2 * i])
            assert np.array_equal(back[i + head_dim // 2], rows[2 * i + 1])
