"""Reading prompts before a token loop, with as few tokens as they need.

What all prompts begin with is read once. The distinct prompts behind it stand in blocks by length,
each block with room for its longest prompt.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from subjax.engine import slots
from subjax.nn import activation_sharding, functional, sharding, transformer
from subjax.nn.architecture import Architecture
from subjax.nn.blocks import KeyValues
from subjax.nn.transformer import Params

# Tokens that a device reads at once: enough to keep it busy, few enough that the prompts of a block
# are of about one length. Devices along `tensor` share the work of each, and so read as many more.
_AT_ONCE = 4096
_STEP = 16  # room for prompts is a multiple of it, so that few programs serve all lengths
# Beyond this length, attention without a kernel would hold large scores: room is a multiple of what
# the kernel of TPUs takes, and prompts are read whole, since it takes no prefix.
_LONG, _LONG_STEP = 512, 128
# Reading a shorter prefix once saves less than another program costs; its length is a multiple of
# the second number, so that few programs serve all prefixes.
_LEAST_PREFIX, _PREFIX_STEP = 8, 4


class Reading(NamedTuple):
    """Prompts to read, and where each row finds its own.

    Attributes:
      prefix: what all prompts begin with.
      blocks: of each block what follows the prefix, padded, and the lengths of its prompts.
      place: place of a row's prompt: its block times B, plus its place in the block.
      lengths: of a row's prompt.
    """

    prefix: tuple[int, ...]
    blocks: list[tuple[Int[np.ndarray, "B T"], Int[np.ndarray, " B"]]]
    place: Int[np.ndarray, " N"]
    lengths: Int[np.ndarray, " N"]


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with and that are worth reading once, or 0.

    At least one token of each prompt is not among them. One prompt shares nothing.
    """
    if max(map(len, prompts), default=0) > _LONG or len(set(map(tuple, prompts))) < 2:
        return 0
    shared = _common(prompts)
    return shared // _PREFIX_STEP * _PREFIX_STEP if shared >= _LEAST_PREFIX else 0


def room(longest: int) -> int:
    """Room for prompts in a token loop, whose programs take long to compile: in larger steps."""
    if longest <= _STEP:
        return _STEP
    return _rounded(longest, 2 * _STEP if longest <= _LONG else _LONG_STEP)


def arrange(
    prompts: Sequence[Sequence[int]],
    *,
    num_rows: int,
    prompt_tokens: int,
    prefix_tokens: int,
    mesh: Mesh,
) -> Reading:
    """The distinct prompts of a call in blocks.

    Args:
      prompts: one for each row.
      num_rows: for so many rows, at least one for each prompt; those added repeat the first prompt.
      prompt_tokens: longest prompt.
      prefix_tokens: tokens that all prompts begin with.
      mesh: where they will be read.

    Raises:
      ValueError: a prompt is empty or too long, or begins otherwise than the others.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    shortest = min((len(prompt) for prompt in prompts), default=0)
    if shortest < 1 or longest > prompt_tokens:
        raise ValueError(
            f"prompts of {shortest} to {longest} tokens; the config allows 1 to {prompt_tokens}: "
            "raise prompt_tokens"
        )
    if prefix_tokens > _common(prompts):
        raise ValueError(f"prompts differ in their first {prefix_tokens} tokens, or have no others")
    distinct = sorted(dict.fromkeys(map(tuple, prompts)), key=len)
    size = block_size(len(distinct), prompt_tokens - prefix_tokens, mesh)
    blocks = [
        _block(distinct[first : first + size], size, prompt_tokens, prefix_tokens)
        for first in range(0, len(distinct), size)
    ]
    places = {prompt: place for place, prompt in enumerate(distinct)}
    padded = [*prompts, *[prompts[0]] * (num_rows - len(prompts))]
    return Reading(
        distinct[0][:prefix_tokens],
        blocks,
        np.array([places[tuple(prompt)] for prompt in padded], np.int32),
        np.array(list(map(len, padded)), np.int32),
    )


def read(
    arch: Architecture,
    params: Params,
    adapter: Params | None,
    reading: Reading,
    *,
    prompt_tokens: int,
    mesh: Mesh,
    precision: str,
) -> slots.Prompts:
    """Reads all prompts of a call, block by block, on a mesh that is in context."""
    size = len(reading.blocks[0][0])
    num_blocks = _num_blocks(len(reading.blocks), len(reading.place), size)
    prompts = _unread(arch, precision, num_blocks, size, prompt_tokens, params, adapter)
    past = prefix(arch, params, adapter, reading.prefix, mesh=mesh, precision=precision)
    for index, block in enumerate(reading.blocks):
        tokens, lengths = sharding.replicate(block, mesh)
        prompts = _block_read(
            arch, precision, params, adapter, prompts, past, tokens, lengths, np.int32(index)
        )
    return prompts


def prefix(
    arch: Architecture,
    params: Params,
    adapter: Params | None,
    tokens: Sequence[int],
    *,
    mesh: Mesh,
    precision: str,
) -> KeyValues | None:
    """Keys and values [L, 1, K, P, H] of tokens that rows begin with; None if there are none."""
    if not tokens:
        return None
    rows = np.tile(np.array(tokens, np.int32), (_num_shares(mesh), 1))  # each device reads it
    return _prefix(arch, precision, params, adapter, sharding.replicate(rows, mesh))


def traced(
    arch: Architecture,
    params: Params,
    adapter: Params | None,
    *,
    num_prompts: int,
    num_rows: int,
    prompt_tokens: int,
    prefix_tokens: int,
    precision: str,
    mesh: Mesh,
) -> tuple[jax.stages.Traced, slots.Prompts]:
    """Traces the reading of a block from shapes, with all the room that prompts may take.

    Args:
      arch: shapes of the model.
      params: shapes of its weights.
      adapter: shapes of a LoRA tree, or None.
      num_prompts: distinct prompts of a call.
      num_rows: rows of a call.
      prompt_tokens: as in `arrange`.
      prefix_tokens: as in `arrange`.
      precision: a name of `precision.PRECISIONS`.
      mesh: where they will be read, which is in context.

    Returns:
      The program, and the shapes of the prompts that a token loop is given.
    """
    size = block_size(num_prompts, prompt_tokens - prefix_tokens, mesh)
    num_blocks = _num_blocks(-(-num_prompts // size), num_rows, size)

    def ints(*shape: int) -> Any:
        return sharding.abstract(jax.ShapeDtypeStruct(shape, jnp.int32), sharding.WHOLE, mesh)

    unread = functools.partial(_unread, arch, precision, num_blocks, size, prompt_tokens)
    shapes = jax.eval_shape(unread, params, adapter)
    prompts = sharding.abstract(shapes, activation_sharding.blocks_spec(shapes, mesh), mesh)
    past = None
    if prefix_tokens:
        begin = functools.partial(_prefix, arch, precision)
        shape = jax.eval_shape(begin, params, adapter, ints(_num_shares(mesh), prefix_tokens))
        past = sharding.abstract(shape, sharding.WHOLE, mesh)
    tokens = ints(size, prompt_tokens - prefix_tokens)
    index = jax.ShapeDtypeStruct((), jnp.int32)
    program = _block_read.trace(
        arch, precision, params, adapter, prompts, past, tokens, ints(size), index
    )
    return program, prompts


def _common(prompts: Sequence[Sequence[int]]) -> int:
    if not prompts:
        return 0
    # Whatever lies between two sorted lists begins with what both begin with.
    ends = [list(prompt) for prompt in prompts]
    pairs = zip(min(ends), max(ends), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return min(shared, min(map(len, prompts)) - 1)


def _block(
    prompts: Sequence[tuple[int, ...]], size: int, prompt_tokens: int, prefix_tokens: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, " B"]]:
    """What follows the prefix, padded to `size` prompts; and the whole lengths of prompts."""
    longest = len(prompts[-1]) - prefix_tokens
    length = _rounded(longest, _STEP if longest <= _LONG else _LONG_STEP)
    tokens = np.zeros((size, min(length, prompt_tokens - prefix_tokens)), np.int32)
    lengths = np.full(size, prefix_tokens + 1, np.int32)
    for place, prompt in enumerate(prompts):
        tokens[place, : len(prompt) - prefix_tokens] = prompt[prefix_tokens:]
        lengths[place] = len(prompt)
    return tokens, lengths


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step


def _num_shares(mesh: Mesh) -> int:
    """Devices across the batch."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def block_size(num_prompts: int, num_tokens: int, mesh: Mesh) -> int:
    """Prompts of each block of a call: one of few sizes, so that few programs serve all calls."""
    shares = _num_shares(mesh)
    most = max(_AT_ONCE * mesh.shape["tensor"] // num_tokens, 1)
    most = most // 8 * 8 or most
    num_blocks = -(-num_prompts // (most * shares))
    each = -(-num_prompts // (num_blocks * shares))
    return shares * (1 << (each - 1).bit_length() if each < 8 else _rounded(each, 8))


def _num_blocks(needed: int, num_rows: int, size: int) -> int:
    """Blocks for which a token loop has room: a power of two, or as many as the rows can fill."""
    return min(1 << (needed - 1).bit_length(), max(-(-num_rows // size), needed))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prefix(
    arch: Architecture,
    precision: str,
    params: Params,
    adapter: Params | None,
    tokens: Int[Array, "S P"],
) -> KeyValues:
    _, cache = transformer.prefill(arch, params, tokens, adapter=adapter, precision=precision)
    keys, values = (leaf[:, :1] for leaf in cache)
    return keys, values


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _block_read(
    arch: Architecture,
    precision: str,
    params: Params,
    adapter: Params | None,
    prompts: slots.Prompts,
    past: KeyValues | None,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    index: Int[Array, ""],
) -> slots.Prompts:
    """Reads a block and writes it among all prompts, which are donated."""
    hidden, cache = transformer.prefill(
        arch, params, tokens, adapter=adapter, precision=precision, past=past
    )
    begin = 0
    if past is not None:
        begin = past[0].shape[3]
        cache = jax.tree.map(jax.vmap(functional.behind), past, cache)
    last = hidden[jnp.arange(len(tokens)), lengths - begin - 1]
    block = activation_sharding.constrain_cache((last, transformer.decode_cache(*cache)))

    def write(whole: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice(whole, part[None], (index, *[0] * part.ndim))

    written = jax.tree.map(write, tuple(prompts), block)
    return slots.Prompts(*activation_sharding.constrain_blocks(written))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _unread(
    arch: Architecture,
    precision: str,
    num_blocks: int,
    size: int,
    prompt_tokens: int,
    params: Params,
    adapter: Params | None,
) -> slots.Prompts:
    """Room for all prompts of a call."""

    def block(tokens: Int[Array, "B T"]) -> Any:
        hidden, cache = transformer.prefill(
            arch, params, tokens, adapter=adapter, precision=precision
        )
        return hidden[:, 0], transformer.decode_cache(*cache)

    shapes = jax.eval_shape(block, jax.ShapeDtypeStruct((size, prompt_tokens), jnp.int32))
    zeros = jax.tree.map(lambda leaf: jnp.zeros((num_blocks, *leaf.shape), leaf.dtype), shapes)
    return slots.Prompts(*activation_sharding.constrain_blocks(zeros))
