"""Records: what workers sample, what stages store and what learners read."""
