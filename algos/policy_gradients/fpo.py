"""FPO, Flow Policy Optimization (arXiv:2507.21053): the ratio of PPO from flow losses, without any probability.

    rho = exp(mean_r [l_old(r) - l_theta(r)])

with the flow-matching losses of the chunk that was run, on (noise, time) that are drawn once for each decision and kept
with their losses under the policy that explored: the flow loss bounds -log p from above, up to a constant and weights
of t. The policy explores by its initial noise alone, and may sample as it likes.

1. Flow losses are means over the numbers of a chunk, so a `scale` takes them to the size of log-probabilities.
2. They are of the whole chunk, those of its commands that were not run as well: a policy gives one loss for each.
3. No critic: advantages are relative to a group; the paper has one.
Letters as in `algos.policy_gradients.clipped`; R draws of (noise, time), which stand in the place of K.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from algos.batch import ExploredBatch
from algos.flow_matching import check_draws, draw_flow, policy_prefix, with_draws
from algos.objective import FlowPolicy
from algos.policy_gradients.clipped import PolicyGradient


class FPO(PolicyGradient):
    """One ratio a decision, from the mean over its draws."""

    def __init__(
        self, *, draws: int = 8, scale: float = 1.0, groups: tuple[str, ...] = ("expert",), epsilon: float = 0.05
    ) -> None:
        """`draws`: R of each decision. ValueError for none."""
        super().__init__(groups=groups, epsilon=epsilon)
        check_draws(draws)
        self.draws, self.scale = draws, scale

    def logprobs(self, policy: FlowPolicy, batch: ExploredBatch) -> Tensor:
        """See `PolicyGradient`: -scale times the loss at each kept draw, [B, R]."""
        assert batch.draws is not None, "prepare draws once for all steps"
        prefix = policy_prefix(policy, batch, self.groups)
        noise, time, rows = draw_flow(policy, batch, self.draws, torch.default_generator)
        return -self.scale * policy.flow_losses(prefix, batch.actions[rows], noise, time, rows).view(-1, self.draws)

    def ratios(self, log_ratios: Tensor) -> Tensor:
        """exp of the mean over the draws, [B, 1]."""
        return log_ratios.mean(dim=1, keepdim=True).exp()

    @torch.no_grad()
    def prepare(self, policy: FlowPolicy, batch: ExploredBatch, generator: torch.Generator) -> ExploredBatch:
        """See `PolicyGradient`; draws as well."""
        drawn = with_draws(policy, batch, self.draws, generator)
        return replace(drawn, old_logprobs=self.logprobs(policy, drawn))
