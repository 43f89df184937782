"""The learner's process: builds a training from plain settings and folders, learns, and gives its weights.

What it is given are groups of answers as they come, a number of steps on data that it holds itself, or both in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch

from envs.by_name import blamed
from rl_lab.learner.dtype import step_seconds
from rl_lab.learner.learner import NonFiniteLossError
from rl_lab.learner.plans import Plan
from rl_lab.model.checkpoint import Snapshot, load_training_state, save_training_state
from rl_lab.model.sharding import is_first_rank
from rl_lab.records.types import RolloutGroup

BAD_BATCH_FILE = "bad_batch.pt"
POLL_S = 0.5


@dataclass(frozen=True)
class Weights:
    """Published weights on their way to engines."""

    version: int
    reference: Any
    """The `Snapshot` in Ray's object store."""


@dataclass(frozen=True)
class Learned:
    """What learning from one batch gave."""

    metrics: dict[str, float]
    version: int
    """Of the weights after it."""
    publish_s: float
    error: str | None = None
    """Why training cannot go on."""


@dataclass(frozen=True)
class Slice:
    """What a slice of steps gave."""

    lines: list[dict[str, Any]]
    """Metrics of each step, with its 1-based `step`."""
    error: str | None = None
    """Why training cannot go on."""


class LearnerWorker:
    """One training in a process of its own."""

    def __init__(self, plan: Plan, state: Path | None, device: str) -> None:
        """Start with the plan's model, and continue from a saved state if there is one."""
        self._plan, self._state, self._device = plan, state, device

    @cached_property
    @blamed()
    def training(self) -> Any:
        """Made when first asked for: an error in here keeps its class, unlike one in an actor's constructor."""
        torch.set_num_threads(self._plan.settings.threads)
        training = self._plan.training(self._device)
        if self._state is not None:
            training.load_state_dict(load_training_state(self._state))
        return training

    @blamed()
    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the training gives."""
        return getattr(self.training, method)(*arguments)

    @blamed()
    def step_seconds(self) -> dict[str, float]:
        """See `rl_lab.learner.dtype.step_seconds`; the training itself does not begin."""
        return step_seconds(self._plan, self._device)

    @blamed()
    def run(self, num_steps: int, bad_batch: Path) -> Slice:
        """Do some steps on the training's own data; an error ends the slice."""
        lines: list[dict[str, Any]] = []
        for _ in range(num_steps):
            began = time.process_time()
            metrics, error = _attempt(self.training.run_step, bad_batch)
            if error is not None:
                return Slice(lines, error)
            lines.append({"step": self.training.step, **metrics, "seconds/cpu": time.process_time() - began})
        return Slice(lines)

    @blamed()
    def learn(self, given: Any, bad_batch: Path, method: str = "learn") -> tuple[Learned, Snapshot]:
        """Learn from what is given, by this method of the training, and publish."""
        metrics, error = _attempt(lambda: self.call(method, given), bad_batch)
        started = time.perf_counter()
        snapshot = self.training.publish()
        return Learned(metrics, snapshot.version, time.perf_counter() - started, error), snapshot

    def roll_back(self, state: Path, objective: str, factor: float) -> None:
        """See `JointTraining.roll_back`; the state was saved by `save`."""
        self.training.roll_back(load_training_state(state), objective, factor)

    def save(self, path: Path) -> None:
        """Save the state to continue from, or to roll back to."""
        save_training_state(path, self.training.state_dict())


def _attempt(learn: Callable[[], dict[str, float]], bad_batch: Path) -> tuple[dict[str, float], str | None]:
    """Metrics; or of a loss that is not a number the error, with the batch that gave it in a file."""
    try:
        return learn(), None
    except NonFiniteLossError as failure:
        if is_first_rank():
            torch.save(asdict(failure.batch), bad_batch)
        return {}, f"{failure}; the batch is in {bad_batch}"


class LearnerHandle:
    """A `LearnerWorker` in its process, as the driver uses it: every wait ends when the run is being stopped."""

    def __init__(self, actor: Any, check_stop: Callable[[], None]) -> None:
        self._actor, self._check_stop = actor, check_stop

    def run(self, num_steps: int, bad_batch: Path) -> Slice:
        """See `LearnerWorker.run`."""
        return self._wait(self._actor.run.remote(num_steps, bad_batch))

    def step_seconds(self) -> dict[str, float]:
        """See `LearnerWorker.step_seconds`."""
        return self._wait(self._actor.step_seconds.remote())

    def validate(self) -> dict[str, float]:
        """See `rl_lab.learner.plans.Training.validate`."""
        return self._wait(self._actor.call.remote("validate"))

    def learn(self, groups: Sequence[RolloutGroup], bad_batch: Path) -> tuple[Learned, Weights]:
        """Learn from a batch of groups; what that gave and the weights after it.

        RuntimeError for a loss that is not a number, with the file that holds the batch.
        """
        return self._learn(groups, bad_batch, "learn")

    def learn_pairs(self, steps: int, bad_batch: Path) -> tuple[Learned, Weights]:
        """Steps of RPRO, in the same way; errors as `learn`."""
        return self._learn(steps, bad_batch, "learn_pairs")

    def _learn(self, *arguments: Any) -> tuple[Learned, Weights]:
        result, reference = self._actor.learn.options(num_returns=2).remote(*arguments)
        learned: Learned = self._wait(result)
        if learned.error is not None:
            raise RuntimeError(learned.error)
        return learned, Weights(learned.version, reference)

    def publish(self) -> Weights:
        """The weights of the moment."""
        return self._published("publish")

    def publish_without(self, objective: str) -> Weights:
        """See `JointTraining.publish_without`."""
        return self._published("publish_without", objective)

    def _published(self, *call: str) -> Weights:
        reference = self._actor.call.remote(*call)
        return Weights(self._wait(reference).version, reference)

    def use_pairs(self, rounds: tuple[Path, ...]) -> None:
        """See `JointTraining.use_pairs`."""
        self._call("use_pairs", rounds)

    def lower(self, objective: str, factor: float) -> None:
        """See `JointTraining.lower`."""
        self._call("lower", objective, factor)

    def freeze(self, objective: str) -> None:
        """See `JointTraining.freeze`."""
        self._call("freeze", objective)

    def roll_back(self, state: Path, objective: str, factor: float) -> None:
        """See `JointTraining.roll_back`."""
        self._wait(self._actor.roll_back.remote(state, objective, factor))

    def save(self, path: Path) -> None:
        """See `LearnerWorker.save`."""
        self._wait(self._actor.save.remote(path))

    def finish(self, folder: Path) -> None:
        """Write the trained model's checkpoint files into a folder."""
        self._call("finish", folder)

    def snapshot(self, weights: Weights) -> Snapshot:
        """Published weights themselves."""
        return self._wait(weights.reference)

    def share(self, snapshot: Snapshot) -> Weights:
        """Weights from a file, for the engines."""
        return Weights(snapshot.version, ray.put(snapshot))

    def _call(self, *call: Any) -> None:
        self._wait(self._actor.call.remote(*call))

    def _wait(self, reference: ray.ObjectRef) -> Any:
        while not ray.wait([reference], timeout=POLL_S)[0]:
            self._check_stop()
        return ray.get(reference)
