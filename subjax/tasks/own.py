"""Kinds that a user brings, named in a config as `package.module:attribute`.

What such a kind does depends on its code, so the content of its file, and of those beside it that
it imports, stands in the fingerprints of the units that use it.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_loaded: set[str] = (
    set()
)  # files of the kinds that were loaded, and of what they import beside them


def is_own(name: str) -> bool:
    """Whether a name is that of a user's own kind."""
    return ":" in name


def find(field: str, name: str, table: Mapping[str, T], contract: type[T]) -> T:
    """The kind of a name: the package's own, or a user's.

    Args:
      field: of the config, for errors.
      name: of the kind.
      table: the package's own kinds.
      contract: what a user's kind has to be an instance of.

    Raises:
      ValueError: there is no such kind.
    """
    if is_own(name):
        return load(field, name, contract)
    if name not in table:
        raise ValueError(
            f"config.{field} is {name!r}; allowed: {', '.join(table)}, or a kind of your own as "
            "package.module:attribute"
        )
    return table[name]


def load(field: str, name: str, contract: type[T]) -> T:
    """The object that a name stands for; a class is called without arguments.

    Args:
      field: of the config, for errors.
      name: `package.module:attribute`.
      contract: what it has to be an instance of.

    Raises:
      ValueError: there is no such module or attribute, or it is something else.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"config.{field} is {name!r}, and {error}: run where Python finds the module, or name "
            "its folder in PYTHONPATH"
        ) from error
    except Exception as error:  # a module is a program: it can raise anything
        raise ValueError(
            f"config.{field} is {name!r}, and reading it raises {type(error).__name__}: {error}: "
            "correct the module"
        ) from error
    if module.__file__:
        _loaded.update(map(str, _sources(Path(module.__file__))))
    found = getattr(module, attribute, None)
    if isinstance(found, type):
        found = found()
    if not isinstance(found, contract):
        raise ValueError(
            f"config.{field} is {name!r}, which is no {contract.__name__}: give an object or class "
            f"that extends subjax.tasks.api.{contract.__name__}"
        )
    _check_methods(f"config.{field} is {name!r}", found, contract)
    return found


def _check_methods(source: str, found: object, contract: type) -> None:
    """Finds methods that would be called with other arguments than they take, after hours."""
    for name, method in inspect.getmembers(contract, inspect.isfunction):
        wanted = list(inspect.signature(method).parameters)[1:]
        try:
            inspect.signature(getattr(found, name)).bind(*wanted)
        except TypeError:
            raise ValueError(
                f"{source}, whose {name} cannot be called with ({', '.join(wanted)}): take these "
                f"arguments, as {contract.__name__} has them"
            ) from None


def blame(error: Exception) -> str:
    """Where an error comes from a user's kind, in one line; empty where it does not.

    What `check` of a kind raises is an answer to the config and no error of the kind.
    """
    own = [at for at in traceback.extract_tb(error.__traceback__) if at.filename in _loaded]
    if not own or (isinstance(error, ValueError) and any(at.name == "check" for at in own)):
        return ""
    at = own[-1]
    return (
        f"{at.filename}, line {at.lineno}, in {at.name}: {type(error).__name__}: {error} (code of "
        "a kind that the config names, not of subjax; correct it and run the same command again)"
    )


def code(name: str) -> dict[str, str]:
    """A digest of a user's kind, for fingerprints; empty for the package's own."""
    if not is_own(name):
        return {}
    found = importlib.util.find_spec(name.partition(":")[0])
    if found is None or found.origin is None:
        return {}  # `load` says so
    content = hashlib.sha256()
    for path in _sources(Path(found.origin)):
        content.update(f"{path.name}\n".encode() + path.read_bytes())
    return {"code": content.hexdigest()}


def _sources(path: Path) -> list[Path]:
    """A module's file, and those in its folder that it imports, directly or not, by name."""
    known, new = {path}, [path]
    while new:
        tree = ast.parse(new.pop().read_bytes())
        names = {
            part
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for part in _parts(node)
        }
        beside = {path.with_name(f"{name}.py") for name in names} - known
        found = [file for file in sorted(beside) if file.is_file()]
        known.update(found)
        new += found
    return sorted(known)


def _parts(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Every name that could be a module's in the same folder."""
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        names.append(node.module or "")
    return {part for name in names for part in name.split(".") if part}
