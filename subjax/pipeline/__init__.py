"""From a config to finished units: what is refused, what is run in which order, previews, gates."""
