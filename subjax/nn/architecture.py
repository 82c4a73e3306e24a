"""The shape of a decoder, as plain numbers: what every other module needs to know about a model.

It holds no arrays and knows no file format; `model_config.py` makes it from a Hugging Face config.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts.

    Attributes:
      factor: low frequencies are divided by it.
      low_freq_factor: "llama3": waves longer than original_positions / low_freq_factor are
        stretched whole; 0: all waves are ("linear"), and the other fields mean nothing.
      high_freq_factor: waves shorter than original_positions / high_freq_factor stay as they are.
      original_positions: the longest sequence before stretching.
    """

    factor: float
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_positions: int = 0


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder with rotary positions and grouped-query attention; the defaults are Llama's.

    Attributes:
      vocab_size: V, rows of the embedding.
      num_layers: L, decoder blocks.
      width: D, size of the residual stream.
      num_heads: N, query heads.
      num_kv_heads: K, key and value heads; divides N.
      head_dim: H, size of one head; N * H need not be D.
      ffn_width: F, inner size of the MLP.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon inside the norms.
      tie_embeddings: whether the output head is the embedding itself.
      max_positions: longest sequence that the model was made for, in tokens.
      model_type: Hugging Face's name of the family, which names its tensors (`families`).
      activation: of the MLP: silu, gelu or gelu_tanh.
      gated: whether the MLP multiplies two projections (SwiGLU, GeGLU) or has one.
      norm: rms or layer.
      norm_offset: added to a norm's stored scale; Gemma stores the scale minus one.
      norm_before: whether attention and MLP read a normalised residual stream.
      norm_after: whether their outputs are normalised.
      parallel: whether both read the same residual stream, instead of the MLP after attention.
      attention_bias: which projections have biases: none, qkv or all.
      mlp_bias: whether the MLP's projections have biases.
      qk_norm: whether queries and keys are normalised: none, head (each head) or all (together).
      fused_qkv: whether q, k and v of a head are rows of one kernel.
      rotary_dim: number of leading dimensions of a head that are rotated; 0: all.
      rope_scaling: None: frequencies as they are.
      window: positions that a local layer sees, its own included; 0: no local layers.
      local: for each layer, whether it is local; (): no layer is.
      local_rope_theta: base of the frequencies of local layers, never stretched; 0: rope_theta.
      attention_softcap: attention scores are capped at this by a tanh; 0: no cap.
      final_softcap: the same for the scores over the vocabulary.
      query_scale: attention scores are divided by its square root; 0: head_dim.
      scale_embedding: whether embeddings are multiplied by the square root of the width.
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
    model_type: str = "llama"
    activation: str = "silu"
    gated: bool = True
    norm: str = "rms"
    norm_offset: float = 0.0
    norm_before: bool = True
    norm_after: bool = False
    parallel: bool = False
    attention_bias: str = "none"
    mlp_bias: bool = False
    qk_norm: str = "none"
    fused_qkv: bool = False
    rotary_dim: int = 0
    rope_scaling: RopeScaling | None = None
    window: int = 0
    local: tuple[bool, ...] = ()
    local_rope_theta: float = 0.0
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    query_scale: int = 0
    scale_embedding: bool = False

    def __post_init__(self) -> None:
        """Refuses shapes that no program could run."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.default == 0
            if field.type in (int, float) and not (value > 0 or (may_be_zero and value == 0)):
                raise ValueError(
                    f"architecture.{field.name} is {value}; it must be positive: "
                    "correct the config or the model's config.json"
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"architecture.num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}: choose a divisor"
            )
        for name in ("head_dim", "rotary_dim"):
            if getattr(self, name) % 2:
                raise ValueError(
                    f"architecture.{name} {getattr(self, name)} is odd: rope needs it even"
                )
        if self.rotary_dim > self.head_dim:
            raise ValueError(
                f"architecture.rotary_dim {self.rotary_dim} is more than head_dim {self.head_dim}"
            )
        if self.local and (len(self.local) != self.num_layers or not self.window):
            raise ValueError(
                f"architecture.local names {len(self.local)} layers of {self.num_layers}, window "
                f"{self.window}: give one entry a layer and a window"
            )

    @property
    def num_queries(self) -> int:
        """Size of all queries of a position, N * H."""
        return self.num_heads * self.head_dim

    @property
    def num_keys(self) -> int:
        """Size of all keys of a position, K * H."""
        return self.num_kv_heads * self.head_dim

    @property
    def attention_kernels(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the projections of attention."""
        queries, keys = self.num_queries, self.num_keys
        if self.fused_qkv:
            return {"qkv": (self.width, queries + 2 * keys), "o": (queries, self.width)}
        sides = {"q": (self.width, queries), "k": (self.width, keys), "v": (self.width, keys)}
        return {**sides, "o": (queries, self.width)}

    @property
    def mlp_kernels(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the projections of the MLP."""
        up, down = (self.width, self.ffn_width), (self.ffn_width, self.width)
        return {**({"gate": up} if self.gated else {}), "up": up, "down": down}
