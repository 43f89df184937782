"""Flow-SDE: a flow policy explores by noise in its sampler that changes no marginal (Flow-GRPO, arXiv:2505.05470,
section 4; with robots pi_RL, arXiv:2510.25889).

The flow's ODE dx = v dt and, for any sigma_t, the SDE

    dx = [v + sigma_t^2 / (2 t) (x + (1 - t) v)] dt + sigma_t dw,    sigma_t = a sqrt(t / (1 - t)),

run from t = 1 to 0, have the same distribution at every t: -(x + (1 - t) v) / t is the score of x_t where v is exact.
An Euler step of the SDE is a Gaussian, so each denoising step is a decision with a known probability.

1. At t = 1, where sigma_t is infinite, it is that of the next time, as in the released code.
2. Log-probabilities are sums over a chunk, so that ratios are those of probabilities; the released code takes means,
   which makes ratios of almost 1 and needs tiny clips.
3. No KL term to a reference, as in pi_RL; no critic, of which pi_RL has one, and every step is noisy, not one drawn.
4. Few denoising steps while exploring, the sampler's own afterwards, as Flow-GRPO's denoising reduction.
Letters as in `algos.policy_gradients.clipped`.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from algos.batch import ExploredBatch
from algos.flow_matching import policy_prefix
from algos.objective import VelocityPolicy
from algos.policy_gradients.clipped import PolicyGradient, Transition, Velocity, at_time, path_logprobs


def sde_sigma(time: float, step: float, noise: float) -> float:
    """sigma_t = a sqrt(t / (1 - t)) with a = `noise`; at t = 1 that of t - step."""
    t = min(time, 1 - step)
    return noise * math.sqrt(t / (1 - t))


def sde_transition(velocity: Velocity, noise: float) -> Transition:
    """Euler-Maruyama steps of the SDE; with a = 0 those of the ODE."""

    def transition(x_t: Tensor, time: float, step: float) -> tuple[Tensor, Tensor]:
        v, sigma = velocity(x_t, at_time(x_t, time)), sde_sigma(time, step, noise)
        drift = v + sigma**2 / (2 * time) * (x_t + (1 - time) * v)
        return x_t - step * drift, x_t.new_tensor(sigma * math.sqrt(step))

    return transition


class FlowGRPO(PolicyGradient):
    """One ratio for every denoising step of a decision, each clipped."""

    def __init__(self, *, noise: float, groups: tuple[str, ...] = ("expert",), epsilon: float = 0.2) -> None:
        """`noise`: a of the SDE that explored. ValueError without any: such steps have no probability."""
        super().__init__(groups=groups, epsilon=epsilon)
        if noise <= 0:
            raise ValueError(f"noise is {noise}; steps without noise have no probability, give more than 0")
        self.noise = noise

    def logprobs(self, policy: VelocityPolicy, batch: ExploredBatch) -> Tensor:
        """See `PolicyGradient`: of every step, [B, K]."""
        velocity = partial(policy.velocity, policy_prefix(policy, batch, self.groups))
        return path_logprobs(sde_transition(velocity, self.noise), batch.path, batch.executed)
