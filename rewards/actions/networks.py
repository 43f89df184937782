"""The networks of the learned action rewards, and what they learn from: success and progress models, a world model.

All share one image encoder: four strided convolutions over the stacked camera views, as small as DrQ's
(arXiv:2004.13649), whose random shift they use: a few hundred episodes are soon known by heart.

Letters: M members of an ensemble, B rows, N examples, V views, S image side, H commands, D latent size.
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

VIEWS = 3
"""Of two arms; other layouts have as many as they name."""

WIDTHS = (32, 64, 64, 128)

GRID = 4
"""Side of the feature map that is flattened: places matter, so it is not averaged away."""

SHIFT_PIXELS = 4


class ImageEncoder(nn.Module):
    """uint8 views [B, V, S, S, 3] -> latents [B, D]."""

    def __init__(self, latent: int = 64, views: int = VIEWS) -> None:
        super().__init__()
        self.views = views
        layers: list[nn.Module] = []
        for before, after in zip((3 * views, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1] * GRID * GRID, latent)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        if images.shape[1:2] != (self.views,) or images.shape[-1:] != (3,) or images.dtype != torch.uint8:
            shape = tuple(images.shape)
            raise ValueError(f"images are {images.dtype} {shape}; the encoder reads uint8 [B, {self.views}, S, S, 3]")
        stacked = images.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255.0 - 0.5
        features = F.adaptive_avg_pool2d(self.convolutions(stacked), GRID)
        return self.head(features.flatten(1))


def random_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Views moved by up to SHIFT_PIXELS in both directions, borders repeated; each row by its own shift.

    uint8 [B, V, S, S, 3] -> the same shape; the views of a row move together.
    """
    size, device = images.shape[2], images.device
    offsets = torch.randint(-SHIFT_PIXELS, SHIFT_PIXELS + 1, (2, len(images), 1), generator=generator).to(device)
    rows, columns = (torch.arange(size, device=device) + offsets).clamp(0, size - 1)
    row = torch.arange(len(images), device=device)[:, None, None]
    return images.movedim(1, -1)[row, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@dataclass
class FrameBatch:
    """Pictures with what they are worth; every member of an ensemble has rows of its own."""

    images: Tensor
    """uint8 [M, B, V, S, S, 3]."""
    targets: Tensor
    """float [M, B], in [0, 1]."""

    def __len__(self) -> int:
        return self.targets.shape[1]

    def to(self, device: torch.device | str) -> FrameBatch:
        """On a device."""
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))


class FrameScore(nn.Module):
    """One number from one picture: the network and the loss that success and progress models have in common.

        p(o) = s(w . E(o) + b),   L = -mean [y log p + (1 - y) log(1 - p)]

    with targets y in [0, 1]: the cross-entropy is a proper score, so p estimates the mean of y given the picture.
    """

    def __init__(self, latent: int, views: int = VIEWS) -> None:
        super().__init__()
        self.encoder = ImageEncoder(latent, views)
        self.linear = nn.Linear(latent, 1)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, V, S, S, 3] -> logits [B]."""
        return self.linear(self.encoder(images))[:, 0]

    def loss(self, batch: FrameBatch, member: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of a member's rows, and how often it is on the right side of a half."""
        logits, targets = self(random_shift(batch.images[member], generator)), batch.targets[member]
        accuracy = ((logits > 0) == (targets > 0.5)).float().mean()
        return F.binary_cross_entropy_with_logits(logits, targets), {"reward_model/accuracy": accuracy}


LAST_FRAMES = 2
"""Pictures of each episode that are learned: the end and the decision before it."""


def success_targets(episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, V, S, S, 3] and targets float32 [N] of the ends of episodes: do they look like a success?

        y = 1 if the episode succeeded else 0, for its last pictures;   R(episode) = p(last picture)

    The classifier that robot learning uses where no simulator says so (for example arXiv:1904.07854, section IV,
    without its queries). It has seen ends of episodes alone: what it says about pictures in their midst is an
    extrapolation.
    """
    images = [np.asarray(episode.images[-LAST_FRAMES:]) for episode in episodes]
    labels = [float(episode.success) for episode in episodes]
    return np.concatenate(images), np.repeat(labels, [len(part) for part in images]).astype(np.float32)


def progress_targets(episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, V, S, S, 3] and targets float32 [N] of all recorded states: how soon do they end in success?

        y_t = 1[success] (1 - (T - t) / L),   V(o) = E[y | o]

    A Monte-Carlo value function of the policy that was recorded. T control steps to the end, L the longest episode.
    That is RECAP's return (arXiv:2511.14759, section IV: -1 a step, a large constant at a failure) on a scale of 0 (a
    failure, or as far from success as possible) to 1 (success now).
    """
    longest = max(episode.num_steps for episode in episodes)
    remaining = [episode.num_steps - episode.frame_steps for episode in episodes]
    targets = [episode.success * (1 - left / longest) for episode, left in zip(episodes, remaining, strict=True)]
    return np.concatenate([np.asarray(e.images) for e in episodes]), np.concatenate(targets).astype(np.float32)


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


class WorldModel(nn.Module):
    """Goal reward of a small action-conditioned latent world model: NORA-1.5's first reward (arXiv:2511.14659).

        z_t = E(o_t),   z^_{t+H} = z_t + P(z_t, pose_t, a_t..t+H-1)
        L = mean |z^_{t+H} - sg z_{t+H}|^2 + v L_var + c L_cov
        L_var = mean_j max(0, 1 - std_j(z)),   L_cov = sum_{i != j} Cov_ij(z)^2 / D
        R(o_t, a) = -mean |z^_{t+H} - z_goal|

    A joint-embedding predictive architecture with the actions as its condition, as V-JEPA 2-AC (arXiv:2506.09985),
    which NORA-1.5 uses frozen; ours is trained from nothing on a run's own episodes. Without pixels to predict, a
    constant latent would be a perfect prediction: the gradient is stopped at the target (sg) and VICReg's variance and
    covariance terms (arXiv:2105.04906) keep the latents spread out. z_goal is the mean latent at the ends of the task's
    successful episodes.
    """

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
