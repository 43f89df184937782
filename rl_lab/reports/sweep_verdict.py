"""What a sweep showed of each variant: better, worse, not distinguishable from the baseline, and for whom that holds.

Paired differences of the truth, [n items or episodes, R training seeds], variant minus baseline at the same item and
seed. Of m variants each gets an interval of level 1 - 0.05 / m (Bonferroni), so that all of them hold together in 95 of
100 sweeps. Two intervals: over items and training seeds (hierarchical bootstrap, `stats`), and over items alone,
with these trained policies as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from rl_lab.reports.estimates import REWARD, Estimate
from rl_lab.reports.paired import EFFECT, ERROR
from rl_lab.stats import Array, Interval, Spread, mean_interval, spread

LEAST_SEEDS = 3
"""With fewer training seeds nothing is said about others."""


class Standing(StrEnum):
    """Where a variant stands beside the baseline."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "not distinguishable"


STANDINGS = {"above": Standing.BETTER, "below": Standing.WORSE, "open": Standing.OPEN}


class Scope(StrEnum):
    """What a verdict generalises over."""

    SEEDS = "training seeds and items"
    ITEMS = "items only"


@dataclass(frozen=True)
class Verdict:
    """A variant against the baseline."""

    standing: Standing
    scope: Scope
    n: int
    seeds: int
    difference: Interval
    """At the corrected level, over what `scope` says."""
    level: float
    detectable: float | None
    """Smallest difference that so many items and seeds find in 4 of 5 sweeps; None where nothing is known of spread."""
    seeds_needed: int | None
    """Training seeds for a difference of EFFECT; None where unknown or beyond reach."""
    spread: Spread | None = None
    """How much items and training seeds differ; None for a single seed, and where all differences are the same, as of
    policies that never succeed. A later sweep can plan with it."""

    def sentence(self, variant: str, baseline: str, unit: str = "items") -> str:
        """The verdict in one line."""
        low, high = self.difference.low, self.difference.high
        size = f"{self.difference.value:+.3f} [{low:+.3f}, {high:+.3f}]"
        seeds = f"{self.seeds} training seed{'s' if self.seeds > 1 else ''}"
        basis = f"{self.n} {unit} x {seeds}, level {100 * self.level:.3g} %"
        if self.standing is Standing.OPEN:
            return f"{variant}: not distinguishable from {baseline}: {size} ({basis}){self._outlook(unit)}"
        holds = (
            "holds for other training seeds too"
            if self.scope is Scope.SEEDS
            else f"holds for these trained policies on other {unit}; other training seeds may turn it around"
        )
        return f"{variant}: {self.standing} than {baseline} by {size} ({basis}); {holds}{self._outlook(unit)}"

    def _outlook(self, unit: str) -> str:
        """What more seeds would show."""
        if self.detectable is None and self.seeds > 1:
            return "; every difference is the same, which says nothing of how seeds differ"
        if self.detectable is None:
            return "; one training seed cannot tell how seeds differ, give at least 3"
        needed = f"more {unit}" if self.seeds_needed is None else f"{self.seeds_needed} training seeds"
        return f"; detectable here {self.detectable:.3f}, a difference of {EFFECT:g} needs {needed}"


def judge_variant(differences: Array, variants: int = 1) -> Verdict:
    """The verdict on one of `variants` variants from its differences [n, R].

    Seeds of which every difference is missing (NaN) are left out. ValueError without any difference.
    """
    known = differences[:, ~np.isnan(differences).all(0)]
    if not known.size:
        raise ValueError("there is no pair of a variant's and the baseline's result to compare")
    n, seeds = int((~np.isnan(known)).any(1).sum()), known.shape[1]
    level = 1 - ERROR / variants
    found = spread(known) if seeds > 1 and np.nanmax(known) > np.nanmin(known) else None
    over_seeds = mean_interval(known, level)
    over_items = mean_interval(np.nanmean(known, axis=1, keepdims=True), level)
    whole = seeds >= LEAST_SEEDS and (over_seeds.standing != "open" or over_items.standing == "open")
    scope = Scope.SEEDS if whole else Scope.ITEMS
    interval = over_seeds if scope is Scope.SEEDS else over_items
    outlook = _outlook(found, n, seeds, level)
    return Verdict(STANDINGS[interval.standing], scope, n, seeds, interval, level, *outlook, found)


def corrected(verdict: dict[str, Any], baseline: str) -> Estimate:
    """The difference of a verdict, whose interval keeps the level of the sweep."""
    counts = {"n": verdict["n"], "replicates": verdict["seeds"]}
    return Estimate(**verdict["difference"], **counts, how=REWARD, over=baseline)


def _outlook(found: Spread | None, n: int, seeds: int, level: float) -> tuple[float | None, int | None]:
    """Detectable effect and seeds needed."""
    if found is None:
        return None, None
    return found.detectable(n, seeds, level), found.seeds_needed(EFFECT, n, level)
