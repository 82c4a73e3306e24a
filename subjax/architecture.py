"""The shape of a decoder, as plain numbers: what every other module needs to know about a model.

It holds no arrays and knows no file format; `families.py` fills it from a Hugging Face config.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A Llama-type decoder: rotary positions, RMSNorm, SwiGLU, grouped-query attention.

    Attributes:
      vocab_size: V, rows of the embedding.
      num_layers: L, decoder blocks.
      width: D, size of the residual stream.
      num_heads: N, query heads.
      num_kv_heads: K, key and value heads; divides N.
      head_dim: H, size of one head; N * H need not be D.
      ffn_width: F, inner size of the SwiGLU block.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon inside the RMSNorm.
      tie_embeddings: whether the output head is the embedding itself.
      max_positions: longest sequence that the model was made for, in tokens.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    max_positions: int = 2048

    def __post_init__(self) -> None:
        """Refuses shapes that no program could run."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float) and not value > 0:
                raise ValueError(
                    f"architecture.{field.name} is {value}; it must be positive: "
                    "correct the config or the model's config.json"
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"architecture.num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}: choose a divisor"
            )
        if self.head_dim % 2:
            raise ValueError(f"architecture.head_dim {self.head_dim} is odd: rope needs it even")

    @property
    def num_params(self) -> int:
        """Number of parameters, the embedding counted once when tied."""
        attention = 2 * self.width * self.head_dim * (self.num_heads + self.num_kv_heads)
        block = attention + 3 * self.width * self.ffn_width + 2 * self.width
        embeddings = (1 if self.tie_embeddings else 2) * self.vocab_size * self.width
        return self.num_layers * block + embeddings + self.width
