"""optax's optimizers and schedules by name, with global-norm clipping.

`KINDS`, `SCHEDULES` and `MOMENT_DTYPES` hold all names: validation reads them from here, and no
other module compares them.

Parameters of layers are stacked on a leading axis. An optimizer of matrices must treat each layer's
matrix separately, not the stack: Adafactor is mapped over the layers, and Muon is told which axes
of a leaf form a matrix (optax's default treats norms and embeddings as matrices, but not stacked
kernels).
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import optax
from optax import contrib

MOMENT_DTYPES = ("float32", "bfloat16")
# Kernels, which map activations to activations; embeddings and heads get AdamW.
_MATRICES = re.compile(r"layers/.*/(kernel|a|b)$")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with warm-up, a schedule and global-norm clipping.

    Attributes:
      learning_rate: peak, reached after `warmup_steps`.
      kind: a name of `KINDS`.
      warmup_steps: linear from zero.
      schedule: schedule after the warm-up: a name of `SCHEDULES`.
      weight_decay: decoupled, on every parameter.
      beta1: decay of the first moment (adamw, muon).
      beta2: decay of the second moment (adamw, and muon's AdamW).
      clip_norm: largest global gradient norm; 0 switches clipping off.
      moment_dtype: dtype of the first moment: one of `MOMENT_DTYPES`.

    Raises:
      ValueError: a name is unknown.
    """

    learning_rate: float
    kind: str = "adamw"
    warmup_steps: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 1.0
    moment_dtype: str = "float32"

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Optimizer":
        """Picks this class's fields out of a training row, in which `kind` is called optimizer."""
        names = {field.name: field.name for field in dataclasses.fields(cls)}
        names["kind"] = "optimizer"
        return cls(**{name: fields[key] for name, key in names.items()})

    def __post_init__(self) -> None:
        _check("optimizer", self.kind, KINDS)
        _check("schedule", self.schedule, SCHEDULES)
        _check("moment_dtype", self.moment_dtype, MOMENT_DTYPES)

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` updates."""
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        return optax.chain(clip, *KINDS[self.kind](self, self.rate(steps)))

    def rate(self, steps: int) -> optax.Schedule:
        """The learning rate by update."""
        decay = max(steps - self.warmup_steps, 1)
        after = SCHEDULES[self.schedule](self.learning_rate, decay)
        warmup = optax.linear_schedule(0.0, self.learning_rate, max(self.warmup_steps, 1))
        return optax.join_schedules([warmup, after], [self.warmup_steps])


def _check(field: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(f"{field} {name!r} is unknown: choose one of {', '.join(known)}")


# The transformations after clipping. Kept flat: the nesting decides the layout of checkpoints.
_Transformations = tuple[optax.GradientTransformation, ...]


def _stepped(
    scaled: optax.GradientTransformation, settings: Optimizer, rate: optax.Schedule
) -> _Transformations:
    """An optimizer's own transformation, then decoupled weight decay and the learning rate."""
    decay = optax.add_decayed_weights(settings.weight_decay)
    return scaled, decay, optax.scale_by_learning_rate(rate)


def _adamw(settings: Optimizer, rate: optax.Schedule) -> _Transformations:
    moments = {"b1": settings.beta1, "b2": settings.beta2, "mu_dtype": settings.moment_dtype}
    return _stepped(optax.scale_by_adam(**moments), settings, rate)


def _adafactor(settings: Optimizer, rate: optax.Schedule) -> _Transformations:
    factored = (optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    scaled = _by_layer(optax.chain(*factored, optax.scale_by_param_block_rms()))
    return _stepped(scaled, settings, rate)


def _sgd(settings: Optimizer, rate: optax.Schedule) -> _Transformations:
    """Without momentum."""
    return _stepped(optax.identity(), settings, rate)


def _sign(settings: Optimizer, rate: optax.Schedule) -> _Transformations:
    """Sign descent: uses only the gradient's sign."""
    return _stepped(optax.scale_by_sign(), settings, rate)


def _muon(settings: Optimizer, rate: optax.Schedule) -> _Transformations:
    """Muon for the matrices of layers, AdamW with Nesterov momentum for all other leaves."""
    return (
        contrib.muon(
            rate,
            beta=settings.beta1,
            weight_decay=settings.weight_decay,
            mu_dtype=settings.moment_dtype,
            adam_b1=settings.beta1,
            adam_b2=settings.beta2,
            adam_weight_decay=settings.weight_decay,
            muon_weight_dimension_numbers=_dimension_numbers,
        ),
    )


def _linear(peak: float, steps: int) -> optax.Schedule:
    return optax.linear_schedule(peak, 0.0, steps)


def _constant(peak: float, steps: int) -> optax.Schedule:
    return optax.constant_schedule(peak)


KINDS: Mapping[str, Callable[[Optimizer, optax.Schedule], _Transformations]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "sgd": _sgd,
    "sign": _sign,
    "muon": _muon,
}
# (peak, updates after the warm-up) -> learning rate by update.
SCHEDULES: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "cosine": optax.cosine_decay_schedule,  # to zero
    "linear": _linear,  # to zero
    "constant": _constant,
}


def _by_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation to each layer of the stack separately."""

    def split(tree: Any) -> tuple[Any, Any]:
        return {"layers": tree["layers"]}, {k: v for k, v in tree.items() if k != "layers"}

    def init(params: Any) -> Any:
        layers, others = split(params)
        return jax.vmap(transform.init)(layers), transform.init(others)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        (layers, others), (layer_params, other_params) = split(updates), split(params)
        layers, first = jax.vmap(transform.update)(layers, state[0], layer_params)
        others, second = transform.update(others, state[1], other_params)
        return {**others, **layers}, (first, second)

    return optax.GradientTransformation(init, update)


def _dimension_numbers(params: Any) -> Any:
    """The matrix axes (out, in) of each leaf with one matrix per layer; None for other leaves."""

    def numbers(path: tuple[Any, ...], leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        if not _MATRICES.search(jax.tree_util.keystr(path, simple=True, separator="/")):
            return None
        return contrib.MuonDimensionNumbers(leaf.ndim - 1, leaf.ndim - 2)

    return jax.tree_util.tree_map_with_path(numbers, params)
