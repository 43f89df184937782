"""A policy that acts: observations in, chunks of absolute commands out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from envs.commands import CommandError
from envs.rollout import Decision
from envs.types import camera_images, ee_pose
from rl_lab.errors import RunError
from rl_lab.learning.checkpoint import load_policy
from rl_lab.seeding import stream
from rl_lab.workers.weights import Snapshot, pull


def policy_key(snapshot: Snapshot, seed: int) -> str:
    """Equal for policies that act alike."""
    return f"{snapshot.digest}/{seed}"


def _views(decision: Decision, frames: int) -> np.ndarray:
    """What a policy sees: uint8 [3, S, S, 3], or [3, K, S, S, 3] with the present frame last. ValueError if it lacks
    the past that it was trained with."""
    now = camera_images(decision.observation)
    given = 1 if decision.past is None else 1 + len(decision.past)
    if given != frames:
        raise ValueError(f"the policy sees {frames} frames of each camera, but the decision has {given}")
    return now if decision.past is None else np.concatenate([decision.past, now[None]]).swapaxes(0, 1)


class LocalPolicy:
    """A copy of the policy in the worker's own process.

    The flow's initial noise is addressed by (run seed, environment seed, decision number), so an episode depends on
    nothing but these and the weights (up to the rounding of a batched forward pass).
    """

    def __init__(self, folder: Path, *, seed: int, device: str = "cpu") -> None:
        self.policy, self.processor, self.info = load_policy(folder)
        self.policy.eval().to(device)
        self.seed, self.device = seed, device

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot, *, seed: int, device: str = "cpu") -> LocalPolicy:
        """Load a published snapshot."""
        with tempfile.TemporaryDirectory() as folder:
            return cls(pull(snapshot, Path(folder)), seed=seed, device=device)

    def _noise(self, decisions: Sequence[Decision]) -> torch.Tensor:
        shape = (self.policy.chunk_size, self.policy.action_dim)
        draws = [stream(self.seed, "flow", *decision.key).normal(size=shape) for decision in decisions]
        return torch.from_numpy(np.stack(draws)).float().to(self.device)

    @torch.inference_mode()
    def act(self, decisions: Sequence[Decision]) -> np.ndarray:
        """Chunks of `ee` commands [len(decisions), H, 16], one forward pass for all.

        RunError for commands that no arm may be sent to (see `PolicyProcessor.decode`).
        """
        observations = [decision.observation for decision in decisions]
        instructions = [self.info.condition(str(observation["instruction"])) for observation in observations]
        poses = np.stack([ee_pose(observation) for observation in observations])
        images = np.stack([_views(decision, self.info.history) for decision in decisions])
        batch = self.processor.batch(images, poses, instructions).to(self.device)
        chunks = self.policy.sample_actions(self.policy.encode(batch), self._noise(decisions))
        try:
            return self.processor.decode(chunks.cpu().numpy(), poses)
        except CommandError as error:
            raise RunError(
                f"the policy of weight version {self.info.weight_version} must not act: {error}; its statistics or its "
                "weights are not those it was trained with, or its training diverged"
            ) from error
