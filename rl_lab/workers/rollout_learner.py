"""The learner's process where answers come as it learns: groups of them in, metrics and weights out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch

from rl_lab.language.training import Groups, OnlinePlan, OnlineTraining
from rl_lab.learning.checkpoint import load_training_state, save_training_state
from rl_lab.learning.learner import NonFiniteLossError
from rl_lab.learning.ranks import is_first_rank
from rl_lab.workers.weights import Snapshot

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


class RolloutLearner:
    """One run of training on groups in a process of its own."""

    def __init__(self, plan: OnlinePlan, state: Path | None, device: str) -> None:
        """Start with the plan's policy, and continue from a saved state if there is one."""
        self._plan, self._state, self._device = plan, state, device

    @cached_property
    def training(self) -> OnlineTraining:
        """Made when first asked for: an error in here keeps its class, unlike one in an actor's constructor."""
        torch.set_num_threads(self._plan.settings.threads)
        training = self._plan.build(self._device)
        if self._state is not None:
            training.learner.load_state_dict(load_training_state(self._state))
        return training

    def publish(self) -> Snapshot:
        """The weights of the moment."""
        return self.training.publish()

    def learn(self, groups: Groups, bad_batch: Path) -> tuple[Learned, Snapshot]:
        """Learn from a batch and publish. A loss that is not a number is an error, and saves the batch that gave it."""
        error, metrics = None, {}
        try:
            metrics = self.training.learn(groups)
        except NonFiniteLossError as failure:
            if is_first_rank():
                torch.save(asdict(failure.batch), bad_batch)
            error = f"{failure}; the batch is in {bad_batch}"
        started = time.perf_counter()
        snapshot = self.training.publish()
        return Learned(metrics, snapshot.version, time.perf_counter() - started, error), snapshot

    def save(self, path: Path) -> None:
        """Save the state to continue from."""
        save_training_state(path, self.training.learner.state_dict())

    def finish(self, folder: Path) -> None:
        """Write the trained model's checkpoint files into a folder."""
        self.training.finish(folder)


class LearnerHandle:
    """A `RolloutLearner` in its process, as the driver uses it: every wait ends when the run is being stopped."""

    def __init__(self, actor: Any, check_stop: Callable[[], None]) -> None:
        self._actor, self._check_stop = actor, check_stop

    def publish(self) -> Weights:
        """The weights of the moment."""
        reference = self._actor.publish.remote()
        return Weights(self._wait(reference).version, reference)

    def learn(self, groups: Groups, bad_batch: Path) -> tuple[Learned, Weights]:
        """See `RolloutLearner.learn`."""
        result, reference = self._actor.learn.options(num_returns=2).remote(groups, bad_batch)
        learned: Learned = self._wait(result)
        return learned, Weights(learned.version, reference)

    def save(self, path: Path) -> None:
        """See `RolloutLearner.save`."""
        self._wait(self._actor.save.remote(path))

    def finish(self, folder: Path) -> None:
        """See `RolloutLearner.finish`."""
        self._wait(self._actor.finish.remote(folder))

    def snapshot(self, weights: Weights) -> Snapshot:
        """Published weights themselves."""
        return self._wait(weights.reference)

    def share(self, snapshot: Snapshot) -> Weights:
        """Weights from a file, for the engines."""
        return Weights(snapshot.version, ray.put(snapshot))

    def _wait(self, reference: ray.ObjectRef) -> Any:
        while not ray.wait([reference], timeout=POLL_S)[0]:
            self._check_stop()
        return ray.get(reference)
