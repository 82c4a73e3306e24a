"""How gradients become updates: optax's optimizers by name, one schedule, global-norm clipping.

Parameters of layers are stacked on a leading axis. What an optimizer does to one matrix it must do
to each layer's, not to the stack: Adafactor is mapped over the layers, and Muon is told which axes
of a leaf are a matrix (optax's default takes norms and embeddings for matrices and stacked kernels
for none).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax import contrib

KINDS = ("adamw", "adafactor", "sgd", "sign", "muon")
# Matrices between activations; embeddings and heads are looked up, and get AdamW.
_MATRICES = re.compile(r"layers/.*/(kernel|a|b)$")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with warm-up, a schedule and global-norm clipping.

    Attributes:
      learning_rate: peak, reached after `warmup_steps`.
      kind: one of `KINDS`: "sgd" is without momentum, "sign" follows the gradient's sign alone,
        "muon" gives whatever is no matrix of a layer to AdamW with Nesterov momentum.
      warmup_steps: linear from zero.
      schedule: what follows: "cosine" or "linear" to zero, or "constant".
      weight_decay: decoupled, on every parameter.
      beta1: decay of the first moment (adamw, muon).
      beta2: decay of the second moment (adamw, and muon's AdamW).
      clip_norm: largest global gradient norm; 0 switches clipping off.
      moment_dtype: of the first moment: "float32" or "bfloat16".
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
        """Picks this class's fields out of a training row, where `kind` is called optimizer."""
        names = {field.name: field.name for field in dataclasses.fields(cls)}
        names["kind"] = "optimizer"
        return cls(**{name: fields[key] for name, key in names.items()})

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` updates."""
        rate = self.rate(steps)
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        if self.kind == "muon":
            return optax.chain(clip, self._muon(rate))
        decay = optax.add_decayed_weights(self.weight_decay)
        return optax.chain(clip, self._scaled(), decay, optax.scale_by_learning_rate(rate))

    def rate(self, steps: int) -> optax.Schedule:
        """The learning rate by update."""
        decay = max(steps - self.warmup_steps, 1)
        after = {
            "cosine": optax.cosine_decay_schedule(self.learning_rate, decay),
            "linear": optax.linear_schedule(self.learning_rate, 0.0, decay),
            "constant": optax.constant_schedule(self.learning_rate),
        }[self.schedule]
        warmup = optax.linear_schedule(0.0, self.learning_rate, max(self.warmup_steps, 1))
        return optax.join_schedules([warmup, after], [self.warmup_steps])

    def _scaled(self) -> optax.GradientTransformation:
        """What a kind makes of a gradient before decay and learning rate."""
        if self.kind == "adamw":
            return optax.scale_by_adam(self.beta1, self.beta2, mu_dtype=self.moment_dtype)
        if self.kind == "sgd":
            return optax.identity()
        if self.kind == "sign":
            return optax.scale_by_sign()
        if self.kind == "adafactor":
            factored = (optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
            return _by_layer(optax.chain(*factored, optax.scale_by_param_block_rms()))
        raise ValueError(f"optimizer {self.kind!r} is unknown: choose one of {', '.join(KINDS)}")

    def _muon(self, rate: optax.Schedule) -> optax.GradientTransformation:
        return contrib.muon(
            rate,
            beta=self.beta1,
            weight_decay=self.weight_decay,
            mu_dtype=self.moment_dtype,
            adam_b1=self.beta1,
            adam_b2=self.beta2,
            adam_weight_decay=self.weight_decay,
            muon_weight_dimension_numbers=_dimension_numbers,
        )


def _by_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation to each layer of the stack by itself."""

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
    """The matrix (out, in) of each leaf that is one a layer; None for every other leaf."""

    def numbers(path: tuple[Any, ...], leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        if not _MATRICES.search(jax.tree_util.keystr(path, simple=True, separator="/")):
            return None
        return contrib.MuonDimensionNumbers(leaf.ndim - 1, leaf.ndim - 2)

    return jax.tree_util.tree_map_with_path(numbers, params)
