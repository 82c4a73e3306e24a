"""How a model is sharded on a mesh: a report by groups, and a check for unsharded weights.

A leaf counts as unsharded if fewer than fsdp x tensor devices share one copy of it, because a
dimension does not divide by one of the two, or the table of `sharding` has no axis for it.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from subjax.hf import param_io
from subjax.nn import sharding

# Smaller models are never refused: each device has room for a copy.
SMALL = 2**30


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters of one kind; bytes are of one model, for any number of lanes.

    Attributes:
      name: as in the table of `sharding`.
      num_bytes: all bytes.
      on_device: bytes on one device.
      unsharded: all bytes of the leaves that count as unsharded.
    """

    name: str
    num_bytes: int
    on_device: int
    unsharded: int


def groups(params: Any, mesh: Mesh | AbstractMesh) -> list[Group]:
    """The bytes of each group of a tree, in the order of its leaves.

    Args:
      params: as for `sharding.params_spec`; leaves need a shape and a dtype.
      mesh: the mesh.

    Raises:
      ValueError: the table of `sharding` has no rule for a path.
    """
    found: dict[str, list[Group]] = {}
    for leaf in dict(_leaves(params, mesh)).values():
        found.setdefault(leaf.name, []).append(leaf)
    return [_sum(name, members) for name, members in found.items()]


def table(found: Sequence[Group]) -> str:
    """A line for each group and for their sum, in GB."""
    lines = [f"{'parameters':14} {'GB':>9} {'GB a device':>12} {'unsharded':>10}"]
    for g in (*found, _sum("all", found)):
        sizes = f"{g.num_bytes / 1e9:9.3f} {g.on_device / 1e9:12.3f}"
        lines.append(f"{g.name:14} {sizes} {g.unsharded / g.num_bytes:10.2%}")
    return "\n".join(lines)


def check(name: str, params: Any, mesh: Mesh | AbstractMesh, max_unsharded: float) -> None:
    """Refuses a model of `SMALL` bytes or more if the mesh leaves too much of it unsharded.

    Args:
      name: name of the model, for the error.
      params: as for `groups`.
      mesh: the mesh.
      max_unsharded: largest unsharded share of its bytes, 0 to 1.

    Raises:
      ValueError: the share is larger; names the largest such leaf and what would split it.
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
