"""The policy of studies: a small flow that reads the simulator's truth in place of pictures and words.

A step of it takes milliseconds, so that a question about objectives can be asked in many worlds and of many training
seeds before it is asked of pictures. Everything else is as of any policy (`algos.policy`). What it can do says nothing
about seeing, and whatever shows its numbers says that it has the simulator's truth.

Perceptrons with residuals predict the clean chunk from a noisy one, the time, the measured state and the truth.
Letters: B observations, N rows, C commands of a chunk, D numbers of one, W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algos.batch import ObservationBatch
from algos.flow_matching import velocity_from_clean
from algos.policy import FlowModel, PolicySpec

TIME_WIDTH = 64
SHORTEST_PERIOD = 0.01
"""Of the sines of the time, which is from 0 to 1; the longest is 4."""
TRUTH_FLOOR = 0.02
"""Smallest standard deviation of a number of the truth, metres or parts of a direction."""
TRUTH_LIMIT = 5.0
"""Standard deviations at which the truth is clipped: a thing on the floor is far from all demonstrations."""


class Block(nn.Module):
    """x + W2 silu(W1 norm(x) + condition)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[N, W], [N, W] -> [N, W]."""
        return x + self.outer(F.silu(self.inner(self.norm(x)) + condition))


class StatePolicy(FlowModel):
    """A flow policy of one task on `spec.truth_size` numbers of the simulator's truth."""

    loss_weight_clip = 0.3
    truth_mean: Tensor
    truth_std: Tensor
    frequencies: Tensor

    def __init__(self, spec: PolicySpec, width: int = 192, depth: int = 2) -> None:
        super().__init__(spec)
        chunk = spec.chunk_size * spec.command_size
        known = spec.state_size + spec.truth_size + TIME_WIDTH
        self.condition = nn.Sequential(nn.Linear(known, width), nn.SiLU(), nn.Linear(width, width))
        self.read, self.write = nn.Linear(chunk, width), nn.Linear(width, chunk)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.register_buffer("truth_mean", torch.zeros(spec.truth_size))
        self.register_buffer("truth_std", torch.ones(spec.truth_size))
        periods = SHORTEST_PERIOD * (4.0 / SHORTEST_PERIOD) ** torch.linspace(0, 1, TIME_WIDTH // 2)
        self.register_buffer("frequencies", 2 * torch.pi / periods, persistent=False)

    @torch.no_grad()
    def learn_truth(self, truth: np.ndarray) -> None:
        """Normalise as the truth of the demonstrations, [N, n], asks for."""
        self.truth_mean.copy_(torch.from_numpy(truth.mean(0)))
        self.truth_std.copy_(torch.from_numpy(truth.std(0)).clamp(min=TRUTH_FLOOR))

    def encode(self, observation: ObservationBatch) -> Tensor:
        """State and truth of each row, normalised, [B, E + n]. ValueError without the truth that it was made for."""
        truth, size = observation.truth, len(self.truth_mean)
        if truth is None or truth.shape[1] != size:
            found = "there is none" if truth is None else f"there are {truth.shape[1]}"
            raise ValueError(f"the policy of studies reads {size} numbers of the simulator's truth, but {found}")
        known: Any = (truth - self.truth_mean) / self.truth_std
        return torch.cat([observation.state, known.clamp(-TRUTH_LIMIT, TRUTH_LIMIT)], dim=1)

    def velocity(self, prefix: Tensor, x_t: Tensor, time: Tensor) -> Tensor:
        """See `FlowModel`: prefix [N, E + n], x_t [N, C, D], time [N]."""
        angle = time[:, None] * self.frequencies
        condition = self.condition(torch.cat([prefix, angle.sin(), angle.cos()], dim=1))
        x = self.read(x_t.flatten(1)) + condition
        for block in self.blocks:
            x = block(x, condition)
        return velocity_from_clean(x_t, self.write(self.norm(x)).view_as(x_t), time)
