"""A run as a graph of stages: what they are, in which order they run, and where their results are kept."""
