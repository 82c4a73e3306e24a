"""The report: results, statistics, verdict, tables, figures, HTML page. No jax."""
