"""Goal reward of a small action-conditioned latent world model: NORA-1.5's first reward (arXiv:2511.14659).

    z_t = E(o_t),   z^_{t+H} = z_t + P(z_t, pose_t, a_t..t+H-1)
    L = mean |z^_{t+H} - sg z_{t+H}|^2 + v L_var + c L_cov
    L_var = mean_j max(0, 1 - std_j(z)),   L_cov = sum_{i != j} Cov_ij(z)^2 / D
    R(o_t, a) = -mean |z^_{t+H} - z_goal|

A joint-embedding predictive architecture with the actions as its condition, as V-JEPA 2-AC (arXiv:2506.09985), which
NORA-1.5 uses frozen; ours is trained from nothing on a run's own episodes. Without pixels to predict, a constant latent
would be a perfect prediction: the gradient is stopped at the target (sg) and VICReg's variance and covariance terms
(arXiv:2105.04906) keep the latents spread out. z_goal is the mean latent at the ends of the task's successful episodes.
Letters: M members, B rows, H commands, D latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.se3 import encode_pose, to_relative
from envs.types import Episode
from rewards.actions.encoder import ImageEncoder, random_shift

POSE_DIM = 20
VARIANCE_WEIGHT, COVARIANCE_WEIGHT = 1.0, 0.04
"""v and c; VICReg's 25 : 25 : 1 for invariance, variance and covariance."""
POSITION_SCALE = 10.0
"""Commands are a few centimetres from the pose; decimetres are numbers of the size of the others."""


@dataclass
class TransitionBatch:
    """States H steps apart with the commands between them; every member of an ensemble has rows of its own."""

    before: Tensor
    """uint8 [M, B, V, S, S, 3]."""
    after: Tensor
    """The same H steps later."""
    condition: Tensor
    """`conditions` of pose and commands, float [M, B, 20 (1 + H)]."""

    def __len__(self) -> int:
        return self.condition.shape[1]

    def to(self, device: torch.device | str) -> TransitionBatch:
        """On a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


def conditions(poses: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """What the predictor reads of poses [N, 16] and chunks of absolute commands [N, H, 16]: float32 [N, 20 (1 + H)]."""
    relative = to_relative(chunks, poses).reshape(*chunks.shape[:2], 2, POSE_DIM // 2)
    relative[..., :3] *= POSITION_SCALE
    return np.concatenate([encode_pose(poses), relative.reshape(len(poses), -1)], axis=1).astype(np.float32)


def transitions(episodes: Sequence[Episode], horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures before and after, uint8 [N, V, S, S, 3] each, and conditions [N, 20 (1 + H)].

    Every recorded state with another one `horizon` control steps later. ValueError if no two are that far apart.
    """
    before, after, poses, chunks = [], [], [], []
    for episode in episodes:
        places = {int(step): place for place, step in enumerate(episode.frame_steps)}
        for step, place in places.items():
            if step + horizon in places:
                before.append(episode.images[place])
                after.append(episode.images[places[step + horizon]])
                poses.append(episode.poses[step])
                chunks.append(episode.actions[step : step + horizon])
    if not before:
        raise ValueError(
            f"no episode has two pictures {horizon} control steps apart; a world model has nothing to learn"
        )
    return np.stack(before), np.stack(after), conditions(np.stack(poses), np.stack(chunks))


def variance_loss(latents: Tensor) -> Tensor:
    """L_var of latents [B, D]; 0 where every dimension has at least unit standard deviation."""
    return F.relu(1 - (latents.var(dim=0) + 1e-4).sqrt()).mean()


def covariance_loss(latents: Tensor) -> Tensor:
    """L_cov of latents [B, D]; 0 where dimensions are uncorrelated."""
    centred = latents - latents.mean(dim=0)
    covariance = centred.T @ centred / (len(latents) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / latents.shape[1]


class WorldModel(nn.Module):
    """Encoder and predictor."""

    def __init__(self, latent: int, horizon: int, hidden: int = 256) -> None:
        super().__init__()
        self.encoder = ImageEncoder(latent)
        self.predictor = nn.Sequential(
            nn.Linear(latent + POSE_DIM * (1 + horizon), hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, latent),
        )

    def predict(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Latents H steps later: [B, D] and [B, 20 (1 + H)] -> [B, D]."""
        return latents + self.predictor(torch.cat([latents, condition], dim=1))

    def loss(self, batch: TransitionBatch, member: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """L on a member's rows; beside it the prediction error over that of "nothing changes"."""
        both = random_shift(torch.cat([batch.before[member], batch.after[member]], dim=1), generator)  # one shift
        before, after = self.encoder(torch.cat(both.chunk(2, dim=1))).chunk(2)
        predicted = self.predict(before, batch.condition[member])
        error, still = ((guess - after.detach()).square().mean() for guess in (predicted, before.detach()))
        latents = torch.cat([before, after])
        spread, apart = variance_loss(latents), covariance_loss(latents)
        metrics = {
            "reward_model/prediction_over_still": error / still.clamp(min=1e-8),
            "reward_model/variance_loss": spread,
        }
        return error + VARIANCE_WEIGHT * spread + COVARIANCE_WEIGHT * apart, metrics
