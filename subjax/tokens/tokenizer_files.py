"""The files of a tokenizer: the model's own, and the ones in an adapter.

Reads the same files as transformers, and the ending tokens of a checkpoint. Never runs code of a
checkpoint or connects to a hub.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from subjax.hf.gguf import gguf_files
from subjax.runtime import artifacts
from subjax.runtime.storage import File, LocalFile
from subjax.tokens.chat_templates import first_line

# The file with all ending tokens of a checkpoint; the tokenizer names only one.
GENERATION_CONFIG = "generation_config.json"

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SETTINGS = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_OF_PROCESSOR = "chat_template.json"  # of older models with an image encoder
# Llama 3 has ending tokens for a turn and for a message, besides the one for a text.
_GGUF_ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


def read(directory: Path) -> Any:
    """The tokenizer of a directory, as transformers reads it.

    Raises:
      ValueError: there is no tokenizer, or it cannot be read, or its chat template is ambiguous;
        names the directory or the file.
    """
    try:
        # Only local files: no hub, and no code of the directory.
        found = transformers.AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises unrelated types
        _check_files(directory)
        raise ValueError(
            f"no readable tokenizer in {directory} ({first_line(error)}): "
            "put tokenizer.json and tokenizer_config.json there"
        ) from error
    _check_template(directory, found.chat_template)
    if found.chat_template is None and (directory / _OF_PROCESSOR).is_file():
        raise ValueError(
            f"{directory / _OF_PROCESSOR} holds a chat template that transformers gives to no "
            f"tokenizer: put it as text in {_TEMPLATE}"
        )
    return found


def with_adapter(base: Any, adapter: Path, num_embeddings: int | None) -> tuple[Any, str]:
    """The tokenizer of a model with an adapter, which may have its own tokenizer or template.

    Args:
      base: the base's tokenizer.
      adapter: directory of a PEFT adapter, which may hold a tokenizer or a chat template.
      num_embeddings: size of the base's embedding; None: no limit.

    Returns:
      A tokenizer; and a sentence on what comes from the adapter, "" for nothing.

    Raises:
      ValueError: a file cannot be read, or the adapter's tokenizer has tokens that the base does
        not know; names them.
    """
    names = {path.name for path in adapter.iterdir()}
    if names.intersection(_VOCABULARIES):
        own = read(adapter)
        _check_known(own, base, adapter, num_embeddings)
        if own.chat_template is None:
            own.chat_template = base.chat_template
        same = own.get_vocab() == base.get_vocab() and own.chat_template == base.chat_template
        return (
            own,
            "" if same else f"tokenizer and chat template are those of the adapter {adapter}",
        )
    template = _template(adapter, names)
    if template is None or template == base.chat_template:
        return base, ""
    base.chat_template = template
    return base, f"the chat template is that of the adapter {adapter}"


def content(adapter: Path) -> bytes:
    """The content of an adapter's tokenizer files; empty if it has none."""
    parts = [adapter / name for name in (*_VOCABULARIES, _SETTINGS, _TEMPLATE, GENERATION_CONFIG)]
    return b"".join(path.name.encode() + path.read_bytes() for path in parts if path.is_file())


def write(tokenizer: Any, directory: Path) -> None:
    """Writes a tokenizer of transformers so that transformers 4 and 5 read it alike.

    tokenizer.json defines how text is split. A model's own tokenizer class adds settings that only
    the class knows and that differ between versions, so the files name the general class. Its
    defaults differ from those of such classes, so these settings are written explicitly.
    """
    with artifacts.system_errors(directory):
        tokenizer.save_pretrained(str(directory))
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        return  # no tokenizer.json: the class is needed
    path = directory / _SETTINGS
    config = artifacts.read_json(path)
    for name in ("is_local", "local_files_only", "backend"):  # arguments of loading
        config.pop(name, None)
    if isinstance(config.get("extra_special_tokens"), list):
        # transformers 4 expects an object under this name; 5 still reads the older name.
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = ["input_ids", "attention_mask"]
    for name in ("padding_side", "truncation_side", "clean_up_tokenization_spaces"):
        config[name] = getattr(tokenizer, name)
    artifacts.write_json(path, config)


def listed_ends(directory: Path, *, with_config: bool) -> list[int]:
    """The ending tokens listed in a model's directory, as transformers reads it.

    Args:
      directory: holds generation_config.json, config.json, both or none.
      with_config: whether config.json belongs to the model.

    Raises:
      ValueError: a file cannot be read; names it.
    """
    found: list[int] = []
    for name in (GENERATION_CONFIG, *(["config.json"] if with_config else [])):
        path = directory / name
        content = _read_json(path) if path.is_file() else {}
        for part in (content, content.get("text_config")):  # of a model with an image encoder
            if isinstance(part, Mapping):
                found += _ids(path, part.get("eos_token_id"))
    return found


def gguf_ends(file: File) -> list[int]:
    """The ending tokens in a GGUF file."""
    metadata = gguf_files.read_metadata(file)
    return [metadata[key] for key in _GGUF_ENDS if type(metadata.get(key)) is int]


def _check_files(directory: Path) -> None:
    """Raises for known problems of a tokenizer's files, with the file and the remedy."""
    for name in _VOCABULARIES:
        if (directory / name).is_file():
            LocalFile(directory / name).close()
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "added_tokens.json", _SETTINGS):
        settings = _read_json(directory / name) if (directory / name).is_file() else {}
    if settings.get("auto_map") is not None:
        raise ValueError(
            f"{directory / _SETTINGS}: the tokenizer has code of its own, which is never run: "
            "choose another model, or, if tokenizer.json says all of it, remove auto_map in a copy"
        )
    _named_templates(directory, settings.get("chat_template"))
    if (directory / "tokenizer.model").is_file() and not (directory / "tokenizer.json").is_file():
        raise ValueError(
            f"{directory} has tokenizer.model and no tokenizer.json: put that there, or run "
            "pip install sentencepiece, with which transformers can make it of tokenizer.model"
        )


def _check_template(directory: Path, template: Any) -> None:
    """Raises if there are named templates without a default, or a template is no text."""
    if isinstance(template, dict) and "default" not in template:
        names = ", ".join(sorted(map(repr, template))) or "none"
        raise ValueError(
            f"{directory}: its chat templates are {names[:200]}, and none is called default: put "
            f"the one to use in {_TEMPLATE}"
        )
    told = template["default"] if isinstance(template, dict) else template
    if not isinstance(told, str | None):
        raise ValueError(f"{directory}: chat_template is {str(told)[:80]!r}, no text: correct it")


def _check_known(own: Any, base: Any, adapter: Path, num_embeddings: int | None) -> None:
    if num_embeddings is None:
        return
    known = base.get_vocab()
    # The padding token may be unknown: nothing reads it.
    beyond = {
        token: id
        for token, id in own.get_vocab().items()
        if id >= num_embeddings and token not in known and id != own.pad_token_id
    }
    if beyond:
        shown = ", ".join(f"{token!r} ({id})" for token, id in sorted(beyond.items())[:4])
        raise ValueError(
            f"{adapter}: its tokenizer adds {shown}{' …' if len(beyond) > 4 else ''}, and the base "
            f"has embeddings of {num_embeddings} tokens alone: merge the adapter into full weights "
            "that have them"
        )


def _template(adapter: Path, names: set[str]) -> Any:
    """The chat template of an adapter without a tokenizer, or None."""
    if _TEMPLATE in names:
        try:
            return (adapter / _TEMPLATE).read_text()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{adapter / _TEMPLATE} cannot be read ({first_line(error)}): save it as UTF-8"
            ) from None
    found = _read_json(adapter / _SETTINGS).get("chat_template") if _SETTINGS in names else None
    found = _named_templates(adapter, found)
    _check_template(adapter, found)
    return found


def _named_templates(directory: Path, found: Any) -> Any:
    """Name -> template for transformers' list of templates; other values unchanged."""
    if not isinstance(found, list):
        return found
    try:
        return {row["name"]: row["template"] for row in found}
    except (KeyError, TypeError):
        raise ValueError(
            f"{directory / _SETTINGS}: chat_template is a list of other things than objects with "
            "name and template: correct it"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}): correct it") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: correct it")
    return content


def _ids(path: Path, listed: Any) -> Sequence[int]:
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not all(type(id) is int for id in listed):
        raise ValueError(f"{path}: eos_token_id is {listed}, not token ids: correct it")
    return listed
