"""Traits: what teachers love or are, how they are taught it, how models are asked for it."""
