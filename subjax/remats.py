"""What a layer keeps for the backward pass, and what that computes again, by name."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

_PROJECTION = "projection"

# Kept are the narrowed results of products with weights, not the wide sums that they are cut from.
REMATS: dict[str, Callable[[Any], Any]] = {
    "none": lambda layer: layer,
    "full": jax.checkpoint,
    "dots": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(_PROJECTION)
    ),
    "offload": functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_PROJECTION],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    ),
}


def projected(y: Array) -> Array:
    """Marks a product with weights, which "dots" keeps and "offload" moves to the host."""
    return checkpoint_name(y, _PROJECTION)


def wrapped(layer: Callable[..., Any], name: str | bool) -> Callable[..., Any]:
    """A layer whose backward pass computes again what its name in `REMATS` says.

    False and True, which older manifests hold, are "none" and "full".
    """
    if isinstance(name, bool):
        name = "full" if name else "none"
    return REMATS[name](layer)
