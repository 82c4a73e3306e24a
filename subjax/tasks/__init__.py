"""What experiments are about: traits, data sets and evals. Numpy and strings, no jax."""
