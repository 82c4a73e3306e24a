"""Draws a token for each row from scores over the vocabulary: grammar, temperature, log-probs.

A token's key depends on the sampling seed, lineage, prompt id, sample id and position, and on
nothing else: not on arm, batch, slot, process or mesh. So a row is the same however the work is
split, and arms that share prompts share their noise.

The axis letters are those of `transformer`; A counts the tokens that a grammar allows anywhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from subjax.nn import activation_sharding, functional
from subjax.nn.precision import Head
from subjax.tokens.grammars import Grammar


class Drawn(NamedTuple):
    """The results of a draw; None for results that were not requested.

    Log-probs, in nats, are those of the model's own distribution, at any temperature; with a
    grammar, renormalised over the tokens that are allowed at the position.

    Attributes:
      tokens: drawn token ids.
      log_probs: log-probs of those tokens.
      top_ids: the K likeliest tokens, likeliest first.
      top_log_probs: their log-probs; minus infinity if a grammar allows fewer.
    """

    tokens: Int[Array, "*B"]
    log_probs: Float[Array, "*B"] | None = None
    top_ids: Int[Array, "*B K"] | None = None
    top_log_probs: Float[Array, "*B K"] | None = None


def check(rules: Grammar, num_rows: int, vocab_size: int, eos_ids: Sequence[int]) -> None:
    """Refuses a grammar that is malformed, is for other rows, or ends rows with other tokens.

    Raises:
      ValueError: says what is wrong with it.
    """
    size = (len(rules.start), *rules.allowed.shape, *rules.next_state.shape)
    states, num_ids = rules.allowed.shape
    if size != (num_rows, states, num_ids, states, num_ids) or len(rules.ids) != num_ids:
        raise ValueError(
            f"a grammar of {len(rules.ids)} tokens has tables {rules.allowed.shape} and "
            f"{rules.next_state.shape} and {len(rules.start)} starts: give [states, tokens] for "
            f"both, and {num_rows} starts, one for each row"
        )
    ids = np.asarray(rules.ids)
    if not num_ids or (np.diff(ids) <= 0).any() or ids[0] < 0 or ids[-1] >= vocab_size:
        raise ValueError(
            f"a grammar's tokens must be ascending ids below {vocab_size}, one or more"
        )
    for name, least in {"start": 0, "next_state": -1}.items():
        found = np.asarray(getattr(rules, name))
        if not ((least <= found) & (found < states)).all():
            raise ValueError(
                f"a grammar's {name} is {found.min()} to {found.max()}, but must be {least} to "
                f"{states - 1}, the last of its states"
            )
    last = np.asarray(rules.allowed) & (np.asarray(rules.next_state) < 0)
    if others := set(ids[last.any(axis=0)].tolist()) - set(eos_ids):
        raise ValueError(
            f"a grammar ends rows with the tokens {sorted(others)}, which are not among the ending "
            f"ones, {sorted(eos_ids)}: let them lead to another state"
        )


def checked_temperatures(
    temperatures: Sequence[float] | None, num_rows: int
) -> Float[np.ndarray, " N"] | None:
    """Temperatures of rows as an array; None if none are given.

    Raises:
      ValueError: not one for each row, or not finite and at least 0.
    """
    if temperatures is None:
        return None
    found = np.asarray(temperatures, np.float32)
    if found.shape != (num_rows,) or not (np.isfinite(found) & (found >= 0)).all():
        raise ValueError(
            f"temperatures must be {num_rows}, one for each row, finite and at least 0"
        )
    return found


def output_matrix(head: Head, rules: Grammar | None) -> Head:
    """The rows of an output matrix that a grammar ever allows, sharded for a token loop."""
    kernel = head.kernel if rules is None else head.kernel[rules.ids]
    [kernel] = activation_sharding.constrain_decoding({"head/kernel": kernel}).values()
    return head._replace(kernel=kernel)


def empty(*shape: int, log_probs: bool, num_top: int) -> Drawn:
    """Zeros for so many draws, with the arrays that `draw` returns."""
    return Drawn(
        tokens=jnp.zeros(shape, jnp.int32),
        log_probs=jnp.zeros(shape) if log_probs else None,
        top_ids=jnp.zeros((*shape, num_top), jnp.int32) if num_top else None,
        top_log_probs=jnp.zeros((*shape, num_top)) if num_top else None,
    )


def draw(
    head: Head,
    hidden: Float[Array, "B D"],
    keys: Key[Array, " B"],
    step: Int[Array, " B"],
    rules: Grammar | None,
    state: Int[Array, " B"] | None,
    *,
    temperature: float | Float[Array, " B"],
    log_probs: bool = False,
    num_top: int = 0,
) -> tuple[Drawn, Int[Array, " B"] | None]:
    """Draws each row's token at `step`, with the noise of its key and that step.

    Args:
      head: result of `output_matrix`.
      hidden: hidden states that predict the tokens.
      keys: one per row, from `row_keys`.
      step: tokens of the row drawn before.
      rules: the grammar, or None.
      state: each row's state in the grammar, or None.
      temperature: one for all rows or one per row; 1.0 samples the model's distribution, 0.0 is
        greedy.
      log_probs: whether to return log p of each token.
      num_top: K, number of likeliest tokens to return; 0: none.

    Returns:
      The draws, and the next states.
    """
    scores = activation_sharding.scored(head.scores(activation_sharding.gathered(hidden)))
    if rules is not None:
        scores = jnp.where(rules.allowed[state], scores, -jnp.inf)
    best = _first_largest(_noisy(scores, keys, step, temperature))

    def named(indices: Int[Array, "*B"]) -> Int[Array, "*B"]:
        return indices if rules is None else jnp.asarray(rules.ids)[indices].astype(jnp.int32)

    drawn = Drawn(named(best))
    if log_probs or num_top:
        ranked = activation_sharding.constrain_cache(jax.nn.log_softmax(scores, axis=-1))
        if log_probs:
            chosen = jnp.take_along_axis(ranked, best[:, None], axis=-1)[:, 0]
            drawn = drawn._replace(log_probs=chosen)
        if num_top:
            top, indices = jax.lax.top_k(ranked, num_top)
            drawn = drawn._replace(top_ids=named(indices), top_log_probs=top)
    return drawn, state if rules is None else jnp.asarray(rules.next_state)[state, best]


def _first_largest(scores: Float[Array, "B A"]) -> Int[Array, " B"]:
    """The place of each row's largest score, the first of equal ones.

    On CPUs jnp.argmax fuses with what makes the scores, and computes all of it one by one: six
    times as slow over a vocabulary.
    """
    largest = jnp.max(scores, axis=-1, keepdims=True)
    return jnp.argmax(scores == largest, axis=-1).astype(jnp.int32)


def _noisy(
    scores: Float[Array, "B A"],
    keys: Key[Array, " B"],
    step: Int[Array, " B"],
    temperature: float | Float[Array, " B"],
) -> Float[Array, "B A"]:
    """Scores with noise; the token with the largest one is drawn."""
    shared = jnp.ndim(temperature) == 0
    if shared and temperature == 0.0:
        return scores
    noise = functional.gumbel(token_keys(keys, step), scores.shape[1])
    if shared:
        return scores / temperature + noise
    own = jnp.asarray(temperature)[:, None]
    return jnp.where(own > 0, scores / own + noise, scores)


def row_keys(
    seed: int, lineage: int, prompt_ids: Int[Array, " N"], sample_ids: Int[Array, " N"]
) -> Key[Array, " N"]:
    """One key per sampled row.

    Args:
      seed: sampling seed, uint32.
      lineage: which replication this is.
      prompt_ids: id of each row's prompt.
      sample_ids: which sample of that prompt each row is.

    Returns:
      Typed keys; `token_keys` folds the position in.
    """
    base = jax.random.fold_in(jax.random.key(seed), lineage)

    def one(prompt_id: Array, sample_id: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(base, prompt_id), sample_id)

    return jax.vmap(one)(prompt_ids, sample_ids)


def token_keys(keys: Key[Array, " N"], positions: Int[Array, " N"]) -> Key[Array, " N"]:
    """The key of the token that each row draws at `positions` (0 is the first new token)."""
    return jax.vmap(jax.random.fold_in)(keys, positions)
