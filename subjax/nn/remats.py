"""Activation checkpointing by name: what a layer stores for the backward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

_PROJECTION = "projection"
_GATHERING = ("sharding_constraint", "custom_vjp_call", "custom_vjp_call_jaxpr")

# Stored are the rounded results of products with weights, not the wide sums before rounding.
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

# Without this, all-gathered weights would stay on every device until the backward pass.
_all_but_gathered = functools.partial(
    jax.checkpoint,
    prevent_cse=False,  # layers are scanned
    policy=lambda primitive, *_, **__: primitive.name not in _GATHERING,
)


def projected(y: Array) -> Array:
    """Marks a product with weights, which "dots" stores and "offload" moves to the host."""
    return checkpoint_name(y, _PROJECTION)


def low_rank(y: Array) -> Array:
    """Marks a product with an adapter's `a`: "none" stores it on every mesh, the others never."""
    return checkpoint_name(y, "low_rank")


def wrapped(layer: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A layer with activation checkpointing, by a name of `REMATS`.

    If `fsdp` splits weights, "none" still all-gathers them again in the backward pass.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if name == "none" and not mesh.empty and mesh.shape["fsdp"] > 1:
        return _all_but_gathered(layer)
    return REMATS[name](layer)
