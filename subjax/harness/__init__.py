"""subjax's models for other projects' tools, each behind an optional package."""
