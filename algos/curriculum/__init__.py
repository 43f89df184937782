"""The frontier curriculum: which items to roll out next, from what their rewards taught."""
