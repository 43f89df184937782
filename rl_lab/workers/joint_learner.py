"""The learner's process for joint training: scored answers or pairs in, metrics and one kind of weights out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch

from rl_lab.joint.training import JointPlan, JointTraining
from rl_lab.language.training import Groups
from rl_lab.learning.checkpoint import load_training_state, save_training_state
from rl_lab.learning.learner import NonFiniteLossError
from rl_lab.learning.ranks import is_first_rank
from rl_lab.workers.rollout_learner import Learned, LearnerHandle, Weights
from rl_lab.workers.weights import Snapshot


class JointLearner:
    """One run of joint training in a process of its own."""

    def __init__(self, plan: JointPlan, state: Path | None, device: str) -> None:
        """Start with the plan's policy, and continue from a saved state if there is one."""
        self._plan, self._state, self._device = plan, state, device

    @cached_property
    def training(self) -> JointTraining:
        """Made when first asked for: an error in here keeps its class, unlike one in an actor's constructor."""
        training = JointTraining(self._plan, self._device)
        if self._state is not None:
            training.load_state_dict(load_training_state(self._state))
        return training

    def use_pairs(self, rounds: tuple[Path, ...]) -> None:
        """See `JointTraining.use_pairs`."""
        self.training.use_pairs(rounds)

    def learn(self, groups: Groups, bad_batch: Path) -> tuple[Learned, Snapshot]:
        """A batch of GRPO; see `RolloutLearner.learn`."""
        return self._learn(lambda: self.training.learn(groups), bad_batch)

    def learn_pairs(self, steps: int, bad_batch: Path) -> tuple[Learned, Snapshot]:
        """Steps of RPRO, in the same way."""
        return self._learn(lambda: self.training.learn_pairs(steps), bad_batch)

    def _learn(self, learn: Callable[[], dict[str, float]], bad_batch: Path) -> tuple[Learned, Snapshot]:
        error, metrics = None, {}
        try:
            metrics = learn()
        except NonFiniteLossError as failure:
            if is_first_rank():
                torch.save(asdict(failure.batch), bad_batch)
            error = f"{failure}; the batch is in {bad_batch}"
        started = time.perf_counter()
        snapshot = self.training.publish()
        return Learned(metrics, snapshot.version, time.perf_counter() - started, error), snapshot

    def publish(self) -> Snapshot:
        """The weights of the moment."""
        return self.training.publish()

    def publish_without(self, objective: str) -> Snapshot:
        """See `JointTraining.publish_without`."""
        return self.training.publish_without(objective)

    def lower(self, objective: str, factor: float) -> None:
        """See `JointTraining.lower`."""
        self.training.lower(objective, factor)

    def freeze(self, objective: str) -> None:
        """See `JointTraining.freeze`."""
        self.training.freeze(objective)

    def roll_back(self, state: Path, objective: str, factor: float) -> None:
        """See `JointTraining.roll_back`; the state was saved by `save`."""
        self.training.roll_back(load_training_state(state), objective, factor)

    def save(self, path: Path) -> None:
        """Save the state to continue from, or to roll back to."""
        save_training_state(path, self.training.state_dict())

    def finish(self, folder: Path) -> None:
        """Write the trained model's checkpoint files into a folder."""
        self.training.finish(folder)


class JointHandle(LearnerHandle):
    """A `JointLearner` in its process, as the driver uses it."""

    def use_pairs(self, rounds: tuple[Path, ...]) -> None:
        """See `JointTraining.use_pairs`."""
        self._wait(self._actor.use_pairs.remote(rounds))

    def learn_pairs(self, steps: int, bad_batch: Path) -> tuple[Learned, Weights]:
        """See `JointLearner.learn_pairs`."""
        result, reference = self._actor.learn_pairs.options(num_returns=2).remote(steps, bad_batch)
        learned: Learned = self._wait(result)
        return learned, Weights(learned.version, reference)

    def publish_without(self, objective: str) -> Weights:
        """See `JointTraining.publish_without`."""
        reference = self._actor.publish_without.remote(objective)
        return Weights(self._wait(reference).version, reference)

    def lower(self, objective: str, factor: float) -> None:
        """See `JointTraining.lower`."""
        self._wait(self._actor.lower.remote(objective, factor))

    def freeze(self, objective: str) -> None:
        """See `JointTraining.freeze`."""
        self._wait(self._actor.freeze.remote(objective))

    def roll_back(self, state: Path, objective: str, factor: float) -> None:
        """See `JointTraining.roll_back`."""
        self._wait(self._actor.roll_back.remote(state, objective, factor))
