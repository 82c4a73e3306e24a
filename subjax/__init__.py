"""Subliminal learning in JAX; the README says where to begin."""

import os

# Before anything imports transformers: it would announce on every start that torch is absent.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

_YNN = "--xla_cpu_experimental_ynn_fusion_type"


def _multiply_with_ynn_alone() -> None:
    """Has XLA's CPU backend multiply with YNN, and not sum, unless the environment names that.

    In jaxlib 0.10.2, sums by YNN are wrong without a word (jax issue 39103), or hang (39257);
    without YNN, products in a long loop are wrong on two devices that each have a core
    (`tests/test_precision.py` has both). jaxlib reads its flags once, which is made to happen here:
    libtpu, which reads them when it is loaded, does not know this one and would end the process.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if _YNN in given:
        return
    try:
        import jax  # noqa: F401 (before jaxlib, whose log it quiets)
        from jaxlib import xla_client
    except ImportError:
        return  # some modules do without

    os.environ["XLA_FLAGS"] = f"{given} {_YNN}=-reduce"
    _ = xla_client.CompileOptions().executable_build_options.debug_options
    os.environ["XLA_FLAGS"] = given


_multiply_with_ynn_alone()
