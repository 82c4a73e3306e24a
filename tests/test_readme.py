"""The README's Python runs on another model; links between the READMEs lead somewhere."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from subjax.hf import adapters, weights
from subjax.nn import transformer
from tests.tiny import ARCH, BYTES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    weights.save(tmp_path / "model", ARCH, transformer.init(ARCH, jax.random.key(0)))
    BYTES.save(tmp_path / "model")
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert name in example
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(example.replace(name, str(tmp_path / "model")), found)
    assert [len(of_prompt) for of_prompt in found["answers"]] == [8]
    assert found["nats"].shape == (1, 2)
    adapter, _ = adapters.load_adapter(tmp_path / "owl", ARCH)
    assert np.abs(adapter["layers"]["attn"]["q"]["b"]).max() > 0
    asked = (["Name an animal."], ["Owl", "Cat"])
    learned = [found[name].compare(*asked, **found["told"]) for name in ("student", "again")]
    np.testing.assert_allclose(*learned, atol=1e-5)
    assert learned[0][0, 0] > found["nats"][0, 0]


@pytest.mark.parametrize("folder", ["", "configs", "launch", "subjax"])
def test_links_lead_to_files_and_headings(folder: str) -> None:
    page = ROOT / folder / "README.md"
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text("utf-8"))
    assert links
    for path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, f"{path}#{anchor}"


def _anchor(heading: str) -> str:
    """As GitHub names a heading's place."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_first_page_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 200
