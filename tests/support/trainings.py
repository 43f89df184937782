"""Trainings in this process, from a plan to what they leave in a folder."""

from pathlib import Path

import numpy as np

from rl_lab.learner.plans import DataPlan, Training
from rl_lab.model.checkpoint import load_training_state, save_training_state


def trained(plan: DataPlan, folder: Path, kill_at: int | None = None) -> Training:
    """All steps of a plan. Killed before step `kill_at`, it goes on from the state that it saved, as another object."""
    training = Training(plan)
    while training.step < plan.settings.steps:
        if training.step == kill_at:
            save_training_state(folder.with_suffix(".pt"), training.state_dict())
            training, kill_at = Training(plan), None
            training.load_state_dict(load_training_state(folder.with_suffix(".pt")))
        assert np.isfinite(training.run_step()["loss"])
    training.finish(folder)
    return training
