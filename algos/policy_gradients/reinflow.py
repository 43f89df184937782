"""ReinFlow (arXiv:2505.22094): a flow policy explores by noise whose size a small network learns beside it.

    x_{k+1} = x_k - step v(x_k, t_k) + sigma(t_k, s) e,    e ~ N(0, I)

is a chain of Gaussians from noise to chunk, whose joint log-probability is the sum over its steps; one ratio of it
stands for the whole decision (as pi_RL's Flow-Noise, arXiv:2510.25889). The mean is the ODE's step, so unlike in
`flow_grpo` noise changes what is sampled. It is learned with the policy, and left out when that is evaluated.

1. The network reads the time and the measured state, not what else the policy sees, so that it serves any policy.
2. No critic, no entropy bonus: advantages are relative to a group. The paper has both.
Letters as in `algos.policy_gradients.clipped`; E numbers of an encoded state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from algos.batch import ExploredBatch
from algos.flow_matching import policy_prefix
from algos.objective import VelocityPolicy
from algos.policy_gradients.clipped import PolicyGradient, Transition, Velocity, at_time, path_logprobs

WIDTH = 64


class NoiseNet(nn.Module):
    """sigma of every number of a chunk, between two bounds; at first their geometric mean whatever it reads."""

    def __init__(self, state_size: int, chunk: tuple[int, int], bounds: tuple[float, float]) -> None:
        """ValueError unless 0 < lower <= upper bound."""
        super().__init__()
        if not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"the bounds of the noise are {list(bounds)}; give 0 < lower <= upper")
        self.chunk, self.bounds = chunk, bounds
        self.layers = nn.Sequential(nn.Linear(state_size + 1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, chunk[0] * chunk[1]))
        last = cast(nn.Linear, self.layers[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, state: Tensor, time: Tensor) -> Tensor:
        """[B, E], [B] -> [B, C, A]: log sigma is linear between the bounds in (1 + tanh) / 2 of what is learned."""
        share = (1 + torch.tanh(self.layers(torch.cat([state, time[:, None]], dim=1)))) / 2
        low, high = map(math.log, self.bounds)
        return (low + (high - low) * share).exp().view(-1, *self.chunk)


def noisy_transition(velocity: Velocity, noise: NoiseNet, state: Tensor) -> Transition:
    """Euler steps of the ODE with learned noise behind each."""

    def transition(x_t: Tensor, time: float, step: float) -> tuple[Tensor, Tensor]:
        at = at_time(x_t, time)
        return x_t - step * velocity(x_t, at), noise(state, at)

    return transition


class ReinFlow(PolicyGradient):
    """One ratio a decision, of the joint probability of all its denoising steps."""

    def __init__(self, noise: NoiseNet, *, groups: tuple[str, ...] = ("expert",), epsilon: float = 0.2) -> None:
        super().__init__(groups=groups, epsilon=epsilon)
        self.noise = noise

    def parameters(self) -> Iterable[nn.Parameter]:
        """The noise network's."""
        return self.noise.parameters()

    def logprobs(self, policy: VelocityPolicy, batch: ExploredBatch) -> Tensor:
        """See `PolicyGradient`: of every step, [B, K]."""
        velocity = partial(policy.velocity, policy_prefix(policy, batch, self.groups))
        transition = noisy_transition(velocity, self.noise, batch.state)
        return path_logprobs(transition, batch.path, batch.executed)

    def ratios(self, log_ratios: Tensor) -> Tensor:
        """exp of the sum over the steps, [B, 1]."""
        return log_ratios.sum(dim=1, keepdim=True).exp()
