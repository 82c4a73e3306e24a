"""Subliminal learning in JAX: `load` gives a `Model`; the README says where to begin."""

import functools
import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subjax.engine.model import Model as Model
    from subjax.engine.model import load as load

# Loaded when they are asked for: command lines need not wait for jax to refuse a wrong flag.
_PUBLIC = {"Model": "subjax.engine.model", "load": "subjax.engine.model"}

# Set before transformers is imported: it would log at every start that torch is absent.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

_YNN = "--xla_cpu_experimental_ynn_fusion_type"
# Place of that flag in XLA's protocol buffers: nested field numbers, and the enum value for sums.
# These numbers never change their meaning.
_YNN_FIELDS = (3, 3, 422)
_YNN_SUMS = 3


def _multiply_with_ynn_alone() -> None:
    """Makes XLA's CPU backend use YNN for products but not for sums, unless XLA_FLAGS names it.

    In jaxlib 0.10.2, sums by YNN are silently wrong (jax issue 39103), or hang (39257); without
    YNN, products in a long loop are wrong on two devices with one core each
    (`tests/nn/test_precision.py` has both). jaxlib reads its flags once; this function makes it
    read them now, because libtpu, which reads them when it is loaded, does not know this flag and
    would end the process.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if _YNN in given:
        return
    try:
        import jax  # noqa: F401 (before jaxlib, whose log it quiets)
        from jaxlib import xla_client
    except ImportError:
        return  # some modules do not need jax

    os.environ["XLA_FLAGS"] = f"{given} {_YNN}=-reduce"
    _ = xla_client.CompileOptions().executable_build_options.debug_options
    os.environ["XLA_FLAGS"] = given


def check_sums(platform: str = "") -> None:
    """Refuses to compute on CPUs if jaxlib had read its flags before subjax set its own.

    A program or notebook that uses jax before it imports subjax would sum with YNN, which is
    silently wrong. An explicit setting of that flag in `XLA_FLAGS` is respected.

    Args:
      platform: a `jax.Device.platform`; empty: jax's default platform.

    Raises:
      ValueError: sums on a CPU would be wrong.
    """
    if not _sums_with_ynn() or _asks_for_sums(os.environ.get("XLA_FLAGS", "")):
        return
    import jax

    if (platform or jax.default_backend()) == "cpu":
        raise ValueError(
            "sums on this CPU would be wrong (jax issue 39103): jax was used before subjax was "
            "imported, which sets a flag against that: restart Python or the notebook's kernel, "
            f"and import subjax first, or start it with XLA_FLAGS={_YNN}=-reduce"
        )


@functools.cache  # jaxlib reads its flags only once
def _sums_with_ynn() -> bool:
    """Whether XLA in this process sums with YNN."""
    from google.protobuf import empty_pb2, unknown_fields
    from jaxlib import xla_client

    found = [xla_client.CompileOptions().SerializeAsString()]
    for number in _YNN_FIELDS:
        messages = map(empty_pb2.Empty.FromString, found)
        fields = [field for one in messages for field in unknown_fields.UnknownFieldSet(one)]
        found = [field.data for field in fields if field.field_number == number]
    return any(_YNN_SUMS in part for part in found)


def _asks_for_sums(flags: str) -> bool:
    """Whether XLA_FLAGS enables YNN for kinds of operations that include sums."""
    named = [flag.partition("=")[2] for flag in flags.split() if flag.startswith(_YNN)]
    if not named:
        return False
    kinds = named[-1].lower().split(",")
    # Names with a sign modify jaxlib's default, which includes sums; names without one replace it.
    signed = all(kind.startswith(("+", "-")) for kind in kinds)
    return any(kind.lstrip("+").endswith("reduce") for kind in kinds if kind[:1] != "-") or (
        signed and not any(kind.endswith("reduce") for kind in kinds)
    )


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'subjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


_multiply_with_ynn_alone()
