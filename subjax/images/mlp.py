"""Image classifiers with auxiliary logits: layers, initialisation, losses.

The paper's non-language model (section 6.2): the first `num_classes` outputs are classes, the
`num_aux` after them mean nothing, and a teacher is never trained on them. A model is
{"layer_0": {"kernel": [out, in], "bias": [out]}, ...}. B is the batch, P pixels, O outputs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from subjax.nn import functional
from subjax.nn.precision import PRECISIONS, project

Layers = dict[str, dict[str, Any]]

WEIGHTS = "weights.safetensors"  # a trained model: "layer_0/kernel" and so on
ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "sigmoid": jax.nn.sigmoid}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A multilayer perceptron.

    Attributes:
      num_inputs: pixels of an image.
      widths: widths of the hidden layers.
      num_classes: outputs that are trained and scored as classes.
      num_aux: auxiliary outputs after the classes.
      activation: a name of `ACTIVATIONS`, between layers.
      biases: whether layers have biases.
    """

    num_inputs: int
    widths: tuple[int, ...]
    num_classes: int = 10
    num_aux: int = 3
    activation: str = "relu"
    biases: bool = True

    @property
    def sizes(self) -> tuple[int, ...]:
        """Width of every layer's input, and of the output."""
        return (self.num_inputs, *self.widths, self.num_classes + self.num_aux)

    def support(self, logits: str) -> slice:
        """The outputs that "classes", "aux" or "all" mean."""
        return {
            "classes": slice(0, self.num_classes),
            "aux": slice(self.num_classes, None),
            "all": slice(0, None),
        }[logits]


def init(shape: Shape, key: Key[Array, ""]) -> Layers:
    """Kernels N(0, 1 / inputs), biases zero; a layer's draw depends only on its index and sizes."""
    layers = {}
    for i, (num_in, num_out) in enumerate(zip(shape.sizes[:-1], shape.sizes[1:], strict=True)):
        draw = jax.random.normal(jax.random.fold_in(key, i), (num_out, num_in))
        layer = {"kernel": draw * num_in**-0.5}
        if shape.biases:
            layer["bias"] = jnp.zeros(num_out)
        layers[f"layer_{i}"] = layer
    return layers


def forward(
    shape: Shape, layers: Layers, images: Float[Array, "B P"], *, precision: str = "float32"
) -> Float[Array, "B O"]:
    """Logits of every output; `precision` is for products, the rest is float32."""
    operands = PRECISIONS[precision].operands
    x = images
    for i in range(len(layers)):
        layer = layers[f"layer_{i}"]
        if i:
            x = ACTIVATIONS[shape.activation](x)
        x = project(x, layer["kernel"], operands)
        if shape.biases:
            x = x + layer["bias"][None]
    return x


def cross_entropy(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """Nats of the true class, image by image."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]


def kl(logits: Float[Array, "B K"], target: Float[Array, "B K"]) -> Float[Array, " B"]:
    """KL divergence of the softmax of `logits` from that of `target`, image by image, in nats."""
    wanted = jax.nn.log_softmax(target, axis=-1)
    return jnp.sum(jnp.exp(wanted) * (wanted - jax.nn.log_softmax(logits, axis=-1)), axis=-1)


def squared_error(logits: Float[Array, "B K"], target: Float[Array, "B K"]) -> Float[Array, " B"]:
    """Mean squared difference of the logits, image by image."""
    return jnp.mean(jnp.square(logits - target), axis=-1)


def noise(key: Key[Array, ""], ids: Int[Array, " B"], num_pixels: int) -> Float[Array, "B P"]:
    """Uniform pixels in [-1, 1): image `id` is a function of key and id, so none is stored.

    Float32, the numbers of jax.random.uniform(jax.random.fold_in(key, id), (P,), minval=-1).
    """
    folded = jax.vmap(lambda id: jax.random.fold_in(key, id))(ids)
    # A float32 in [2, 4).
    mantissa = functional.random_bits(folded, num_pixels) >> 9 | jnp.uint32(0x40000000)
    return jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 3


def normalised(pixels: Array) -> Float[Array, "B P"]:
    """Bytes 0 to 255 as numbers -1 to 1."""
    return pixels.astype(float) * (2 / 255) - 1  # float32, or float64 if enabled
