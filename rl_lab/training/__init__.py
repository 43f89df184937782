"""Training loops: the driver's side of a learner, its feeds, guards, evaluations and state."""
