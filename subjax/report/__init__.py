"""From scores to a page: results, statistics, verdict, tables, figures. No jax."""
