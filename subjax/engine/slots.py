"""Slots of the token loop: each holds one row, and free slots take the next rows.

Their number says how devices best share the work of a step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from subjax.nn import activation_sharding, sharding, transformer
from subjax.nn import precision as precisions
from subjax.nn.architecture import Architecture

# A chip reads its memory about ten times as fast as it sends: see `runtime.chips`.
_SLOWER_LINKS = 10
# Bytes of weights on a device in a token loop. They are laid out for it in about four times the
# room, and the smallest accelerators have 16 GB.
_MOST_WEIGHTS = 2.5e9


class Prompts(NamedTuple):
    """Prefill results of every distinct prompt, in blocks of those that were read together.

    Blocks are an axis of their own, so that writing one moves no other between devices.
    """

    hidden: Float[Array, "blocks B D"]  # predicts the first token
    cache: Any  # keys and values [blocks, B, ...] of blocks as in `transformer.decode_cache`


class Rows(NamedTuple):
    """Every row before its first token."""

    prompt: Int[Array, " N"]  # place of the row's prompt: block times B, plus place in the block
    lengths: Int[Array, " N"]  # of its prompt
    keys: Key[Array, " N"]
    temperatures: Float[Array, " N"] | None = None  # None: all rows have the same
    start: Int[Array, " N"] | None = None  # first state in the grammar


class Slots(NamedTuple):
    """The row in each slot, and the next row."""

    row: Int[Array, " S"]  # -1 where the slot is free
    step: Int[Array, " S"]  # tokens of the row drawn so far
    hidden: Float[Array, "S D"]  # predicts the row's next token
    cache: Any  # keys and values as in `Prompts`, with T + new positions
    next_row: Int[Array, ""]
    state: Int[Array, " S"] | None = None  # the row's state in the grammar


def padded(tree: Any, num_rows: int) -> Any:
    """Arrays of rows, repeated up to `num_rows`; the values of the added rows are never used."""

    def leaf(array: Array) -> Array:
        return jnp.concatenate([array, jnp.broadcast_to(array[:1], (num_rows - len(array),))])

    return jax.tree.map(leaf, tree)


def empty(num_slots: int, length: int, prompts: Prompts, rows: Rows) -> Slots:
    """Free slots, S of them, for rows of a length T + new."""

    def room(leaf: Array) -> Array:
        return jnp.zeros((num_slots, *leaf.shape[2:-2], length, leaf.shape[-1]), leaf.dtype)

    return Slots(
        row=jnp.full(num_slots, -1),
        step=jnp.zeros(num_slots, int),
        hidden=jnp.zeros_like(prompts.hidden, shape=(num_slots, prompts.hidden.shape[-1])),
        cache=activation_sharding.constrain_cache(jax.tree.map(room, prompts.cache)),
        next_row=jnp.int32(0),
        state=None if rows.start is None else jnp.zeros_like(rows.start, shape=num_slots),
    )


def part_size(num_slots: int) -> int:
    """Slots to refill at once, when so many are free: a refill copies much."""
    return max(num_slots // 8, 1)


def refill(slots: Slots, prompts: Prompts, rows: Rows, num_rows: Int[Array, ""]) -> Slots:
    """Gives free slots the next rows, part by part, until too few slots are free or no row is left.

    Args:
      slots: the current slots.
      prompts: the prompts of all rows.
      rows: rows in the order in which slots take them.
      num_rows: number of rows; later ones are padding.
    """

    def due(slots: Slots) -> Array:
        num_free = jnp.sum(slots.row < 0)
        return (num_free >= part_size(len(slots.row))) & (slots.next_row < num_rows)

    def take(state: tuple[Slots, Array]) -> tuple[Slots, Array]:
        slots = _take(state[0], prompts, rows, num_rows)
        return slots, due(slots)

    return jax.lax.while_loop(lambda state: state[1], take, (slots, due(slots)))[0]


def _take(slots: Slots, prompts: Prompts, rows: Rows, num_rows: Int[Array, ""]) -> Slots:
    """Gives one part of the free slots the next rows, if any are left."""
    num_slots = len(slots.row)
    part = part_size(num_slots)
    row = slots.next_row + jnp.arange(part)
    free = jnp.nonzero(slots.row < 0, size=part, fill_value=num_slots)[0]
    slot = jnp.where(row < num_rows, free, num_slots)  # index num_slots is dropped
    known = jnp.minimum(row, len(rows.prompt) - 1)
    source = jnp.divmod(rows.prompt[known], prompts.hidden.shape[1])

    def copy(new: Array, old: Array) -> Array:
        # Prompts may be on any device: all-gather these few, and each device keeps its slots' rows.
        few = activation_sharding.whole_rows(new[source])
        return old.at[slot, ..., : new.shape[-2], :].set(few, mode="drop")

    return Slots(
        row=slots.row.at[slot].set(row, mode="drop"),
        step=slots.step.at[slot].set(0, mode="drop"),
        hidden=slots.hidden.at[slot].set(prompts.hidden[source], mode="drop"),
        cache=jax.tree.map(copy, prompts.cache, slots.cache),
        next_row=slots.next_row + jnp.sum(slot < num_slots, dtype=jnp.int32),
        state=jax.tree.map(
            lambda start, old: old.at[slot].set(start[known], mode="drop"), rows.start, slots.state
        ),
    )


def narrowed(slots: Slots, num_slots: int) -> Slots:
    """The rows of slots in fewer slots, of which there must be enough."""
    kept = jnp.argsort(slots.row < 0)[:num_slots]  # stable: those with a row come first, in order

    def leaf(array: Array) -> Array:
        return array[kept] if array.ndim else array

    few = jax.tree.map(leaf, slots)
    hidden, cache = activation_sharding.constrain_cache((few.hidden, few.cache))
    return few._replace(hidden=hidden, cache=cache)


def loop_mesh(arch: Architecture, mesh: Mesh, num_slots: int, precision: str) -> Mesh:
    """The devices of a mesh of one lane, laid out for the shortest step of a token loop.

    A mesh that is best for training, which reads all weights for many tokens, need not be for this.
    """
    sizes = {"num_devices": mesh.size, "tensor": mesh.shape["tensor"]}
    return sharding.loop_mesh(mesh, loop_parts(arch, num_slots, precision, **sizes))


def loop_parts(
    arch: Architecture, num_slots: int, precision: str, *, num_devices: int, tensor: int
) -> int:
    """Devices that share one copy of the weights in a token loop, for the shortest step.

    The more they are, the fewer weights each of them reads, and the more activations it exchanges.

    Args:
      arch: shapes of the model.
      num_slots: rows of a step.
      precision: a name of `precision.PRECISIONS`.
      num_devices: all devices.
      tensor: the result is a multiple of it.
    """
    dtype, operands = precisions.PRECISIONS[precision]
    weights = jnp.dtype(operands).itemsize * transformer.num_params(arch)
    # A layer gathers and scatters its rows twice.
    row = 4 * jnp.dtype(dtype).itemsize * arch.num_layers * arch.width

    def step(parts: int) -> float:
        return weights / parts + _SLOWER_LINKS * row * num_slots / num_devices * (parts - 1)

    def fits(parts: int) -> bool:
        even = num_devices % parts == 0 and num_slots % (num_devices // parts) == 0
        return even and weights / parts <= _MOST_WEIGHTS

    fitting = filter(fits, range(tensor, num_devices, tensor))
    return min([*fitting, num_devices], key=step)
