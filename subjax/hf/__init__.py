"""Models of Hugging Face in and out: configs, weights, adapters, GGUF, the hub."""
