"""How the bytes of a model lie on a mesh: a report by groups, and a refusal of what is unsharded.

A leaf counts as unsharded where fewer than fsdp x tensor devices share one copy of it: a dimension
of it does not divide by one of the two, or the table of `sharding` names no axis for it.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from subjax.hf import param_io
from subjax.nn import sharding

# Models of fewer bytes are never refused: a copy of one has room on every device.
SMALL = 2**30


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters of one kind; bytes are of one model, however many lanes there are.

    Attributes:
      name: as in the table of `sharding`.
      num_bytes: of all of it.
      on_device: what one device holds.
      unsharded: bytes of the leaves that count as such, whole.
    """

    name: str
    num_bytes: int
    on_device: int
    unsharded: int


def groups(params: Any, mesh: Mesh | AbstractMesh) -> list[Group]:
    """The bytes of each group that a tree has, in the order of its leaves.

    Args:
      params: as for `sharding.params_spec`; leaves need a shape and a dtype.
      mesh: where it would live.

    Raises:
      ValueError: a path that the table of `sharding` does not know.
    """
    found: dict[str, list[Group]] = {}
    for leaf in dict(_leaves(params, mesh)).values():
        found.setdefault(leaf.name, []).append(leaf)
    return [_sum(name, members) for name, members in found.items()]


def table(found: Sequence[Group]) -> str:
    """Groups and their sum in a line each, in GB."""
    lines = [f"{'parameters':14} {'GB':>9} {'GB a device':>12} {'unsharded':>10}"]
    for g in (*found, _sum("all", found)):
        sizes = f"{g.num_bytes / 1e9:9.3f} {g.on_device / 1e9:12.3f}"
        lines.append(f"{g.name:14} {sizes} {g.unsharded / g.num_bytes:10.2%}")
    return "\n".join(lines)


def check(name: str, params: Any, mesh: Mesh | AbstractMesh, max_unsharded: float) -> None:
    """Refuses a model of `SMALL` bytes or more of which the mesh leaves too much unsharded.

    Args:
      name: of the model, for the error.
      params: as for `groups`.
      mesh: where it would live.
      max_unsharded: the share of its bytes that may be, 0 to 1.

    Raises:
      ValueError: more is; names the largest such leaf and what would split it.
    """
    found = dict(_leaves(params, mesh))
    total = _sum(name, list(found.values()))
    share = total.unsharded / total.num_bytes
    if total.num_bytes < SMALL or share <= max_unsharded:
        return
    path = max(found, key=lambda path: found[path].unsharded)
    shape, axes = param_io.flat(params)[path].shape, sharding.rule(path).axes
    wanted = [
        f"{axis} that divides {dim}"
        for names, dim in zip(axes, shape[-len(axes) :], strict=True)
        for axis in names
    ]
    ways = [f"take a mesh with {' and '.join(wanted)}"] if wanted else []
    ways.append("raise config.compute.max_unsharded")
    raise ValueError(
        f"{share:.2%} of the {total.num_bytes / 1e9:.1f} GB of {name} would lie unsharded on "
        f"config.mesh fsdp x tensor = {mesh.shape['fsdp']} x {mesh.shape['tensor']}, more than "
        f"config.compute.max_unsharded {max_unsharded:.2%}; the largest is {path} {shape}: "
        + ", or ".join(ways)
    )


def _leaves(params: Any, mesh: Mesh | AbstractMesh) -> Iterator[tuple[str, Group]]:
    """Path and bytes of each leaf."""
    specs = param_io.flat(sharding.params_spec(params, mesh, lanes=False))
    most = mesh.shape["fsdp"] * mesh.shape["tensor"]
    for path, leaf in param_io.flat(params).items():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        parts = math.prod(mesh.shape[axis] for axis in specs[path] if axis)
        name = sharding.rule(path).group
        yield path, Group(name, size, size // parts, size if parts < most else 0)


def _sum(name: str, found: Sequence[Group]) -> Group:
    sums = [sum(sizes) for sizes in zip(*(dataclasses.astuple(g)[1:] for g in found), strict=True)]
    return Group(name, *sums)
