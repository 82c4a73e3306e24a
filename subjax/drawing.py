"""Draws a token for each row from scores over the vocabulary: grammar, temperature, log-probs.

The axis letters are those of `transformer`; A counts the tokens that a grammar allows anywhere.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from subjax import layouts, rng
from subjax.precision import Head


class Grammar(NamedTuple):
    """Tokens that are allowed anywhere, and where each is: the scores of all others are not made.

    Attributes:
      ids: [A].
      allowed: [new, A], by position of the new token.
    """

    ids: Int[Array, " A"] | Int[np.ndarray, " A"]
    allowed: Bool[Array, "new A"] | Bool[np.ndarray, "new A"]


class Drawn(NamedTuple):
    """What a draw gives; None is what was not asked for.

    Log-probs, in nats, are of the model's own distribution, whatever the temperature; under a
    grammar of that distribution over the tokens that are allowed at the position.

    Attributes:
      tokens: ids.
      log_probs: of those tokens.
      top_ids: the K likeliest tokens, likeliest first.
      top_log_probs: their log-probs; minus infinity where a grammar allows fewer.
    """

    tokens: Int[Array, "*B"]
    log_probs: Float[Array, "*B"] | None = None
    top_ids: Int[Array, "*B K"] | None = None
    top_log_probs: Float[Array, "*B K"] | None = None


def grammar(allowed: Bool[np.ndarray, "new V"]) -> Grammar:
    """The same table without the tokens that are allowed nowhere."""
    ids = np.flatnonzero(allowed.any(axis=0))
    return Grammar(ids.astype(np.int32), allowed[:, ids])


def output_matrix(head: Head, rules: Grammar | None) -> Head:
    """The rows of an output matrix that are ever allowed, laid out for a token loop."""
    kernel = head.kernel if rules is None else head.kernel[rules.ids]
    [kernel] = layouts.constrain_decoding({"head/kernel": kernel}).values()
    return head._replace(kernel=kernel)


def empty(*shape: int, log_probs: bool, num_top: int) -> Drawn:
    """Zeros for as many draws, of the same arrays as `draw` returns them."""
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
    *,
    temperature: float | Float[Array, " B"],
    log_probs: bool = False,
    num_top: int = 0,
) -> Drawn:
    """Draws each row's token at `step`, with the noise of its key and that step.

    Args:
      head: what `output_matrix` returns.
      hidden: predicts the tokens.
      keys: of the rows, as `rng.row_keys` makes them.
      step: tokens of the row drawn before.
      rules: what is allowed, or None.
      temperature: of all rows or of each; 1.0 samples the model's distribution, 0.0 is greedy.
      log_probs: whether log p of each token is wanted.
      num_top: K, so many likeliest tokens are wanted; 0: none.
    """
    scores = layouts.spread(head.scores(layouts.gathered(hidden)))
    scores = layouts.constrain_cache(layouts.resting(scores))
    if rules is not None:
        scores = jnp.where(rules.allowed[step], scores, -jnp.inf)
    best = jnp.argmax(_noisy(scores, keys, step, temperature), axis=-1).astype(jnp.int32)

    def named(indices: Int[Array, "*B"]) -> Int[Array, "*B"]:
        return indices if rules is None else jnp.asarray(rules.ids)[indices].astype(jnp.int32)

    drawn = Drawn(named(best))
    if log_probs or num_top:
        ranked = layouts.constrain_cache(jax.nn.log_softmax(scores, axis=-1))
        if log_probs:
            chosen = jnp.take_along_axis(ranked, best[:, None], axis=-1)[:, 0]
            drawn = drawn._replace(log_probs=chosen)
        if num_top:
            top, indices = jax.lax.top_k(ranked, num_top)
            drawn = drawn._replace(top_ids=named(indices), top_log_probs=top)
    return drawn


def _noisy(
    scores: Float[Array, "B A"],
    keys: Key[Array, " B"],
    step: Int[Array, " B"],
    temperature: float | Float[Array, " B"],
) -> Float[Array, "B A"]:
    """Scores of which the largest is the token drawn."""
    shared = jnp.ndim(temperature) == 0
    if shared and temperature == 0.0:
        return scores
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:]))(
        rng.token_keys(keys, step)
    )
    if shared:
        return scores / temperature + noise
    own = jnp.asarray(temperature)[:, None]
    return jnp.where(own > 0, scores / own + noise, scores)
