"""Pages of a run: each prepares what its templates show."""
