"""The toy world: what its bases are pretrained on, and each carrier in a file of its own."""
