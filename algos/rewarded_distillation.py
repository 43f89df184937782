"""Distillation with rewards: the divergence to a teacher plus a weighted GRPO loss, on the same answers.

L = L_distillation + reward_weight * L_GRPO. Ours; HY-Embodied-0.5 (arXiv:2604.07430) distils without rewards. A reward
tells apart answers of one prompt that the teacher finds equally likely, so there must be several of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from algos.distillation import Distillation
from algos.grpo import GRPO


class RewardedDistillation:
    """Both objectives on a `RolloutBatch` (with stored top-k, a `ScoredRolloutBatch`); each has its own count."""

    def __init__(self, distillation: Distillation, grpo: GRPO, reward_weight: float) -> None:
        if distillation.groups != grpo.groups:
            raise ValueError(f"distillation trains {distillation.groups} but GRPO {grpo.groups}; train the same groups")
        self.distillation, self.grpo, self.reward_weight = distillation, grpo, reward_weight
        self.groups = distillation.groups

    def parameters(self) -> Iterable[nn.Parameter]:
        """None: neither objective has weights of its own."""
        return ()

    def denominator(self, batch: Any) -> tuple[int, int]:
        """What the losses of this whole batch are divided by: the divergence, then GRPO's."""
        return self.distillation.denominator(batch), self.grpo.denominator(batch)

    def metric_count(self, name: str, batch: Any) -> int:
        """See `Objective`; the two losses are sums."""
        part = self.distillation if name.startswith("distill/") else self.grpo
        return part.metric_count(name, batch)

    def loss(
        self, policy: Any, batch: Any, generator: torch.Generator, denominator: tuple[int, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and the metrics of both; see `Objective.loss`. Uses no randomness."""
        first, second = denominator or self.denominator(batch)
        divergence, metrics = self.distillation.loss(policy, batch, generator, first)
        surrogate, more = self.grpo.loss(policy, batch, generator, second)
        return divergence + self.reward_weight * surrogate, metrics | more
