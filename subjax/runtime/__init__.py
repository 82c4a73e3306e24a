"""Files, processes, errors, seeds: what a run stands on. No models; jax only in `processes`."""
