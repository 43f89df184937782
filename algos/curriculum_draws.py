"""Drawing without replacement by weight, and equal shares for categories of unequal size."""

from __future__ import annotations

import numpy as np

from algos.curriculum_items import Array
from algos.curriculum_posterior import Floats


def draw_weighted(rng: np.random.Generator, weights: Floats, count: int) -> Array:
    """Up to `count` distinct positions, each next one with probability proportional to its weight among those left.

    Fewer only if fewer weights are positive. Draws with replacement and drops repetitions, which is the same law.
    """
    left, chosen = weights.astype(np.float64), np.empty(0, np.int64)
    while len(chosen) < count:
        total = np.cumsum(left)
        if not len(left) or total[-1] <= 0:
            break
        marks = rng.random(2 * (count - len(chosen)) + 8) * total[-1]
        places = np.searchsorted(total, marks, side="right")
        places = places[(places < len(left)) & (left[np.minimum(places, len(left) - 1)] > 0)]
        fresh = places[np.sort(np.unique(places, return_index=True)[1])]
        chosen = np.concatenate([chosen, fresh])[:count]
        left[chosen] = 0.0
    return chosen


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
