"""The decoder and its losses as pure functions on arrays, and where those lie on a mesh."""
