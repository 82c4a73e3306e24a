"""Python imports this as it starts: processes with tests/ on their PYTHONPATH find no torch.

So do those of users, whose environment has none; transformers would take seconds to import it.
"""

from importlib.machinery import ModuleSpec, PathFinder

_find_spec = PathFinder.find_spec


def _without_torch(name: str, *where: object) -> ModuleSpec | None:
    return None if name == "torch" else _find_spec(name, *where)


PathFinder.find_spec = staticmethod(_without_torch)
