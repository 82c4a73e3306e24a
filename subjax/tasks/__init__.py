"""What experiments are about, in numpy and strings: data sets and evals. No jax, no processes."""
