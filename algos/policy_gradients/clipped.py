"""What policy gradients of flow policies share: sampling as a chain of Gaussians, and the clipped ratio of PPO.

A chunk is sampled in K steps from noise. With noise in each step these are decisions whose probabilities are known, so
that PPO (arXiv:1707.06347, eq. 7) can reinforce them: `flow_grpo`, `reinflow`. `fpo` has a stand-in for the probability
of a chunk instead. Episodes from one start are a group; the advantage of all decisions of an episode is its reward
relative to the group's (`algos.grpo.group_advantages`), so there is no critic. Log-probabilities are those of the
numbers that the robot ran, as in pi_RL (arXiv:2510.25889): of a chunk the next decision replaces the rest, whose noise
is no cause of success. (In all but the last denoising step it may have moved what was run, which is left out.)
Letters: B decisions, K denoising steps, C commands of a chunk, A numbers of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from algos.batch import ExploredBatch
from algos.grpo import GRPOOptions, surrogate
from algos.objective import Objective

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, A], t [B]) -> dx/dt [B, C, A]."""
Transition = Callable[[Tensor, float, float], tuple[Tensor, Tensor]]
"""(x_t [B, C, A], t, step) -> mean of x at t - step, [B, C, A], and its standard deviation, broadcastable to it."""


def at_time(x_t: Tensor, time: float) -> Tensor:
    """A time for every row, [B]."""
    return x_t.new_full((len(x_t),), time)


def sample_path(transition: Transition, noise: Tensor, draws: Tensor) -> Tensor:
    """x at t = 1, 1 - 1/K, ..., 0, [B, K + 1, C, A], from noise [B, C, A] by standard normal `draws` [K, B, C, A]."""
    path = [noise]
    for number, draw in enumerate(draws):
        mean, std = transition(path[-1], 1 - number / len(draws), 1 / len(draws))
        path.append(mean + std * draw)
    return torch.stack(path, dim=1)


def gaussian_logprob(x: Tensor, mean: Tensor, std: Tensor, counted: Tensor) -> Tensor:
    """log N(x; mean, std^2) summed over the numbers of a chunk that are `counted` (bool), each [B, C, A] -> [B]."""
    std = std.expand_as(x)
    logprob = -(((x - mean) / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2)
    return logprob.where(counted, 0.0).sum(dim=(-2, -1))


def path_logprobs(transition: Transition, path: Tensor, counted: Tensor) -> Tensor:
    """Log-probability of every step of a path, [B, K + 1, C, A] -> [B, K]; that of the noise depends on no weights.
    `counted` as in `gaussian_logprob`."""
    num_steps = path.shape[1] - 1
    steps = [transition(path[:, k], 1 - k / num_steps, 1 / num_steps) for k in range(num_steps)]
    return torch.stack([gaussian_logprob(path[:, k + 1], *step, counted) for k, step in enumerate(steps)], dim=1)


class PolicyGradient(Objective):
    """-min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A), mean over ratios and rows of an `ExploredBatch`."""

    def __init__(self, *, groups: tuple[str, ...] = ("expert",), epsilon: float = 0.2) -> None:
        """`epsilon`: of the clip. ValueError where it is no share."""
        self.groups = groups
        self.options = GRPOOptions(epsilon=epsilon)

    def logprobs(self, policy: Any, batch: ExploredBatch) -> Tensor:
        """What is known of the probability of each decision under the policy, [B, K]."""
        raise NotImplementedError

    def ratios(self, log_ratios: Tensor) -> Tensor:
        """Probability ratios, [B, anything], of differences of `logprobs`, [B, K]: here one for each step."""
        return log_ratios.exp()

    @torch.no_grad()
    def prepare(self, policy: Any, batch: ExploredBatch, generator: torch.Generator) -> ExploredBatch:
        """The batch with `old_logprobs` of the policy as it is now; to be called before the first step."""
        return replace(batch, old_logprobs=self.logprobs(policy, batch))

    def loss(
        self, policy: Any, batch: ExploredBatch, generator: torch.Generator, denominator: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and metrics `ratio/...` and `clip/region`, the share whose gradient the clip holds back. Uses no
        randomness. See `Objective.loss`."""
        assert batch.old_logprobs is not None, "prepare sees the rows before the first step"
        ratio = self.ratios(self.logprobs(policy, batch) - batch.old_logprobs)
        advantages = batch.advantages[:, None]
        losses = surrogate(ratio, advantages, self.options).mean(dim=1)
        low, high = self.options.ratio_bounds
        found = ratio.detach()
        clipped = ((found > high) & (advantages > 0)) | ((found < low) & (advantages < 0))
        spread = {"ratio/mean": found.mean(), "ratio/min": found.min(), "ratio/max": found.max()}
        return losses.sum() / (denominator or len(batch)), spread | {"clip/region": clipped.float().mean()}
