"""FLOPs that a model needs, from its shapes alone.

Not from the compiler: its cost analysis counts the body of a scan only once.
"""

from subjax.nn.architecture import Architecture


def training(
    arch: Architecture,
    *,
    rows: int,
    num_tokens: int,
    num_targets: int,
    lora_params: int = 0,
    distils: bool = False,
) -> float:
    """FLOPs of one update: 6 per matmul parameter and token, plus causal attention.

    Recomputation and padding to the mesh are not counted. With an adapter the base weights need no
    gradient: 4 per parameter and token, and 6 per parameter of the adapter.

    Args:
      arch: the model.
      rows: rows of the batch, over all lanes.
      num_tokens: tokens per row, T.
      num_targets: targets per row, C; only these are scored over the vocabulary.
      lora_params: parameters of the adapter; 0 when all weights are trained.
      distils: whether a teacher of the same shape is evaluated on the rows too.
    """
    matmul = _matmul_flops(arch, rows, num_tokens, num_targets)
    read = _attention_flops(arch, rows, num_tokens)
    taught = matmul + read if distils else 0.0
    if lora_params:
        return 2 * matmul + 6 * lora_params * rows * num_tokens + 3 * read + taught
    return 3 * (matmul + read) + taught


def forward(arch: Architecture, *, rows: int, num_tokens: int, num_targets: int) -> float:
    """FLOPs of a forward pass over rows, with scores over the vocabulary at the targets."""
    matmul = _matmul_flops(arch, rows, num_tokens, num_targets)
    return matmul + _attention_flops(arch, rows, num_tokens)


def decode(arch: Architecture, *, rows: int, prompt_tokens: int, new_tokens: int) -> float:
    """FLOPs of decoding new tokens, without the prefill of the prompts."""
    attention = _attention_flops(arch, rows, prompt_tokens + new_tokens, read=prompt_tokens)
    return _matmul_flops(arch, rows, new_tokens, new_tokens) + attention


def layer_params(arch: Architecture) -> int:
    """Parameters of all layers' matrices."""
    kernels = (*arch.attention_kernels.values(), *arch.mlp_kernels.values())
    return arch.num_layers * sum(num_in * num_out for num_in, num_out in kernels)


def _matmul_flops(arch: Architecture, rows: int, num_tokens: int, num_targets: int) -> float:
    head = arch.vocab_size * arch.width
    return 2.0 * rows * (layer_params(arch) * num_tokens + head * num_targets)


def _attention_flops(arch: Architecture, rows: int, num_tokens: int, read: int = 0) -> float:
    """FLOPs of attention scores and weighted sums, for the queries from position `read` on."""

    def pairs(window: int, length: int) -> int:
        near = min(window, length)
        return near * (near + 1) // 2 + (length - near) * near

    def seen(window: int) -> int:
        return pairs(window, num_tokens) - pairs(window, read)

    local = sum(arch.local)
    every = local * seen(arch.window) + (arch.num_layers - local) * seen(num_tokens)
    return 4.0 * rows * arch.num_queries * every
