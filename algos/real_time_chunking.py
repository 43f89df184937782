"""Real-time chunking (Black et al., arXiv:2506.07339): a new chunk is sampled so that it goes on as the robot does.

While the policy predicts, the robot runs what is left of the chunk before. The sampler is guided to these commands, as
in inpainting: firmly for those that will have been run when the new chunk is there, less and less for later ones.
Differs from the paper in nothing but the sign of time: here t = 1 is noise.
Letters: B rows, C commands of a chunk, A numbers of one, m commands left of the chunk before, d of these to be run.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, A], t [B]) -> dx/dt [B, C, A]."""

MAX_WEIGHT = 5.0
"""beta, the largest weight of the guidance (section 3.2)."""


def soft_mask(chunk: int, left: int, late: int) -> Tensor:
    """Eq. 5: how firmly slot i of a chunk is held, [C]: 1 for i < d, c (e^c - 1) / (e - 1) up to m, 0 behind, with
    c = (m - i) / (m - d + 1)."""
    slots = torch.arange(chunk, dtype=torch.float32)
    decay = ((left - slots) / (left - min(late, left) + 1)).clamp(min=0)
    return torch.where(slots < min(late, left), 1.0, decay * decay.exp().sub(1) / (math.e - 1))


def guided_step(velocity: Velocity, x_t: Tensor, time: float, step: float, plan: Tensor, mask: Tensor) -> Tensor:
    """One Euler step from t to t - `step`, [B, C, A], guided to `plan` [B, C, A] where `mask` [B, C, A] is not 0.

    Eqs. 2-4: dx/dt = v - w g, g = (plan - x_0)^T diag(mask) dx_0/dx_t with the clean chunk x_0 = x_t - t v that v
    points to, and w = min(beta, (t^2 + (1 - t)^2) / (t (1 - t))).
    """
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        v = velocity(x_t, torch.full((len(x_t),), time, device=x_t.device))
        clean = x_t - time * v
        (pull,) = torch.autograd.grad(clean, x_t, ((plan - clean) * mask).detach())
    odds = time * (1 - time)
    weight = MAX_WEIGHT if odds <= 0 else min(MAX_WEIGHT, (time**2 + (1 - time) ** 2) / odds)
    return (x_t - step * (v - weight * pull)).detach()


def sample_guided(velocity: Velocity, noise: Tensor, plan: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    """Chunks [B, C, A] that the flow makes of `noise`, guided in `num_steps` Euler steps; see `guided_step`."""
    x_t = noise
    for number in range(num_steps):
        x_t = guided_step(velocity, x_t, 1 - number / num_steps, 1 / num_steps, plan, mask)
    return x_t
