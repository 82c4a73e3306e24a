"""The training loss of a batch of one model, and its gradient."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from subjax.engine.optimizers import Optimizer
from subjax.nn import activation_sharding, lora, losses, transformer
from subjax.nn.architecture import Architecture
from subjax.nn.transformer import Params


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that a compiled training step depends on besides array shapes.

    Attributes:
      arch: the model.
      optimizer: how gradients become updates.
      steps: length of the schedule, in updates.
      lora_scale: alpha / rank when an adapter is trained, 0 when all weights are.
      support: token ids of soft targets if they are the same at every position; empty without
        soft targets, or if rows have their own (`soft_ids`).
      distils: online distillation: the teacher is evaluated at each step, on all tokens.
      excluded: token ids left out of that distribution.
      precision: a name of `precision.PRECISIONS`.
      remat: a name of `remats.REMATS`.
      accumulate: number of parts of a batch, whose gradients are added up; 1 for packed rows,
        which have passes.
    """

    arch: Architecture
    optimizer: Optimizer
    steps: int
    lora_scale: float = 0.0
    support: tuple[int, ...] = ()
    distils: bool = False
    excluded: tuple[int, ...] = ()
    precision: str = "float32"
    remat: str = "none"
    accumulate: int = 1

    @classmethod
    def of(cls, arch: Architecture, fields: Mapping[str, Any], **more: Any) -> "Program":
        """The program of a training row; `more` are the fields that the row does not have."""
        optimizer, steps = Optimizer.of(fields), fields["steps"]
        return cls(arch, optimizer, steps, accumulate=fields["accumulate"], **more)


def num_passes(weights: jax.Array) -> jax.Array:
    """Passes of a packed batch that have targets; they come first.

    Args:
      weights: [..., B, P, C].

    Returns:
      [...]
    """
    return jnp.sum(jnp.any(weights > 0, axis=(-3, -1)), axis=-1)


def value_and_grad(
    program: Program,
    trainable: Params,
    frozen: Params,
    teacher: Params,
    batch: Params,
    most_passes: jax.Array | None = None,
) -> tuple[jax.Array, Params]:
    """The mean loss over a batch's targets, and its gradient, which parts or passes add up.

    Args:
      program: what to compute.
      trainable: all weights or an adapter of one lane; the gradient has its shape.
      frozen: the base under an adapter, or {}.
      teacher: full weights of the teacher for online distillation, or {}.
      batch: arrays by field name, as `batching.Batches` makes them, of one lane and step.
      most_passes: passes of packed rows to compute, at least as many as have targets; None: those.
    """
    # Each part is divided by the targets of the whole batch: unequal parts add up to the mean.
    num_targets = jnp.maximum(jnp.sum(batch["weights"]), 1.0)

    def of_part(part: Params) -> tuple[jax.Array, Params]:
        found = jax.value_and_grad(_loss, argnums=1)
        return found(program, trainable, frozen, teacher, part, num_targets)

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
    if "segments" in batch:
        return _over_passes(of_part, zeros, batch, most_passes)
    if program.accumulate == 1:
        return of_part(batch)

    def add(running: Any, part: Params) -> tuple[Any, None]:
        part = jax.tree.map(activation_sharding.constrain_batch, part)
        return jax.tree.map(jnp.add, running, of_part(part)), None

    def cut(array: jax.Array) -> jax.Array:
        # Neighbours go to different parts, so that each part is split over devices as the batch is.
        return array.reshape(-1, program.accumulate, *array.shape[1:]).swapaxes(0, 1)

    found, _ = jax.lax.scan(add, zeros, jax.tree.map(cut, batch))
    return found


def _over_passes(
    of_part: Callable[[Params], tuple[jax.Array, Params]],
    zeros: tuple[jax.Array, Params],
    batch: Params,
    most_passes: jax.Array | None,
) -> tuple[jax.Array, Params]:
    """Adds up the passes of packed rows; their number is data, so that a program fits all steps."""
    own = num_passes(batch["weights"])

    def add(number: jax.Array, running: Any) -> Any:
        part = {
            name: activation_sharding.constrain_batch(
                jax.lax.dynamic_index_in_dim(array, number, 1, keepdims=False)
            )
            for name, array in batch.items()
        }
        # Where another lane has more passes, this one keeps what it has, to the bit.
        return jax.tree.map(
            lambda old, new: jnp.where(number < own, old + new, old), running, of_part(part)
        )

    # All lanes run it equally often, since devices that share a loop must agree on its end.
    return jax.lax.fori_loop(0, own if most_passes is None else most_passes, add, zeros)


def _loss(
    program: Program,
    trainable: Params,
    frozen: Params,
    teacher: Params,
    batch: Params,
    num_targets: jax.Array,
) -> jax.Array:
    if program.lora_scale:
        params, adapter = frozen, lora.scaled(trainable, program.lora_scale)
    else:
        params, adapter = trainable, None
    packed = {name: batch[name] for name in ("segments", "places") if name in batch}
    hidden = _hidden(program, params, adapter, batch["tokens"], batch["positions"], **packed)
    head = transformer.head(program.arch, params, precision=program.precision)
    if "soft_ids" in batch:
        student = losses.chosen_log_probs(hidden, head, batch["soft_ids"])
        nats = losses.forward_kl(batch["soft"], student)
    elif program.support:
        student = losses.restricted_log_probs(hidden, head, jnp.array(program.support))
        nats = losses.forward_kl(batch["soft"], student)
    elif program.distils:
        seen = _hidden(program, teacher, None, batch["teacher_tokens"], batch["teacher_positions"])
        taught = transformer.head(program.arch, teacher, precision=program.precision)
        counted = jnp.ones(program.arch.vocab_size, bool).at[jnp.array(program.excluded, int)]
        nats = losses.full_kl(seen, taught, hidden, head, counted.set(False))
    else:
        nats = -losses.log_probs(hidden, head, batch["targets"])
    return jnp.sum(nats * batch["weights"]) / num_targets


def _hidden(
    program: Program,
    params: Params,
    adapter: Params | None,
    tokens: jax.Array,
    at: jax.Array,
    **packed: jax.Array,
) -> jax.Array:
    hidden = transformer.forward(
        program.arch,
        params,
        tokens,
        adapter=adapter,
        precision=program.precision,
        remat=program.remat,
        **packed,
    )
    return losses.at_positions(hidden, at)
