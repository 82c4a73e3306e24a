"""Keys of sampled tokens: named by what is sampled, never by where or when it ran.

A token's key depends on the sampling seed, lineage, prompt id, sample id and position, and on
nothing else: not on arm, batch, slot, host or mesh. So a row comes out the same however the work
was cut, and arms that share prompts share their noise.
"""

import jax
from jaxtyping import Array, Int, Key


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
