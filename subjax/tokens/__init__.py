"""From text to token ids and back: tokenizers, chat templates, tokens of numbers and names."""
