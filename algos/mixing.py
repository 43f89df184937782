"""Batches of fixed composition from several buffers: 80/20, then 70/15/15 in FlowPRO (arXiv:2606.14409, appendix C).

Every buffer is read in shuffled passes of its own (without replacement within a pass), so that each of its rows is used
equally often. Where in which pass a step reads follows from the step number alone: a resumed run needs no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


def mix_counts(batch_size: int, ratios: Sequence[float], sizes: Sequence[int]) -> np.ndarray:
    """Rows of each buffer in a batch, int64 [K], by largest remainder; they sum to `batch_size`.

    The share of an empty buffer goes to the others in proportion to their ratios. ValueError when no buffer with a
    positive ratio has rows, or for ratios that are no shares.
    """
    shares = np.asarray(ratios, dtype=np.float64)
    if shares.shape != (len(sizes),) or not np.all(np.isfinite(shares)) or np.any(shares < 0):
        raise ValueError(f"mixing ratios {list(ratios)} do not fit {len(sizes)} buffers; give one number >= 0 for each")
    if batch_size < 1:
        raise ValueError(f"batch size is {batch_size}; it must be at least 1")
    shares = np.where(np.asarray(sizes) > 0, shares, 0.0)
    if shares.sum() == 0:
        raise ValueError(f"no rows to draw: buffer sizes are {list(sizes)} for mixing ratios {list(ratios)}")
    quotas = batch_size * shares / shares.sum()
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    largest = np.argsort(counts - quotas, kind="stable")
    counts[largest[: batch_size - counts.sum()]] += 1
    return counts


class MixedSampler:
    """Which rows step 0, 1, ... of an optimisation reads; a pure function of seed and step.

    `ratios` None draws from all buffers together, uniformly over their rows (plain aggregation).
    """

    def __init__(self, sizes: Sequence[int], ratios: Sequence[float] | None, batch_size: int, seed: int) -> None:
        self.sizes = tuple(int(size) for size in sizes)
        self.seed = seed
        self.aggregated = ratios is None
        self.counts = mix_counts(batch_size, self.sizes if ratios is None else ratios, self.sizes)
        """Rows of each buffer in a batch, [K]; for aggregation the nearest whole numbers to the mean composition."""
        self.lent = (
            ()
            if ratios is None
            else tuple(
                number
                for number, (ratio, size) in enumerate(zip(ratios, self.sizes, strict=True))
                if ratio > 0 and not size
            )
        )
        """Numbers of the empty buffers whose share went to the others; to be reported."""

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Buffer number and row of each sample of a batch, both int64 [batch_size], grouped by buffer."""
        if self.aggregated:
            return self._aggregated_rows(step)
        source = np.repeat(np.arange(len(self.sizes)), self.counts)
        parts = [
            self._read(buffer, size, step * count, count)
            for buffer, (size, count) in enumerate(zip(self.sizes, self.counts.tolist(), strict=True))
        ]
        return source, np.concatenate(parts)

    def numbers(self, step: int) -> np.ndarray:
        """Row of each sample counted through the buffers, one after another, int64 [batch_size]."""
        source, row = self.rows(step)
        return (np.cumsum(self.sizes) - self.sizes)[source] + row

    def _aggregated_rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        batch_size, ends = int(self.counts.sum()), np.cumsum(self.sizes)
        row = np.sort(self._read(len(self.sizes), int(ends[-1]), step * batch_size, batch_size))
        source = np.searchsorted(ends, row, side="right")
        return source, row - (ends - np.asarray(self.sizes))[source]

    def _read(self, buffer: int, size: int, position: int, count: int) -> np.ndarray:
        """`count` rows from `position` on in the endless sequence of passes over a buffer."""
        places = np.arange(position, position + count)
        if count == 0:
            return places
        passes = places // size
        orders = {int(number): _pass_order(self.seed, buffer, int(number), size) for number in np.unique(passes)}
        return np.array([orders[int(number)][place % size] for number, place in zip(passes, places, strict=True)])


@lru_cache(maxsize=64)
def _pass_order(seed: int, buffer: int, number: int, size: int) -> np.ndarray:
    """Order of the rows of a buffer in one pass over it."""
    return np.random.default_rng((seed, buffer, number)).permutation(size)
