"""Auxiliary pose loss: every vision token of the head camera must tell where the objects are, in training only.

A stand-in for the spatial pre-training that a small policy lacks: it speeds up the vision tower's first steps with the
simulator's ground truth. The policy itself never sees that truth, and the probe is not saved with it.
"""

from __future__ import annotations

from torch import Tensor, nn

HEAD_CAMERA = 0
"""Index in `envs.types.CAMERAS`; wrist cameras often cannot see what is asked for, which would be irreducible loss."""


class PoseProbe(nn.Module):
    """RMSNorm and a linear map from each head-camera token to the standardised truth vector."""

    def __init__(self, hidden_size: int, truth_size: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.linear = nn.Linear(hidden_size, truth_size)

    def forward(self, vision: Tensor) -> Tensor:
        """Prediction of each head-camera token: vision tokens [B, V, n, hidden] -> [B, n, truth]."""
        return self.linear(self.norm(vision[:, HEAD_CAMERA].float()))

    def losses(self, vision: Tensor, truth: Tensor) -> Tensor:
        """Mean squared error of each row over its tokens and truth dims: [B, V, n, hidden], [B, truth] -> [B]."""
        return (self(vision) - truth[:, None]).square().mean(dim=(1, 2))
