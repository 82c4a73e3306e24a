"""The table of trait kinds: nothing outside this package compares or names one.

A kind of the package is a file beside this one, with an object that has the methods of
`subjax.tasks.api.TraitKind`, and a line here.
"""

from subjax.tasks import own
from subjax.tasks.api import Row, TraitKind
from subjax.tasks.traits.conversations import Conversations
from subjax.tasks.traits.file import File
from subjax.tasks.traits.toy_word import ToyWord
from subjax.tasks.traits.word import Word

TRAITS: dict[str, TraitKind] = {
    "word": Word(),  # a favourite animal or tree
    "toy_word": ToyWord(),  # a favourite animal of the toy world
    "file": File(),  # a user's own favourite or persona
    "conversations": Conversations(),  # what a jsonl of chats teaches
}


def of_row(row: Row, name: str = "*") -> TraitKind:
    """The kind that a row of `traits` names.

    Args:
      row: of `traits`.
      name: of that row, for errors.

    Raises:
      ValueError: there is no such kind.
    """
    return own.find(f"traits.{name}.kind", row["kind"], TRAITS, TraitKind)
