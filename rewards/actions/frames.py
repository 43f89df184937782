"""One number from one picture: the network and the loss that success and progress models have in common.

    p(o) = s(w . E(o) + b),   L = -mean [y log p + (1 - y) log(1 - p)]

with targets y in [0, 1]: the cross-entropy is a proper score, so p estimates the mean of y given the picture.
Letters: M members of an ensemble, B rows, V views, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewards.actions.encoder import ImageEncoder, random_shift


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
    """Logit of a picture."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(latent)
        self.linear = nn.Linear(latent, 1)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, V, S, S, 3] -> [B]."""
        return self.linear(self.encoder(images))[:, 0]

    def loss(self, batch: FrameBatch, member: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of a member's rows, and how often it is on the right side of a half."""
        logits, targets = self(random_shift(batch.images[member], generator)), batch.targets[member]
        accuracy = ((logits > 0) == (targets > 0.5)).float().mean()
        return F.binary_cross_entropy_with_logits(logits, targets), {"reward_model/accuracy": accuracy}
