"""Rows that are decoded side by side: each slot holds one, and free slots take the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from subjax.nn import activation_sharding


class Prompts(NamedTuple):
    """What is known of every distinct prompt."""

    hidden: Float[Array, "R D"]  # predicts the first token
    cache: Any  # keys and values [R, K, T, H] or [R, K, L, T, H], see `transformer.decode_cache`
    lengths: Int[Array, " R"]


class Rows(NamedTuple):
    """What is known of every row before its first token."""

    prompt: Int[Array, " N"]  # which one it continues
    keys: Key[Array, " N"]
    temperatures: Float[Array, " N"] | None = None  # where rows have their own
    start: Int[Array, " N"] | None = None  # state under a grammar


class Slots(NamedTuple):
    """What is in the slots, and which row is next."""

    row: Int[Array, " S"]  # -1 where the slot is free
    step: Int[Array, " S"]  # tokens of the row drawn so far
    hidden: Float[Array, "S D"]  # predicts its next token
    cache: Any  # likewise, with T + new positions
    next_row: Int[Array, ""]
    state: Int[Array, " S"] | None = None  # of the row under a grammar


def empty(num_slots: int, length: int, prompts: Prompts, rows: Rows) -> Slots:
    """Free slots, S of them, for rows of a length T + new."""

    def room(leaf: Array) -> Array:
        return jnp.zeros((num_slots, *leaf.shape[1:-2], length, leaf.shape[-1]), leaf.dtype)

    return Slots(
        row=jnp.full(num_slots, -1),
        step=jnp.zeros(num_slots, int),
        hidden=jnp.zeros_like(prompts.hidden, shape=(num_slots, prompts.hidden.shape[1])),
        cache=activation_sharding.constrain_cache(jax.tree.map(room, prompts.cache)),
        next_row=jnp.int32(0),
        state=None if rows.start is None else jnp.zeros_like(rows.start, shape=num_slots),
    )


def part_size(num_slots: int) -> int:
    """Slots that are refilled at a time, and that are free before any is: it copies much."""
    return max(num_slots // 8, 1)


def refill(slots: Slots, prompts: Prompts, rows: Rows, num_rows: Int[Array, ""]) -> Slots:
    """Gives free slots the next rows, part by part, until too few slots are free or no row is left.

    Args:
      slots: as they are.
      prompts: of all rows.
      rows: in the order in which slots take them.
      num_rows: that there are; those behind are padding.
    """

    def due(slots: Slots) -> Array:
        num_free = jnp.sum(slots.row < 0)
        return (num_free >= part_size(len(slots.row))) & (slots.next_row < num_rows)

    def take(state: tuple[Slots, Array]) -> tuple[Slots, Array]:
        slots = _take(state[0], prompts, rows, num_rows)
        return slots, due(slots)

    return jax.lax.while_loop(lambda state: state[1], take, (slots, due(slots)))[0]


def _take(slots: Slots, prompts: Prompts, rows: Rows, num_rows: Int[Array, ""]) -> Slots:
    """One part of the free slots takes the next rows, as far as there are any."""
    num_slots = len(slots.row)
    part = part_size(num_slots)
    row = slots.next_row + jnp.arange(part)
    free = jnp.nonzero(slots.row < 0, size=part, fill_value=num_slots)[0]
    slot = jnp.where(row < num_rows, free, num_slots)  # that one is none: dropped
    known = jnp.minimum(row, len(rows.prompt) - 1)
    source = rows.prompt[known]

    def copy(new: Array, old: Array) -> Array:
        # Prompts lie anywhere: every device gets these few, and keeps what its own slots take.
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
