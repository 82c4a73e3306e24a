"""Subliminal learning in JAX; the README says where to begin."""

import os

# Before anything imports transformers: it would announce on every start that torch is absent.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
