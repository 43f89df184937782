"""The truth by which variants of a sweep are judged: rewards of held-out items, or success in held-out episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rl_lab.reports.estimates import in_scope, of_scheme, pass_threshold, scoped_items, scopes
from rl_lab.reports.examinations import reward_table
from rl_lab.reports.rundir import BASE, RunFolder
from rl_lab.reports.verdict import OVERALL, Row
from rl_lab.stats import Array

Unit = Any
"""What one row of a table is about: the id of an item, or (task, variant, seed) of an episode."""


class Truth(Protocol):
    """Tables [n, R] of n units under R training seeds."""

    unit: str
    """Plural, in words."""
    threshold: float
    """From which on a unit counts as solved."""

    def scopes(self) -> Mapping[str, Sequence[Unit]]:
        """Units of each scope, overall first."""

    def seeds(self, variant: str) -> list[int]:
        """Training seeds with a result."""

    def table(self, variant: str, seeds: Sequence[int], units: Sequence[Unit]) -> Array:
        """Values of a variant, [n, R]; NaN where one is missing."""


class AnswerTruth:
    """Mean reward of the answers to each held-out item."""

    unit = "items"

    def __init__(self, run: RunFolder) -> None:
        self.run, self.threshold = run, pass_threshold(run)

    def scopes(self) -> Mapping[str, Sequence[Unit]]:
        """See `Truth`: overall and each category."""
        return scoped_items(self.run)

    def seeds(self, variant: str) -> list[int]:
        """See `Truth`."""
        return sorted(one.replicate for one in of_scheme(self.run, variant))

    def table(self, variant: str, seeds: Sequence[int], units: Sequence[Unit]) -> Array:
        """See `Truth`."""
        found = {one.replicate: one for one in of_scheme(self.run, variant)}
        return reward_table([found[seed] for seed in seeds], units, lambda item: item.reward)


class EpisodeTruth:
    """Success, 1 or 0, in each held-out episode."""

    unit = "episodes"
    threshold = 0.5

    def __init__(self, run: RunFolder) -> None:
        self.evaluations = [one for one in run.evaluations if one.method in (BASE, *variant_names(run.config))]

    def scopes(self) -> Mapping[str, Sequence[Unit]]:
        """See `Truth`: overall, and tasks and variants of the scene where there are several."""
        episodes = {episode.key: episode for one in self.evaluations for episode in one.episodes}
        found = {
            name: [key for key, episode in episodes.items() if in_scope(name, episode)]
            for name in scopes(self.evaluations)
        }
        return {name: keys for name, keys in found.items() if name == OVERALL or len(keys) < len(episodes)}

    def seeds(self, variant: str) -> list[int]:
        """See `Truth`."""
        return sorted(one.round for one in self.evaluations if one.method == variant)

    def table(self, variant: str, seeds: Sequence[int], units: Sequence[Unit]) -> Array:
        """See `Truth`."""
        found = {
            one.round: {e.key: float(e.success) for e in one.episodes}
            for one in self.evaluations
            if one.method == variant
        }
        rows = [[found[seed].get(unit, np.nan) for seed in seeds] for unit in units]
        return np.array(rows, dtype=np.float64).reshape(len(units), len(seeds))


def ranks_actions(config: Row) -> bool:
    """Whether the variants of a sweep are rewards of actions."""
    return bool((config.get("sweep") or {}).get("rankings"))


def variant_settings(config: Row) -> dict[str, Row]:
    """The section that each variant replaces, by name."""
    return config["sweep"].get("rankings") or config["sweep"]["variants"]


def variant_names(config: Row) -> list[str]:
    """The baseline and the other variants."""
    baseline = config["sweep"]["baseline"]
    return [baseline, *(name for name in variant_settings(config) if name != baseline)]


def truth_of(run: RunFolder) -> Truth:
    """What the run's variants are judged by."""
    return EpisodeTruth(run) if ranks_actions(run.config) else AnswerTruth(run)
