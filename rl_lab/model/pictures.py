"""Pictures of a batch whose rows may share them: the G answers to a prompt see its images, which are encoded once.

Letters: B rows, S tokens of a row, N rows of pixel values, M pictures, p patch side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Self

import numpy as np
import torch
from torch import Tensor

from algos.batch import TensorRecord
from algos.token_batch import TokenBatch
from rl_lab.model.images import Grid, ImageProcessor, Picture
from rl_lab.model.packing import Layout, build_layout, frame_grids
from rl_lab.model.sizes import MERGE


@dataclass
class Pictures(TensorRecord):
    """M different images and videos, and which of them every row shows."""

    pixels: Tensor
    """Patches of all pictures, one after the other, float [N, 3 * p * p]."""
    grids: tuple[Grid, ...]
    """Frames, height and width in patches of each."""
    is_video: tuple[bool, ...]
    """A video has other tokens than an image, also one of a single frame."""
    shown: tuple[tuple[int, ...], ...]
    """Pictures of every row, in the order of their tokens."""

    @classmethod
    def of_images(cls, images: Sequence[Picture], shown: Sequence[Sequence[int]], processor: ImageProcessor) -> Self:
        """Images as a checkpoint's processor cuts them."""
        done = [processor(image) for image in images]
        return cls(
            pixels=torch.from_numpy(np.concatenate([patches for patches, _ in done])),
            grids=tuple(grid for _, grid in done),
            is_video=(False,) * len(done),
            shown=tuple(map(tuple, shown)),
        )

    def select(self, rows: Tensor) -> Self:
        """These rows and the pictures that they show."""
        shown = [self.shown[row] for row in rows.tolist()]
        kept = sorted({index for row in shown for index in row})
        parts = self.pixels.split([math.prod(grid) for grid in self.grids])
        return replace(
            self,
            pixels=torch.cat([parts[index] for index in kept]) if kept else self.pixels[:0],
            grids=tuple(self.grids[index] for index in kept),
            is_video=tuple(self.is_video[index] for index in kept),
            shown=tuple(tuple(kept.index(index) for index in row) for row in shown),
        )

    def _tokens_of(self, index: int) -> np.ndarray:
        """Place of the encoded patches of a picture among those of all, after merging."""
        counts = [math.prod(grid) // MERGE**2 for grid in self.grids]
        start = list(accumulate(counts, initial=0))[index]
        return np.arange(start, start + counts[index])

    def layout(self, input_ids: Tensor, attention_mask: Tensor, special_token_ids: dict[str, int]) -> Layout:
        """Layout of rows [B, S] that read each picture as often as they show it; see `build_layout`."""
        order = [index for row in self.shown for index in row]
        images = [index for index in order if not self.is_video[index]]
        videos = [index for index in order if self.is_video[index]]
        grids = [[self.grids[index] for index in part] or None for part in (images, videos)]
        layout = build_layout(input_ids, attention_mask, special_token_ids, *grids)
        if not order:
            return replace(layout, grids=())
        read = torch.from_numpy(np.concatenate([self._tokens_of(index) for index in images + videos]))
        return replace(
            layout,
            grids=frame_grids(self.grids, None),
            patch_order=read if layout.patch_order is None else read[layout.patch_order],
        )


def batch_layout(batch: TokenBatch, special_token_ids: dict[str, int]) -> Layout:
    """Layout of a batch and its pictures, on the CPU."""
    if batch.visual is None:
        return build_layout(batch.input_ids, batch.attention_mask, special_token_ids)
    return batch.visual.layout(batch.input_ids, batch.attention_mask, special_token_ids)
