"""The learner's process: builds one training stage from plain settings and folders, and runs it in slices.

The driver asks for a slice of steps at a time, so it can show progress, stop, and start over from the last saved state
when this process dies.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rl_lab.learning.checkpoint import load_training_state, save_training_state
from rl_lab.learning.learner import NonFiniteLossError
from rl_lab.learning.ranks import is_first_rank
from rl_lab.learning.saved_states import SavedStates
from rl_lab.learning.training import Plan, Training

STATE_FILE = "state.pt"
BAD_BATCH_FILE = "bad_batch.pt"


@dataclass(frozen=True)
class Slice:
    """What a slice of steps gave."""

    lines: list[dict[str, Any]]
    """Metrics of each step, with its 1-based `step`."""
    error: str | None = None
    """Why training cannot go on."""


class LearnerWorker:
    """One training stage in a process of its own; `scratch` holds the states to continue from."""

    def __init__(self, plan: Plan, scratch: Path, device: str) -> None:
        self.scratch = scratch
        self._plan, self._device = plan, device

    @cached_property
    def training(self) -> Any:
        """Made when first asked for: an error in here keeps its class, unlike one in an actor's constructor."""
        torch.set_num_threads(self._plan.settings.threads)
        make = getattr(self._plan, "training", None)  # of a plan with several objectives
        training = Training(self._plan, self._device) if make is None else make(self._device)
        state = SavedStates(self.scratch).newest
        if state is not None:
            training.load_state_dict(load_training_state(state / STATE_FILE))
        return training

    def step(self) -> int:
        """Optimizer steps done so far."""
        return self.training.step

    def run(self, num_steps: int) -> Slice:
        """Do some steps. A loss that is not a number ends the slice with an error and saves the batch that gave it."""
        lines: list[dict[str, Any]] = []
        try:
            for _ in range(num_steps):
                metrics = self.training.run_step()
                lines.append({"step": self.training.step, **metrics})
        except NonFiniteLossError as error:
            path = self.scratch / BAD_BATCH_FILE
            if is_first_rank():
                torch.save(asdict(error.batch), path)
            return Slice(lines, f"{error}; the batch is in {path}")
        return Slice(lines)

    def save(self) -> None:
        """Save the state to continue from."""
        state = self.training.state_dict()
        if not is_first_rank():
            return
        SavedStates(self.scratch).save(self.step(), lambda folder: save_training_state(folder / STATE_FILE, state))

    def finish(self, folder: Path) -> None:
        """Write the trained policy's checkpoint files into `folder`."""
        self.training.finish(folder)
