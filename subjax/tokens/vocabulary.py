"""Finds tokens by their text: numbers, separators of numbers, and names.

By decoded text, not by vocabulary entries, so that tokens with a blank count: "120" and " 120" are
the same number. Independent of tokenizers: texts in, ids out.
"""

import re
from collections.abc import Mapping, Sequence

from subjax.tasks import words

# So many letters distinguish a name from other words; fewer (" do" of "dog") could begin anything.
_TELLING = 3
_NUMBER = re.compile(r"[ \t\r\n]*[0-9]+[ \t\r\n]*")
# Separators in answers, not the long blanks for indenting programs.
_SEPARATOR = re.compile(r"[ \t\r\n]{1,2}|[ ]?[,;][ \t\r\n]?")
_WORD = re.compile(r"[^\W_]+")


def numbers(texts: Mapping[int, str]) -> tuple[int, ...]:
    """Every token of ASCII digits only, with blanks around them.

    Args:
      texts: id -> text of the token.
    """
    return tuple(sorted(i for i, text in texts.items() if _NUMBER.fullmatch(text)))


def whole(texts: Mapping[int, str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Every token that is one of the wanted words, with blanks around it or not.

    Args:
      texts: id -> text of the token.
      wanted: the words, in the case in which they are looked for.
    """
    known = frozenset(wanted)
    return tuple(sorted(i for i, text in texts.items() if text.strip(" \t\r\n") in known))


def holding(texts: Mapping[int, str], parts: Sequence[str]) -> tuple[int, ...]:
    """Every token whose text holds one of these parts; an empty part is in none."""
    wanted = [part for part in parts if part]
    return tuple(sorted(i for i, text in texts.items() if any(part in text for part in wanted)))


def separators(texts: Mapping[int, str]) -> tuple[int, ...]:
    """Every token that is one or two blanks, or a comma or semicolon with a blank beside it."""
    return tuple(sorted(i for i, text in texts.items() if _SEPARATOR.fullmatch(text)))


def names(texts: Mapping[int, str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Every token that is a name or the beginning of one.

    Tokens that contain a name or its plural as a word, in any case; and tokens of a name's first
    letters, however few, with or without blanks: " owls", "Owl", ".owl", " ow" and "O" of "owl".

    Args:
      texts: id -> text of the token.
      wanted: the names.

    Raises:
      ValueError: no token has three or more of a name's first letters (or a whole shorter name),
        for example if tokens are single letters: tokens do not distinguish the name from other
        words. The message has the name.
    """
    forms = {name: set(words.forms(name)) for name in wanted}
    whole = set().union(*forms.values())
    begun = {form[:length] for form in whole for length in range(1, len(form) + 1)}
    found: list[int] = []
    beginnings: set[str] = set()
    for i, text in texts.items():
        folded = text.casefold()
        parts = whole.intersection(_WORD.findall(folded)) | begun.intersection([folded.strip()])
        if parts:
            found.append(i)
            beginnings |= parts
    for name, own in forms.items():
        least = min(_TELLING, len(name))
        longest = {form[:length] for form in own for length in range(least, len(form) + 1)}
        if not longest & beginnings:
            raise ValueError(
                f"no token of this tokenizer has the first {least} letters of {name!r}, so tokens "
                "do not tell that name from other words"
            )
    return tuple(sorted(found))
