"""Kinds of stages, one file a family: what each reads and needs, its share of the graph, its cost."""
