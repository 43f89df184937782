"""The curriculum's pool on disk, and what is asked of it."""
