"""How much of a difference between two policies comes from the items and how much from the training seeds, and what
effect an experiment of a given size can show.

Letters: n items (questions or episodes), R replicates (training seeds), all replicates on the same items. Model of a
paired difference: D_ir = mu + a_i + b_r + e_ir, crossed random effects of item and replicate (Searle, Casella and
McCulloch, Variance Components, 1992, section 4.3, without replication inside the cells).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from rl_lab.reports.replicates import Array

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000
"""Above so many the question how many seeds are needed is answered with: more than that."""


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the parts of a difference, in its unit."""

    items: float
    """sigma_a: an item is harder for one policy than for the other, whatever the seed."""
    seeds: float
    """sigma_b: a training seed lifts one policy on all items; the part that no number of items averages out."""
    rest: float
    """sigma_e: what is particular to an item and a seed, sampling of answers included."""

    def standard_error(self, n: int, seeds: int) -> float:
        """SE of the mean difference: sqrt(sigma_a^2 / n + sigma_b^2 / R + sigma_e^2 / (n R))."""
        return math.sqrt(self.items**2 / n + self.seeds**2 / seeds + self.rest**2 / (n * seeds))

    def detectable(self, n: int, seeds: int, level: float = LEVEL, power: float = POWER) -> float:
        """Minimum detectable effect: the difference that a two-sided test at 1 - `level` finds with chance `power`.

        (q_{1 - alpha / 2} + q_power) SE, with quantiles of Student's t with R - 1 degrees of freedom, as few seeds
        leave; with one seed those of the normal distribution, and the effect then speaks of these trained policies.
        """
        quantiles = norm if seeds == 1 else t(seeds - 1)
        reach = quantiles.ppf(1 - (1 - level) / 2) + quantiles.ppf(power)
        return float(reach) * self.standard_error(n, seeds)

    def seeds_needed(self, effect: float, n: int, level: float = LEVEL, power: float = POWER) -> int | None:
        """Fewest training seeds, at least 2, with which `effect` is detectable; None if it takes over MOST_SEEDS."""
        counts = range(2, MOST_SEEDS + 1)
        place = bisect_left(counts, True, key=lambda count: self.detectable(n, count, level, power) <= effect)
        return counts[place] if place < len(counts) else None


def spread(differences: Array) -> Spread:
    """Estimates from differences [n, R] by the method of moments, negative variances set to 0.

    Rows with a missing value (NaN) are left out. ValueError for fewer than two complete items or two replicates: one
    replicate says nothing of how seeds differ.
    """
    known = differences[~np.isnan(differences).any(1)]
    n, seeds = known.shape
    if n < 2 or seeds < 2:
        raise ValueError(f"a spread needs at least 2 items and 2 training seeds, got {n} and {seeds}")
    mean, of_items, of_seeds = known.mean(), known.mean(1), known.mean(0)
    rest = known - of_items[:, None] - of_seeds[None, :] + mean
    by_item = seeds * ((of_items - mean) ** 2).sum() / (n - 1)
    by_seed = n * ((of_seeds - mean) ** 2).sum() / (seeds - 1)
    error = (rest**2).sum() / ((n - 1) * (seeds - 1))
    return Spread(
        items=math.sqrt(max(0.0, by_item - error) / seeds),
        seeds=math.sqrt(max(0.0, by_seed - error) / n),
        rest=math.sqrt(error),
    )
