"""Data sets: prompts, and what a teacher's answers to them must be; one file a kind."""
