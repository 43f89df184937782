"""What sweeps and studies share: results of the same items or episodes under training seeds, compared pair by pair, and
what difference so many of both can find.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_lab.reports.numbers import Row
from rl_lab.stats import Array, Spread

ERROR = 0.05
"""Chance that any comparison of a sweep or a study between equals is called decided."""
EFFECT = 0.05
"""A difference that is worth finding: 5 points."""
Unit = Any
"""What one row of a table is about: the id of an item, or (task, variant, seed) of an episode."""


@dataclass(frozen=True)
class Results:
    """A value for each of n units under each of R training seeds."""

    values: Mapping[str, Mapping[int, Mapping[Unit, float]]]
    """By variant or method, training seed and unit."""

    def seeds(self, variant: str) -> list[int]:
        """Training seeds with a result."""
        return sorted(self.values.get(variant, {}))

    def table(self, variant: str, seeds: Sequence[int], units: Sequence[Unit]) -> Array:
        """Values of a variant, [n, R]; NaN where one is missing."""
        columns = [self.values[variant][seed] for seed in seeds]
        rows = [[column.get(unit, math.nan) for column in columns] for unit in units]
        return np.array(rows, dtype=np.float64).reshape(len(units), len(seeds))

    def sides(self, variant: str, baseline: str, units: Sequence[Unit]) -> tuple[Array, Array]:
        """Values of a variant and of the baseline, [n, R] each, for the training seeds that both have."""
        shared = sorted({*self.seeds(variant)} & {*self.seeds(baseline)})
        return self.table(variant, shared, units), self.table(baseline, shared, units)


def num_episodes(config: Row) -> int:
    """Of an evaluation."""
    return config["eval"]["episodes"] * len(config["env"]["tasks"]) * len(config["env"]["variants"])


def power(found: Spread, n: int, seeds: int, comparisons: int) -> Row:
    """What n items or episodes and so many training seeds find, at a level at which all comparisons hold together."""
    level = 1 - ERROR / comparisons
    return {
        "level": level,
        "detectable": found.detectable(n, seeds, level),
        "effect": EFFECT,
        "seeds_needed": found.seeds_needed(EFFECT, n, level),
    }
