"""Images as packed patches.

Letters: M images, n patches of one image, N patches of all images, h x w patch grid of an image, p side of a patch in
pixels.

Patches are kept in merge order, (h/2, w/2, 2, 2), from the start: blocks attend within one image without regard to
order, and the merger then reads four neighbours as one slice. Images of one size lie together, as a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl_lab.model.sizes import MERGE


@dataclass(frozen=True)
class Run:
    """Consecutive images of one size in a packed sequence of patches."""

    count: int
    """Images."""
    height: int
    """Patches in a column."""
    width: int
    """Patches in a row."""

    @property
    def length(self) -> int:
        """Patches of one image."""
        return self.height * self.width

    def __len__(self) -> int:
        return self.count * self.length


def split_runs(x: Tensor, runs: Sequence[Run]) -> list[Tensor]:
    """Packed [N, ...] to one view [count, length, ...] per run."""
    parts = x.split([len(run) for run in runs])
    return [part.unflatten(0, (run.count, run.length)) for part, run in zip(parts, runs, strict=True)]


def pack_runs(parts: Sequence[Tensor]) -> Tensor:
    """Inverse of `split_runs`; a single run is not copied."""
    return parts[0].flatten(0, 1) if len(parts) == 1 else torch.cat([part.flatten(0, 1) for part in parts])


def keep_current(x: Tensor, runs: Sequence[Run], frames: int) -> tuple[Tensor, Sequence[Run]]:
    """The last image of every `frames` consecutive ones, packed [N / K, W], and their runs."""
    if frames == 1:
        return x, runs
    current = [part[frames - 1 :: frames] for part in split_runs(x, runs)]
    return pack_runs(current), [replace(run, count=run.count // frames) for run in runs]


def merge_order(grid: Tensor) -> Tensor:
    """[M, h, w, c] of a patch grid to [M, h * w, c] in merge order."""
    images, height, width, channels = grid.shape
    cells = grid.view(images, height // MERGE, MERGE, width // MERGE, MERGE, channels)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(images, height * width, channels)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images [M, 3, S, S] to patches [M, n, 3 * p * p] in merge order, features ordered (channel, row, column)."""
    count, channels, height, width = images.shape
    p = patch_size
    grid = images.view(count, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
    return merge_order(grid.reshape(count, height // p, width // p, channels * p * p))


def scale_pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 in [0, 255] or float in [0, 1] to [-1, 1]."""
    if images.dtype == torch.uint8:
        return (images.to(dtype) / 255) * 2 - 1
    return images.to(dtype) * 2 - 1


def reorder(packed: Tensor, lengths: Sequence[int], order: Sequence[int]) -> Tensor:
    """Images of a packed sequence in another order: the i-th of the result is image `order[i]`."""
    if list(order) == sorted(order):
        return packed
    parts = packed.split(list(lengths))
    return torch.cat([parts[image] for image in order])
