"""The image encoder that all reward models share: four strided convolutions over the stacked camera views.

Letters: B rows, V views, S image side, D latent size. As small as DrQ's (arXiv:2004.13649), whose random shift it uses:
a few hundred episodes are soon known by heart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VIEWS = 3
WIDTHS = (32, 64, 64, 128)
GRID = 4
"""Side of the feature map that is flattened: places matter, so it is not averaged away."""
SHIFT_PIXELS = 4


class ImageEncoder(nn.Module):
    """uint8 views [B, V, S, S, 3] -> latents [B, D]."""

    def __init__(self, latent: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3 * VIEWS, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1] * GRID * GRID, latent)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        if images.shape[1:2] != (VIEWS,) or images.shape[-1:] != (3,) or images.dtype != torch.uint8:
            shape = tuple(images.shape)
            raise ValueError(f"images are {images.dtype} {shape}; the encoder reads uint8 [B, {VIEWS}, S, S, 3]")
        stacked = images.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255.0 - 0.5
        features = F.adaptive_avg_pool2d(self.convolutions(stacked), GRID)
        return self.head(features.flatten(1))


def random_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Views moved by up to SHIFT_PIXELS in both directions, borders repeated; each row by its own shift.

    uint8 [B, V, S, S, 3] -> the same shape; the views of a row move together.
    """
    size, device = images.shape[2], images.device
    offsets = torch.randint(-SHIFT_PIXELS, SHIFT_PIXELS + 1, (2, len(images), 1), generator=generator).to(device)
    rows, columns = (torch.arange(size, device=device) + offsets).clamp(0, size - 1)
    row = torch.arange(len(images), device=device)[:, None, None]
    return images.movedim(1, -1)[row, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
