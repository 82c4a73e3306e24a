"""Maps the tensor names of a checkpoint to parameters, for all name prefixes that savers use.

This module only reads names; `weights` checks shapes and values. An unknown name is refused: its
tensor could change the model.
"""

from collections.abc import Collection

from subjax.hf import families
from subjax.nn.architecture import Architecture

_HEAD, _EMBEDDING, _NORM = "head/kernel", "embed/embedding", "final_norm/scale"
# Prefixes in models with several parts; transformers has changed them twice.
PART = "language_model."


def match(
    where: str, names: Collection[str], arch: Architecture, skipped: tuple[str, ...] = ()
) -> dict[str, list[str]]:
    """Finds the tensors of each parameter, and accounts for every name.

    Args:
      where: the checkpoint, for errors.
      names: names of its tensors.
      arch: shape of the model.
      skipped: name prefixes of other parts, such as an image encoder.

    Returns:
      Parameter path -> name, or one name per layer. A tied embedding may have the head's name;
      the head is included if the file has one, tied or not.

    Raises:
      ValueError: a tensor is missing or unknown.
    """
    family = families.family(arch.model_type)
    base, *_ = fronts = prefixes(family)
    prefix = next((p for p in fronts if _named(family, _NORM, base, p) in names), base)
    found: dict[str, list[str]] = {}
    for path, template in family.tensors.items():
        if path == _HEAD:
            continue
        # Stop at the first missing one: an absurd number of layers must not fill the memory.
        for layer in range(arch.num_layers if "{layer}" in template else 1):
            name = _named(family, path, base, prefix).format(layer=layer)
            if name not in names and not (path == _EMBEDDING and arch.tie_embeddings):
                raise _missing(where, name)
            found.setdefault(path, []).append(name)
    head = next((n for n in _heads(family) if n in names), "")
    if arch.tie_embeddings and head and found[_EMBEDDING][0] not in names:
        found[_EMBEDDING] = [head]
    elif head:
        found[_HEAD] = [head]
    elif not arch.tie_embeddings:
        raise _missing(where, family.tensors[_HEAD], ", with its head")
    elif found[_EMBEDDING][0] not in names:
        raise _missing(where, found[_EMBEDDING][0])
    _check_others(where, set(names).difference(*found.values()), arch, skipped)
    return found


def tied(arch: Architecture) -> set[str]:
    """Names of a tied embedding and its head: a file may have either or both."""
    if not arch.tie_embeddings:
        return set()
    family = families.family(arch.model_type)
    base, *_ = fronts = prefixes(family)
    embeddings = (_named(family, _EMBEDDING, base, prefix) for prefix in fronts)
    return {*_heads(family), *embeddings}


def prefixes(family: families.Family) -> tuple[str, ...]:
    """Possible prefixes of all names except the head's.

    Returns:
      The prefix in `family.tensors`, "model." or "gpt_neox."; "", for models that AutoModel saved
      without a head; and the prefixes of the text part in models of several parts.
    """
    base = family.tensors[_NORM].partition(".")[0] + "."
    return base, "", f"{PART}{base}", f"{base}{PART}", PART


def _check_others(
    where: str, names: set[str], arch: Architecture, skipped: tuple[str, ...]
) -> None:
    """Refuses names that are no parameter, no tensor of another part and no buffer of old files."""
    ignored = families.family(arch.model_type).ignored_tensors
    for name in sorted(names):
        if not name.startswith(skipped) and not f".{name}".endswith(ignored):
            raise ValueError(
                f"{where} has tensor {name}, which a {arch.model_type} model with this config "
                "does not have: correct config.json, or choose another model"
            )


def _heads(family: families.Family) -> tuple[str, ...]:
    return family.tensors[_HEAD], PART + family.tensors[_HEAD]


def _named(family: families.Family, path: str, base: str, prefix: str) -> str:
    return prefix + family.tensors[path].removeprefix(base)


def _missing(where: str, name: str, how: str = "") -> ValueError:
    return ValueError(f"{where} has no tensor {name}: download or save the model again{how}")
