"""Stages of a run with language models, one a module; each reads files and writes a unit's."""
