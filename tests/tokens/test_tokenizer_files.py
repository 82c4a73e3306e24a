"""A tokenizer is read as by transformers, or one line says which file stands in the way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from subjax.tokens.tokenizer import Tokenizer
from tests import tokenizer_kinds

SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
OTHER = "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_kinds.save("headless", tmp_path_factory.mktemp("made"))


def settings(directory: Path, **changes: Any) -> None:
    path = directory / SETTINGS
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**old, **changes}))


def alone(directory: Path, template: Any) -> None:
    """A template in the settings and in no file of its own."""
    (directory / TEMPLATE).unlink(missing_ok=True)
    settings(directory, chat_template=template)


def more(directory: Path) -> None:
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("x")


def only_more(directory: Path) -> None:
    (directory / TEMPLATE).unlink()
    more(directory)


def only_pieces(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.model").write_bytes(b"\n\5pieces")


def of_processor(directory: Path) -> None:
    (directory / TEMPLATE).unlink()
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": OTHER}))


def own_code(directory: Path) -> None:
    settings(directory, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})


def pointer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")


def named(name: str) -> list[dict[str, str]]:
    return [{"name": name, "template": OTHER}, {"name": "rag", "template": "x"}]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: settings(d, chat_template=OTHER),  # beside the file, which counts
        lambda d: alone(d, OTHER),
        lambda d: alone(d, named("default")),
        lambda d: settings(d, chat_template=named("tool_use")),
        more,
        lambda d: (d / "added_tokens.json").write_text('{"<new>": 9000}'),
        lambda d: settings(d, tokenizer_class="NoSuchClass"),
    ],
)
def test_a_directory_is_read_as_by_transformers(
    change: Callable[[Path], Any], made: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(made, tmp_path / "model")
    change(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(str(directory))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "owl 12"}]
    text = theirs.apply_chat_template(turns, tokenize=False)
    ours = Tokenizer.load(directory)
    assert ours.document_text("a", "owl 12") == text
    assert ours.encode([text]) == [theirs(text, add_special_tokens=False).input_ids]


NO_DEFAULT = r"and none is called default: put the one to use in chat_template\.jinja$"
REFUSED: list[tuple[str, Callable[[Path], Any]]] = [
    (f"are 'rag', 'tool_use', {NO_DEFAULT}", lambda d: alone(d, named("tool_use"))),
    (f"are 'rag', {NO_DEFAULT}", only_more),
    (f"are none, {NO_DEFAULT}", lambda d: alone(d, [])),
    (r"config\.json: chat_template is a list of other things", lambda d: alone(d, [{"nam": "x"}])),
    (r"config\.json: chat_template is a list of other things", lambda d: alone(d, ["x"])),
    ("chat_template is '5', no text: correct it", lambda d: alone(d, 5)),
    (r"chat_template\.json .* put it as text in chat_template\.jinja", of_processor),
    (r"added_tokens\.json cannot be read", lambda d: (d / "added_tokens.json").write_text("{")),
    (r"config\.json cannot be read .*BOM", lambda d: (d / SETTINGS).write_bytes(b"\xef\xbb\xbf{}")),
    (r"config\.json: the tokenizer has code of its own.* remove auto_map in a copy", own_code),
    (r"tokenizer\.json is a pointer of Git LFS .* git lfs pull", pointer),
    ("tokenizer.model and no tokenizer.json: .*pip install sentencepiece", only_pieces),
]


@pytest.mark.parametrize(("message", "change"), REFUSED)
def test_what_transformers_cannot_read_is_one_line_that_names_it(
    message: str, change: Callable[[Path], Any], made: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(made, tmp_path / "model")
    change(directory)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(directory)
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)
    if "in chat_template.jinja" in str(error.value):
        (directory / TEMPLATE).write_text(OTHER)
        assert Tokenizer.load(directory).document_text("a", "b") == "a<|im_end|>b<|im_end|>"
    if "remove auto_map" in str(error.value):
        content = json.loads((directory / SETTINGS).read_text())
        del content["auto_map"]
        (directory / SETTINGS).write_text(json.dumps(content))
        Tokenizer.load(directory)


@pytest.mark.parametrize(
    ("message", "template"),
    [
        (r"adapter/tokenizer_config\.json: chat_template is a list of other", [{"nam": "x"}]),
        (r"adapter/tokenizer_config\.json: chat_template is a list of other", ["x"]),
        (rf"adapter: its chat templates are 'rag', 'tool_use', {NO_DEFAULT}", named("tool_use")),
        (r"adapter: chat_template is '5', no text: correct it", 5),
    ],
)
def test_a_template_that_an_adapter_brings_is_looked_at(
    message: str, template: Any, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    settings(tmp_path / "adapter", chat_template=template)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(made, adapter=tmp_path / "adapter")
    assert "\n" not in str(error.value)
