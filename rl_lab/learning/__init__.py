"""One model, its optimizers, its checkpoints, and stages that train it on a data set."""
