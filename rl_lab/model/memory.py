"""The memory encoder of Hy-VLA (arXiv:2606.14409; released code): past frames inside the vision tower, no new weights.

Letters: M groups of frames (observations times cameras), K frames of a group with the current one last, n patches of a
frame, H heads, d head size, W tower width.

Every `stride`-th block becomes space-time: each patch position attends causally over its K frames before the usual
attention inside each frame. Time 0 is the *oldest* frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class History:
    """How the vision tower reads groups of frames."""

    frames: int = 1
    """K; consecutive images, the current one last."""
    stride: int = 4
    """Blocks stride - 1, 2 * stride - 1, ... are space-time."""
    drop_layer: int | None = None
    """Only the current frame enters this block and the later ones; None: all frames run to the end."""

    def is_spacetime(self, block: int) -> bool:
        """Whether frames meet in this block; a single frame has none to meet."""
        return self.frames > 1 and block % self.stride == self.stride - 1

    def cut(self, depth: int) -> int:
        """Block of a tower of `depth` blocks before which the past frames are dropped.

        Frames meet in space-time blocks only, so after the last of those past frames are of no use: dropping them
        there, and not at the end, changes no number.
        """
        after_spacetime = depth // self.stride * self.stride
        return after_spacetime if self.drop_layer is None else min(self.drop_layer, after_spacetime)


NO_HISTORY = History()
"""Every image by itself."""


def time_embedding(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """Embedding of the frame's time t = 0 .. K - 1, float32 [K, W]; zero for the oldest frame.

    e(t)[2j] = sin(t w_j), e(t)[2j + 1] = cos(t w_j) - 1, w_j = 100^(-2j / W).
    """
    frequency = 100.0 ** (-torch.arange(0, width, 2, device=device).float() / width)
    angle = torch.arange(frames, device=device).float()[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos() - 1], dim=-1).flatten(1)


def add_time(x: Tensor, time: Tensor) -> Tensor:
    """Images [M * K, n, W] plus the embedding of each one's time, [K, W]."""
    return (x.unflatten(0, (-1, len(time))) + time[:, None].to(x.dtype)).flatten(0, 1)


def values_over_time(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
    """Values mixed over time: at each patch and head, softmax(q k^T / sqrt(d)) v over this and earlier frames.

    q, k, v and the result are [M * K, H, n, d]. Written out because the sequences are K long: fused attention kernels
    pad them to whole tiles and limit how many there may be.
    """
    q, k, v = (heads.unflatten(0, (-1, frames)).movedim(1, -2) for heads in (q, k, v))  # [M, H, n, K, d]
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    later = torch.ones(frames, frames, dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1).to(v.dtype)
    return (weights @ v).movedim(-2, 1).flatten(0, 1)
