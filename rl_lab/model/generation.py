"""What `generate()` needs to know about images: which belong to which row.

Letters: B rows, M images, N rows of pixel values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl_lab.model.sizes import MERGE


def repeat_visual(pixels: Tensor, grids: Tensor, tokens: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """Images of a batch whose every row is repeated `times` times: pixel values and grids, row after row.

    Takes pixel values [N, f], grids [M, 3] of the images (or videos) and their tokens in each row [B].
    """
    patches = grids.prod(-1).cpu()
    row_ends = tokens.cpu().cumsum(0) * MERGE**2
    row = torch.searchsorted(row_ends, patches.cumsum(0))
    images = torch.bincount(row, minlength=len(row_ends)).tolist()
    rows = zip(pixels.split((tokens.cpu() * MERGE**2).tolist()), grids.split(images), strict=True)
    repeated = [(own.repeat(times, 1), shapes.repeat(times, 1)) for own, shapes in rows]
    return torch.cat([own for own, _ in repeated]), torch.cat([shapes for _, shapes in repeated])
