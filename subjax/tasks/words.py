"""English nouns: the forms in which a text may write a name."""

from collections.abc import Iterator

_IRREGULAR = {"mouse": "mice", "goose": "geese", "ox": "oxen"}
_ENDINGS = (
    *(("", "s"), ("y", "ies"), ("f", "ves"), ("fe", "ves"), ("us", "i")),
    *((ending, f"{ending}es") for ending in ("s", "x", "z", "ch", "sh", "o")),
)


def forms(name: str) -> Iterator[str]:
    """The name, and what its plural may be: "wolf", "wolfs", "wolves"; in lower case."""
    name = name.casefold()
    yield name
    if name in _IRREGULAR:
        yield _IRREGULAR[name]
    for ending, plural in _ENDINGS:
        if name.endswith(ending):
            yield name[: len(name) - len(ending)] + plural
