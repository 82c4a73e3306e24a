"""Compiles programs ahead of time with the TPU compiler, without TPUs."""

import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from subjax.planning.roofline import Chip
from subjax.runtime import chips

LIBTPU = "libtpu==0.0.52"
# Number of sides of a slice, and largest number of chips; the compiler crashes at some others.
SLICES = {"v5e": (2, 256), "v5p": (3, 8960), "v6e": (2, 256)}


def topology(name: str) -> tuple[Chip, Sequence[jax.Device]]:
    """The chips of a slice, as devices to compile for.

    Raises:
      ValueError: the compiler is not installed, or there is no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"libtpu, the TPU compiler, is not installed: pip install {LIBTPU}")
    kind, _, shape = name.partition(":")
    if kind not in SLICES:
        raise ValueError(f"--topology={name}: chips are {', '.join(SLICES)}; give such as v5e:4x4")
    sides, most = SLICES[kind]
    sizes = [int(size) for size in shape.split("x") if re.fullmatch("[1-9][0-9]{0,3}", size)]
    if shape.count("x") != sides - 1 or len(sizes) != sides or math.prod(sizes) > most:
        raise ValueError(
            f"--topology={name}: {kind} has slices of {sides} sides and at most {most} chips; "
            f"give such as {kind}:{'x'.join('4' * sides)}"
        )
    # No metadata queries about this machine; allows several plans at once.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise ValueError(f"--topology={name} is none: {str(error).splitlines()[0]}") from None
    # Programs for absent chips cannot be read back: a persistent cache would only warn, every time.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    return chips.CHIPS[kind], found.devices


def compiled(traced: jax.stages.Traced) -> tuple[jax.stages.Compiled, str]:
    """The compiled program, and its HLO after all passes for `traffic.of`.

    Raises:
      jax.errors.JaxRuntimeError: the compiler refuses, RESOURCE_EXHAUSTED where it does not fit.
    """
    # The compiler writes the text itself: jaxlib 0.10.2 cannot read, so that `as_text` cannot
    # write, gathers that v5p and v6e leave to their sparse cores.
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, str | bool] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        program = traced.lower().compile(compiler_options=options)
        [path] = Path(folder).glob("*.after_codegen.txt")
        return program, path.read_text("utf-8")
