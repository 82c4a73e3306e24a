"""The one training loop of language models: a jitted step over lanes, and `fit`.

Every model trains as a lane of a population. The 7B student is a population of one; the toy
world's six students are a population of six, in one compiled program. A lane never sees its
neighbours: its bytes depend on the number of lanes, not on what the others hold.
"""

import dataclasses
import functools
import math
import operator
import time
from collections.abc import Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from subjax.engine import batching, checkpoints, throughput, train_step
from subjax.engine.optimizers import Optimizer as Optimizer
from subjax.engine.train_step import Program as Program
from subjax.nn import activation_sharding, lora, sharding, transformer
from subjax.nn.transformer import Params
from subjax.runtime import processes


@dataclasses.dataclass(frozen=True)
class Training:
    """The shapes of a training.

    Attributes:
      program: what to compile.
      lanes: size of the population.
      lora_rank: rank of the adapters; 0 when all weights are trained.
      batch_size: rows per step and lane.
      num_tokens: tokens per row, T.
      num_targets: targets per row, C.
      soft: tokens of a stored distribution; 0: no distribution is stored.
      packing: how rows are packed; None: no packing.
    """

    program: Program
    lanes: int
    lora_rank: int
    batch_size: int
    num_tokens: int
    num_targets: int
    soft: int
    packing: batching.Packing | None


@dataclasses.dataclass(frozen=True)
class Progress:
    """What `fit` yields after some steps.

    Attributes:
      step: updates done so far.
      trainable: the trained tree with a leading axis of lanes; in a run of one process on the host.
      metrics: name -> [steps since the last one, lanes] (empty at step 0).
    """

    step: int
    trainable: Params
    metrics: dict[str, np.ndarray]


def fit(
    program: Program,
    trainable: Params,
    frozen: Params,
    rows: Sequence[batching.Rows],
    *,
    seeds: Sequence[int],
    batch_size: int,
    probe_steps: Sequence[int],
    steps_per_call: int,
    mesh: Mesh,
    label: str,
    teachers: Params | None = None,
    packing: batching.Packing | None = None,
    store: checkpoints.Checkpoints | None = None,
    log: throughput.Log | None = None,
) -> Generator[Progress, None, None]:
    """Trains a population and yields a `Progress` at each probe step and at the last step.

    The first `Progress` of a resumed run has all metrics since step 0.

    Args:
      program: what to compile.
      trainable: all weights or an adapter, with a leading axis of lanes; donated.
      frozen: the base under an adapter, shared by all lanes, perhaps as
        `transformer.abstract_params` holds it; {} when all weights train.
      rows: each lane's data; equal in everything but the number of rows.
      seeds: each lane's data-order seed.
      batch_size: rows per step and lane.
      probe_steps: steps after which to yield the population; 0 is before training.
      steps_per_call: largest number of updates in one call to the device.
      mesh: where to run.
      label: shown beside the progress bar.
      teachers: full weights of each lane's teacher for online distillation; `rows` hold its inputs.
      packing: how rows share longer ones; None: they do not. Refused for online distillation.
      store: saves the state of this run if it is interrupted, and restores a saved one.
      log: where times are written; None: to the progress bar only.

    Raises:
      processes.Interrupted: the run was told to stop; its state is in the store.
      ValueError: a row does not fit the packing, or the program cannot train on packed rows.
      FloatingPointError: a lane's loss is not finite; names the step.
    """
    batches = _batches(program, rows, seeds, batch_size, mesh, packing)
    stops = _stops(probe_steps, program.steps)
    with jax.set_mesh(mesh):
        placed = sharding.place(trainable, mesh, lanes=True)
        del trainable  # donated; the caller must not keep it either
        yield from _updates(
            program,
            batches,
            initial_state(program, placed),
            sharding.place(frozen, mesh, lanes=False),
            sharding.place(teachers, mesh, lanes=True) if teachers else {},
            stops=stops,
            stride=call_length(stops, steps_per_call),
            mesh=mesh,
            label=label,
            store=store,
            log=log or throughput.Log(),
        )


def _updates(
    program: Program,
    batches: batching.Batches,
    state: Any,
    frozen: Params,
    teachers: Params,
    *,
    stops: Sequence[int],
    stride: int,
    mesh: Mesh,
    label: str,
    store: checkpoints.Checkpoints | None,
    log: throughput.Log,
) -> Generator[Progress, None, None]:
    """The loop of `fit`, with all trees on the mesh."""
    _, update = _compile(program)
    work_of = functools.partial(
        throughput.Work.of,
        batches,
        program.arch,
        lora_params=_lora_params(program, state[0]),
        distils=program.distils,
    )
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    done, state, metrics = store.restore(state) if store else (0, state, {})
    if 0 in stops and not done:
        yield Progress(0, _handed_out(state[0]), {})
    measured, told = [metrics] if done else [], 0
    log.begin(program.optimizer.rate(program.steps), mesh.devices.flat, done, metrics)
    bar = tqdm(total=program.steps, initial=done, desc=label, unit="step", leave=False)
    calls = [range(first, first + stride) for first in range(done, program.steps, stride)]
    batches_of = (sharding.place_batch(batches.of(call), mesh, lanes=True) for call in calls)
    batch: Params = {}
    with bar, log:
        for call in calls:
            start = time.monotonic()
            state, metrics = update(state, frozen, teachers, batch or next(batches_of))
            # The compiler may return an equal sharding in another form, which would recompile.
            state = jax.device_put(state, layout)
            # The devices compute still; later they would wait for their next rows.
            batch, work = next(batches_of, {}), work_of(call)
            measured.append(sharding.to_host(metrics))
            _check_finite(measured[-1], call.start)
            speed = log.add(call.stop, time.monotonic() - start, work, measured[-1])
            bar.update(stride)
            bar.set_postfix({"loss": f"{measured[-1]['loss'][-1].mean():.3f}", **speed})
            if (step := call.stop) in stops:
                yield Progress(step, _handed_out(state[0]), _joined(measured[told:]))
                told = len(measured)
            if store and step < program.steps:
                _keep(store, step, state, measured)


def _handed_out(trainable: Params) -> Params:
    """A population for the caller: on the host, where slicing lanes needs no collectives.

    In a run of several processes it stays on the devices until it is written, tensor by tensor.
    """
    return jax.device_get(trainable) if jax.process_count() == 1 else trainable


def _keep(
    store: checkpoints.Checkpoints, step: int, state: Any, measured: list[dict[str, np.ndarray]]
) -> None:
    """Saves if it is time to; if the run was told to stop, saves and raises Interrupted."""
    leaving = processes.told_to_leave()
    if leaving or store.due():
        store.save(step, state, _joined(measured))
    if leaving:
        store.close()
        raise processes.Interrupted(f"saved after {step} updates")


def traced(
    program: Program, batch: Params, *, mesh: Mesh, lanes: int = 1, lora_rank: int = 0
) -> jax.stages.Traced:
    """Traces the update of `fit` from shapes: for compiling without devices or weights.

    Args:
      program: what to compile.
      batch: name -> shape and dtype [B, ...] of each array of `batching.Rows.take`, or [B, P, ...]
        of `batching.Packing.pack`.
      mesh: the mesh argument of `fit`.
      lanes: size of the population.
      lora_rank: rank of the adapters; 0 when all weights are trained.

    Returns:
      One update of all lanes, to be lowered and compiled; `jaxpr` is what it computes.
    """
    init, update = _compile(program)
    trained = base = transformer.abstract_params(program.arch)
    if lora_rank:
        trained = lora.abstract(program.arch, rank=lora_rank)
    frozen = transformer.abstract_params(program.arch, program.precision)

    def many(tree: Params, *leading: int) -> Params:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype), tree)

    def placed(tree: Params, *, lanes: bool) -> Params:
        return sharding.abstract(tree, sharding.params_spec(tree, mesh, lanes=lanes), mesh)

    with jax.set_mesh(mesh):
        trainable, moments = jax.eval_shape(init, many(trained, lanes))
        where = sharding.state_spec(moments, mesh, lanes=True)
        return update.trace(
            (placed(trainable, lanes=True), sharding.abstract(moments, where, mesh)),
            placed(frozen, lanes=False) if lora_rank else {},
            placed(many(base, lanes), lanes=True) if program.distils else {},
            sharding.abstract(many(batch, lanes, 1), sharding.batch_spec(lanes=True), mesh),
        )


def batch_shapes(
    program: Program,
    num_tokens: int,
    num_targets: int,
    soft: int,
    packing: batching.Packing | None = None,
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of one row of each array of a batch, as `batching.Rows.take` has them.

    Args:
      program: the program that reads them.
      num_tokens: tokens per row, T.
      num_targets: targets per row, C.
      soft: tokens of a stored distribution; 0: no distribution is stored.
      packing: how rows are packed; None: they are not.
    """
    longest = num_tokens
    if packing:
        num_tokens, num_targets = packing.num_tokens, packing.num_targets
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "tokens": ((num_tokens,), jnp.int32),
        "positions": ((num_targets,), jnp.int32),
        "targets": ((num_targets,), jnp.int32),
        "weights": ((num_targets,), jnp.float32),
    }
    if soft:
        shapes["soft"] = (num_targets, soft), jnp.float32
        if not program.support:
            shapes["soft_ids"] = (num_targets, soft), jnp.int32
    if program.distils:
        shapes |= {f"teacher_{name}": shapes[name] for name in ("tokens", "positions")}
    if packing:
        shapes["segments"] = (num_tokens,), jnp.int32
        if packing.num_segments:
            shapes["places"] = (packing.num_segments, longest), jnp.int32
        passes = batching.LEAST_PASSES
        shapes = {name: ((passes, *shape), dtype) for name, (shape, dtype) in shapes.items()}
    return shapes


def metric_rows(history: Sequence[Progress], lane: int) -> list[dict[str, float]]:
    """The rows of one lane's metrics file, one per update."""
    rows = []
    for progress in history:
        first = progress.step - len(progress.metrics.get("loss", ()))
        for offset in range(progress.step - first):
            values = {name: float(m[offset, lane]) for name, m in progress.metrics.items()}
            rows.append({"step": first + offset + 1, **values})
    return rows


def stack(trees: Sequence[Params]) -> Params:
    """Stacks models of one shape into a population."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def lane(population: Params, index: int) -> Params:
    """One model of a population."""
    return jax.tree.map(operator.itemgetter(index), population)


def _stops(probe_steps: Sequence[int], steps: int) -> list[int]:
    """The steps at which `fit` yields the population, including the last step."""
    stops = sorted({*probe_steps, steps})
    if stops[0] < 0 or stops[-1] > steps:
        raise ValueError(f"probe_steps {tuple(probe_steps)} must lie in 0..{steps}")
    return stops


def _joined(collected: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenates the metrics of several calls."""
    return {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}


def call_length(stops: Sequence[int], most: int) -> int:
    """The largest number of steps per call, at most `most`, that divides every stop."""
    gap = math.gcd(*stops)
    return max(d for d in range(1, min(gap, most) + 1) if gap % d == 0)


def _num_parts(program: Program, mesh: Mesh) -> int:
    """The rows of a step must be a multiple of this: devices across the batch times parts."""
    return mesh.shape["data"] * mesh.shape["fsdp"] * program.accumulate


def _batches(
    program: Program,
    rows: Sequence[batching.Rows],
    seeds: Sequence[int],
    batch_size: int,
    mesh: Mesh,
    packing: batching.Packing | None,
) -> batching.Batches:
    """The batches of a run, or a ValueError if the program cannot train on them."""
    if packing and program.distils:
        raise ValueError(
            "online distillation, where the teacher is evaluated at each step, does not pack rows: "
            "set packed_rows = 0, or choose another support"
        )
    if packing and program.accumulate > 1:
        raise ValueError(
            f"accumulate is {program.accumulate}, and packed rows have passes instead: set "
            "accumulate = 1, and fewer packed_rows if memory is short"
        )
    parts = _num_parts(program, mesh)
    packing = packing and packing.over(parts)
    batches = batching.Batches(rows, seeds, batch_size, program.steps, parts, packing)
    batches.check()
    return batches


def _lora_params(program: Program, trainable: Params) -> int:
    """Parameters of one lane's adapter; 0 when all weights are trained."""
    leaves = jax.tree.leaves(trainable)
    return sum(leaf.size for leaf in leaves) // len(leaves[0]) if program.lora_scale else 0


def _check_finite(metrics: checkpoints.Metrics, first: int) -> None:
    for name, values in metrics.items():
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            step, lane = bad[0]
            raise FloatingPointError(
                f"{name} is {values[step, lane]} at step {first + step} of lane {lane}: "
                "lower learning_rate, or check the rows of that step"
            )


@functools.lru_cache(maxsize=32)
def _compile(program: Program) -> tuple[Any, Any]:
    """The jitted `init` and `update` of a population; built once per program."""
    transform = program.optimizer.build(program.steps)

    def step(frozen: Params, teacher: Params, state: Any, given: Any) -> tuple[Any, Params]:
        value, gradient = train_step.value_and_grad(program, state[0], frozen, teacher, *given)
        updates, moments = transform.update(gradient, state[1], state[0])
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
        state = (optax.apply_updates(state[0], updates), moments)
        return activation_sharding.constrain_state(state, lanes=False), metrics

    def update(state: Any, frozen: Params, teachers: Params, batch: Params) -> tuple[Any, Params]:
        passes = None
        if "segments" in batch:
            passes = jnp.max(train_step.num_passes(batch["weights"]), axis=0)

        def lane(state: Any, teacher: Params, batch: Params) -> tuple[Any, Params]:
            return jax.lax.scan(functools.partial(step, frozen, teacher), state, (batch, passes))

        state, metrics = jax.vmap(lane, spmd_axis_name="seed")(state, teachers, batch)
        return state, jax.tree.map(lambda m: m.swapaxes(0, 1), metrics)

    def init(trainable: Params) -> tuple[Params, Any]:
        # An update removes weak types, such as those of a norm's ones, which would recompile.
        trainable = jax.tree.map(lambda leaf: leaf.astype(leaf.dtype), trainable)
        state = (trainable, jax.vmap(transform.init)(trainable))
        return activation_sharding.constrain_state(state, lanes=True)

    return jax.jit(init, donate_argnums=0), jax.jit(update, donate_argnums=0)


def initial_state(program: Program, trainable: Params) -> tuple[Params, Any]:
    """The initial state of a run: a population on the mesh, and its optimizer state."""
    return _compile(program)[0](trainable)
