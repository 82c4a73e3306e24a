"""Seeds by name: every random stream outside jax has a name, not a number.

A seed is a pure function of its names, without state, so that adding a lineage, an arm or a stage
never changes the randomness of another.
"""

import hashlib
import json


def seed(*names: str | int) -> int:
    """Returns the seed of a named random stream, in [0, 2**32), for numpy and jax alike.

    The names are hashed (sha256) as a JSON list, so types and boundaries count:
    `seed("a", "bc")`, `seed("ab", "c")`, `seed(1)` and `seed("1")` all differ.
    Raises ValueError for no name at all and for a name that is neither a string nor an integer.
    """
    if not names:
        raise ValueError('seed() needs at least one name; give a string, e.g. seed("generate", 0)')
    for name in names:
        # No floats or booleans: 1, 1.0 and True are equal in Python but not in JSON.
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError(f"seed name {name!r} must be a string or an integer; write it as one")
    encoded = json.dumps(names, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(encoded.encode("ascii")).digest()[:4], "big")
