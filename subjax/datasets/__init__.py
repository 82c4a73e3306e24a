"""What the teacher writes: prompts, parsers and reject reasons, one module per kind of data."""
