"""Meshes and the one table of shardings; the only module that builds either.

Axes: `seed` (lanes of a population), `data` and `fsdp` (batch; `fsdp` also splits weights) and
`tensor` (weights). `jax.jit` with shardings does the rest; there is no per-device code.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from subjax import check_sums

AXES = ("seed", "data", "fsdp", "tensor")
WHOLE = P()  # on every device


class Rule(NamedTuple):
    """How parameters are split, by the end of their path.

    Attributes:
      group: name of the group in reports.
      pattern: regular expression for the end of a path.
      axes: for each dimension, lanes and layers not counted, axes in order of preference. The first
        that divides the dimension is taken; a dimension that none divides is replicated.
      decoding: the one dimension that a token loop splits, over tensor and fsdp together; None:
        the leaf is replicated.
    """

    group: str
    pattern: str
    axes: tuple[tuple[str, ...], ...]
    decoding: int | None = None


_TABLE = (
    Rule("embedding", r"embed/embedding", (("tensor",), ("fsdp",)), 0),
    Rule("head", r"head/kernel", (("tensor",), ("fsdp",)), 0),
    Rule("attention", r"(q|k|v|qkv)/kernel", (("tensor",), ("fsdp",)), 0),
    Rule("attention", r"o/kernel", (("fsdp",), ("tensor",)), 1),
    Rule("mlp", r"(gate|up)/kernel", (("tensor",), ("fsdp",)), 0),
    Rule("mlp", r"down/kernel", (("fsdp",), ("tensor",)), 1),
    Rule("adapter", r"(q|k|v|qkv|gate|up)/a", ((), ("fsdp",))),
    Rule("adapter", r"(q|k|v|qkv|gate|up)/b", (("fsdp",), ()), 0),
    Rule("adapter", r"(o|down)/a", ((), ("fsdp",)), 1),
    Rule("adapter", r"(o|down)/b", (("fsdp",), ())),
    Rule("norms, biases", r"norm/scale|bias", ((),)),
)


def use_cpu_devices(num_devices: int) -> None:
    """Splits the CPU backend into several devices with one thread each.

    Call it before any computation. It does not affect accelerators.
    """
    jax.config.update("jax_num_cpu_devices", num_devices)


def make_mesh(
    seed: int = 0,
    data: int = 0,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    lanes: int = 1,
    devices: Sequence[jax.Device] = (),
) -> Mesh:
    """Builds the mesh over the first devices; sizes multiply to at most the device count.

    Args:
      seed: devices across lanes; 0 takes as many as possible that divide `lanes`.
      data: devices across the batch; 0 is as many as are left, but one on the CPU of a single
        process, whose devices share its cores.
      fsdp: devices across the batch and the weights.
      tensor: devices across the weights.
      lanes: size of a population.
      devices: of a topology to compile for; empty: the devices of this machine.

    Raises:
      ValueError: the mesh needs more devices than there are, or its seed axis does not divide
        the lanes, or its devices are CPUs that would sum wrongly.
    """
    devices = list(devices) or jax.devices()
    check_sums(devices[0].platform)
    if not seed:
        seed = _most_across_lanes(len(devices) // (max(data, 1) * fsdp * tensor), lanes, devices)
    if not data:
        left = len(devices) // (seed * fsdp * tensor)
        shared = len({d.process_index for d in devices}) == 1 and devices[0].platform == "cpu"
        data = 1 if shared else max(left, 1)
    shape = (seed, data, fsdp, tensor)
    _check_shape(shape, lanes, devices)
    chosen = _laid_out(shape, devices[: math.prod(shape)])
    return Mesh(chosen, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _most_across_lanes(most: int, lanes: int, devices: Sequence[jax.Device]) -> int:
    """The largest seed axis, at most `most`, that divides the lanes."""
    # With several processes, each needs its devices in use; `_check_shape` says why TPUs do.
    some = jax.process_count() == 1 and devices[0].platform != "tpu"
    fits = (n for n in range(1, most + 1) if lanes % n == 0 and (some or most % n == 0))
    return max(fits, default=1)


def _check_shape(
    shape: tuple[int, int, int, int], lanes: int, devices: Sequence[jax.Device]
) -> None:
    """Refuses the shape of a mesh that these devices or lanes cannot have."""
    needed = math.prod(shape)
    if needed > len(devices):
        raise ValueError(
            f"mesh seed x data x fsdp x tensor = {shape} needs {needed} devices, "
            f"found {len(devices)} ({devices[0].platform}): make config.mesh smaller"
        )
    # Over 6 of 8 chips the TPU compiler refuses a sum, or aborts the process (libtpu 0.0.52).
    if len(devices) % needed and devices[0].platform == "tpu":
        raise ValueError(
            f"mesh seed x data x fsdp x tensor = {shape} takes {needed} of {len(devices)} chips, "
            "and programs of a TPU span all of them or an even share: change config.mesh"
        )
    if needed < len(devices) and len({device.process_index for device in devices}) > 1:
        raise ValueError(
            f"mesh seed x data x fsdp x tensor = {shape} leaves {len(devices) - needed} of "
            f"{len(devices)} devices out, and a run of several processes needs all: change "
            "config.mesh"
        )
    if lanes % shape[0]:
        raise ValueError(
            f"config.mesh.seed {shape[0]} does not divide {lanes} lanes: change it, compute.lanes "
            "or a row's train.lanes"
        )


def idle(mesh: Mesh, num_devices: int) -> str:
    """Says how many accelerators a mesh leaves idle; "" if none."""
    if mesh.size == num_devices or mesh.devices.flat[0].platform == "cpu":
        return ""
    return f"{num_devices - mesh.size} of {num_devices} devices are idle: see config.mesh"


def lane_mesh(mesh: Mesh) -> Mesh:
    """The same devices as one lane: the mesh on which a single model is loaded and evaluated.

    On the CPU of a single process it has only the devices of the first lane. CPU devices share
    cores, so one is as fast as several that wait for each other, which once deadlocked.
    """
    shared = jax.process_count() == 1 and mesh.devices.flat[0].platform == "cpu"
    devices = mesh.devices[:1] if shared else mesh.devices.reshape(1, -1, *mesh.devices.shape[2:])
    return Mesh(devices, AXES, axis_types=mesh.axis_types)


def loop_mesh(mesh: Mesh, num_parts: int) -> Mesh:
    """The same devices, with one copy of the weights on each `num_parts` of them.

    Their order stays, so that programs on this mesh take arrays that lie on the other.

    Args:
      mesh: of one lane.
      num_parts: fsdp times tensor of the new mesh; `tensor` stays, `data` has the others.
    """
    tensor = mesh.shape["tensor"]
    devices = mesh.devices.reshape(1, -1, num_parts // tensor, tensor)
    return Mesh(devices, AXES, axis_types=mesh.axis_types)


def params_spec(params: Any, mesh: Mesh | AbstractMesh, *, lanes: bool) -> Any:
    """PartitionSpec of every leaf of a parameter or adapter tree.

    Args:
      params: a nested dict whose paths end like those of `transformer`; values need a shape.
      mesh: the mesh for the tree.
      lanes: whether every leaf has a leading axis of lanes, split over `seed`.

    Returns:
      The same tree with a PartitionSpec at each leaf.

    Raises:
      ValueError: the table has no rule for a path.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        fitted = _fit(rule(name), leaf.shape[1:] if lanes else leaf.shape, mesh)
        return P("seed", *fitted) if lanes else fitted

    return jax.tree_util.tree_map_with_path(spec, params)


def state_spec(state: Any, mesh: Any, *, lanes: bool) -> Any:
    """PartitionSpec of every leaf of parameters and optimizer state, as for `params_spec`.

    A moment is split as its parameter is; leaves without a parameter's shape (counts, Adafactor's
    row and column means) are small, and replicated.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        names = [str(part.key) for part in path if hasattr(part, "key")]
        shape, found = leaf.shape[lanes:], _rule("/".join(names))
        known = found is not None and len(shape) == len(found.axes) + ("layers" in names)
        fitted = _fit(found, shape, mesh) if found is not None and known else P()
        return P("seed", *fitted) if lanes else fitted

    return jax.tree_util.tree_map_with_path(spec, state)


def place(params: Any, mesh: Mesh, *, lanes: bool) -> Any:
    """Puts a tree on the mesh as `params_spec` says."""
    return jax.tree.map(_put, params, named(params_spec(params, mesh, lanes=lanes), mesh))


def named(specs: Any, mesh: Mesh) -> Any:
    """The same tree with a NamedSharding at each leaf."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, P))


def place_lanes(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays [lanes, ...] on the mesh, lanes over `seed`; each lane is on one device."""
    return _put_all(tree, NamedSharding(mesh, P("seed")))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicates arrays on every device."""
    return _put_all(tree, NamedSharding(mesh, P()))


def map_devices(
    function: Callable[..., Any], by_lane: tuple[Any, ...], shared: tuple[Any, ...]
) -> Any:
    """Runs a single-device program on every device of this process, each on its own lanes.

    A program over all devices is compiled differently from one for a single device, which changes
    rounding; this program is the same for any number of devices.

    Args:
      function: takes one device's part of both; returns leaves [lanes of the device, ...].
      by_lane: trees of leaves [lanes, ...] as `place_lanes` puts them.
      shared: trees of leaves that are replicated, or not yet on a device.

    Returns:
      The results as leaves [lanes, ...], split over the mesh like `by_lane`.
    """
    first = jax.tree.leaves(by_lane)[0]

    def on(device: jax.Device, tree: Any) -> Any:
        def part(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array):
                return leaf
            return next(s.data for s in leaf.addressable_shards if s.device == device)

        return jax.tree.map(part, tree)

    devices = [shard.device for shard in first.addressable_shards]
    # Slice before anything runs: a function that donates one device's part deletes the whole array.
    parts = [(*on(device, by_lane), *on(device, shared)) for device in devices]
    found = [function(*part) for part in parts]

    def joined(*parts: jax.Array) -> jax.Array:
        shape = (first.shape[0], *parts[0].shape[1:])
        where = NamedSharding(first.sharding.mesh, P("seed"))
        return jax.make_array_from_single_device_arrays(shape, where, list(parts))

    return jax.tree.map(joined, *found)


def abstract(tree: Any, specs: Any, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a tree, to compile programs without arrays.

    Args:
      tree: leaves with a shape and a dtype.
      specs: the same tree of PartitionSpecs, or one for all leaves.
      mesh: the mesh for the tree.
    """
    if isinstance(specs, P):
        specs = jax.tree.map(lambda _: specs, tree)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        named(specs, mesh),
    )


def place_batch(batch: Any, mesh: Mesh, *, lanes: bool) -> Any:
    """Puts [lanes, steps, B, ...] (or [B, ...]) arrays on the mesh, B split over data and fsdp."""
    return _put_all(batch, NamedSharding(mesh, batch_spec(lanes=lanes)))


def batch_spec(*, lanes: bool) -> P:
    """How `place_batch` splits."""
    return P("seed", None, ("data", "fsdp")) if lanes else P(("data", "fsdp"))


def to_host(tree: Any) -> Any:
    """Whole arrays on every host (an all-gather where needed); all processes must call it."""

    def leaf(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            if not array.is_fully_replicated:
                return np.asarray(multihost_utils.process_allgather(array, tiled=True))
            array = array.addressable_data(0)
        return np.asarray(array)

    return jax.tree.map(leaf, tree)


def _put_all(tree: Any, where: NamedSharding) -> Any:
    return jax.tree.map(lambda array: _put(array, where), tree)


def _put(array: Any, where: NamedSharding) -> jax.Array:
    """Puts one array on the mesh; a host array must be equal in all processes."""
    local = not isinstance(array, jax.Array) or array.is_fully_addressable
    if where.is_fully_addressable or not local:
        return jax.device_put(array, where)
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(array), where))
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def _laid_out(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices in the mesh's shape; on a TPU slice its axes follow the links between chips."""
    places = [getattr(device, "coords", ()) for device in devices]
    # Only chips that fill a box can be ordered by their links.
    if math.prod(len(set(side)) for side in zip(*places, strict=True)) == len(devices) > 1:
        if (blocks := _in_blocks(shape, devices)) is not None:
            return blocks
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.array(devices).reshape(shape)


def _in_blocks(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray | None:
    """Chips of a slice with each group along `tensor` in a block, where `tensor` alone splits.

    A chip has a link to a neighbour on every side of a block, and only one or two along a line, of
    which `create_device_mesh` makes groups. None: `fsdp` splits too, or no block fits.
    """
    *_, fsdp, tensor = shape
    sides = [max(place) + 1 for place in zip(*(d.coords for d in devices), strict=True)]
    if fsdp > 1 or math.prod(sides) != len(devices):
        return None
    block = [1] * len(sides)
    while (left := tensor // math.prod(block)) > 1:
        factor = next(n for n in range(2, left + 1) if left % n == 0)
        fitting = [i for i, side in enumerate(sides) if side % (block[i] * factor) == 0]
        if not fitting:
            return None
        block[min(fitting, key=lambda i: block[i])] *= factor
    placed = np.empty(sides, object)
    for device in devices:
        placed[tuple(device.coords)] = device
    split = placed.reshape([n for s, b in zip(sides, block, strict=True) for n in (s // b, b)])
    order = [*range(0, split.ndim, 2), *range(1, split.ndim, 2)]
    return split.transpose(order).reshape(shape)


def rule(name: str) -> Rule:
    """The rule for a parameter's path, such as layers/mlp/up/kernel.

    Raises:
      ValueError: the table has no rule for it.
    """
    if found := _rule(name):
        return found
    raise ValueError(f"no sharding rule for parameter {name}: add it to sharding._TABLE")


def _rule(name: str) -> Rule | None:
    return next((rule for rule in _TABLE if re.search(f"({rule.pattern})$", name)), None)


def _fit(rule: Rule, shape: tuple[int, ...], mesh: Any) -> P:
    """Picks for each dimension the first axis that divides it; a leading one counts layers."""
    leading = (None,) * (len(shape) - len(rule.axes))
    dims = shape[len(leading) :]
    fitted = (first_fit(axes, dim, mesh) for axes, dim in zip(rule.axes, dims, strict=True))
    return P(*leading, *fitted)


def first_fit(axes: Sequence[str], size: int, mesh: Mesh | AbstractMesh) -> str | None:
    """The first of these axes that can split a dimension of that size, or None."""
    for axis in axes:
        if mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0:
            return axis
    return None
