"""Drawing without replacement by weight, and equal shares for categories of unequal size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from algos.curriculum.items import Array
from algos.curriculum.posterior import Floats

ALL = -1
"""Category of a draw from all categories at once."""


@dataclass(frozen=True)
class WeightedDraw:
    """Items taken for one reason out of one category, and the odds that they had."""

    reason: str
    """frontier, unseen, stale, pinned, uniform, probe, stage, easy, normal, hard or own."""
    category: int
    """Category code, or ALL."""
    numbers: Array
    chances: Array
    """Expected number of times that the item was taken, at most 1: places * weight / total weight."""
    candidates: int
    """Items that could have been taken."""
    total_weight: float
    """Sum of their weights; the number of candidates for even draws."""
    rest: int = 0
    """Steps that items of the category rest after a selection."""


@dataclass(frozen=True)
class Selection:
    """One batch of items, or the replacements of a refill."""

    step: int
    round: int
    """0 for the batch, 1, 2, ... for the refills of the same step."""
    draws: tuple[WeightedDraw, ...]
    trains: bool = True
    """False for a probe of stage mode: score it, do not train on it."""

    @property
    def numbers(self) -> Array:
        """Item numbers, int64 [B]. Empty when stage mode waits for results that are still out."""
        return np.concatenate([np.empty(0, np.int64), *(draw.numbers for draw in self.draws)])


BLOCK = 128
"""Weights that are summed together before a draw looks into them: running sums over a whole pool are slow."""


def draw_weighted(rng: np.random.Generator, weights: Floats, count: int) -> Array:
    """Up to `count` distinct positions, each next one with probability proportional to its weight among those left.

    Fewer only if fewer weights are positive. Draws with replacement and drops repetitions, which is the same law.
    What is drawn is struck out of `weights` meanwhile (a copy would cost more than the draw) and is back at the end.
    """
    chosen, struck = np.empty(0, np.int64), np.empty(0)
    while len(chosen) < count and weights.any():
        places = _positions(weights, rng.random(2 * (count - len(chosen)) + 8))
        places = places[(places < len(weights)) & (weights[np.minimum(places, len(weights) - 1)] > 0)]
        fresh = places[np.sort(np.unique(places, return_index=True)[1])][: count - len(chosen)]
        chosen, struck = np.concatenate([chosen, fresh]), np.concatenate([struck, weights[fresh]])
        weights[fresh] = 0.0
    weights[chosen] = struck
    return chosen


def _positions(weights: Floats, marks: Floats) -> Array:
    """Where each mark in [0, 1) falls on the line that weights share; on a tie it may be a position of weight zero."""
    sums = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK))
    ends = np.cumsum(sums)
    marks = marks * ends[-1]
    block = np.minimum(np.searchsorted(ends, marks, side="right"), len(sums) - 1)
    places = block[:, None] * BLOCK + np.arange(BLOCK)
    inside = np.cumsum(weights.take(places, mode="clip") * (places < len(weights)), axis=1)
    return block * BLOCK + (inside <= (marks - ends[block] + sums[block])[:, None]).sum(1)


def balanced_places(total: int, available: Array, turn: int = 0) -> Array:
    """Places of each category, int64 [C]: min(available, level) at the highest level that `total` allows.

    Places that do not divide evenly go to the categories in turn, the first of them being `turn` modulo C.
    """
    available = np.roll(np.asarray(available, dtype=np.int64), -turn % len(available))
    level, above = 0, total + 1
    while above - level > 1:
        middle = (level + above) // 2
        level, above = (middle, above) if np.minimum(available, middle).sum() <= total else (level, middle)
    places = np.minimum(available, level)
    places[np.flatnonzero(available > level)[: total - places.sum()]] += 1
    return np.roll(places, turn % len(available))
