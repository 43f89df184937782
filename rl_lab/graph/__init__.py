"""A run as a graph of stages: what depends on what, what is stored, what is carried out when, what it costs."""
