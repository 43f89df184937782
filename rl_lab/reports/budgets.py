"""Held-out reward against what training spent: curves over steps and tokens, and tokens needed to reach a reward.

A curve of a scheme is the mean over its training seeds, each linear between its examinations, over the range that all
of them cover.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl_lab.common.stats import (
    Array,
    Interval,
    first_reach,
    percentile_interval,
    plain_mean,
    resampled_means,
)
from rl_lab.reports.examinations import LearningCurve
from rl_lab.reports.numbers import Row, spread
from rl_lab.reports.run import LoadedRun

POINTS = 40
"""Points of a curve at most."""
REACH_METHOD = (
    "first passage of the mean curve of a method through the final value of the control's mean curve, as a share of "
    "the control's tokens; the interval resamples questions and training seeds and repeats the whole calculation. A "
    "curve that does not get there within its tokens counts as infinite, and so does each such resample: an end of the "
    "interval may be 'never'. The control itself may be below 100 %: a noisy curve touches its final value earlier"
)


@dataclass(frozen=True)
class Curve:
    """A scheme's held-out rewards at G places (steps or tokens), each item and training seed for itself."""

    scheme: str
    places: Array
    """[G], rising."""
    rewards: Array
    """[G, n, R]; NaN where a reward call failed."""

    @property
    def means(self) -> Array:
        """[G]."""
        return np.array([plain_mean(rewards) for rewards in self.rewards])

    @property
    def resamples(self) -> Array:
        """The means in every resample, [B, G]."""
        return np.stack([resampled_means(rewards) for rewards in self.rewards], axis=1)

    @property
    def points(self) -> list[tuple[float, Interval]]:
        """Places and means, with 95 % intervals."""
        low, high = np.quantile(self.resamples, [0.025, 0.975], axis=0)
        means = zip(self.means.tolist(), low.tolist(), high.tolist(), strict=True)
        return [(place, Interval(*mean)) for place, mean in zip(self.places.tolist(), means, strict=True)]


def _at(training: LearningCurve, axis: str, places: Array) -> Array:
    """One training's rewards between its examinations, [G, n]."""
    known = getattr(training, axis)
    right = np.clip(np.searchsorted(known, places), 1, max(len(known) - 1, 1)) if len(known) > 1 else np.zeros(1, int)
    left = np.maximum(right - 1, 0)
    width = known[right] - known[left]
    share = np.where(width > 0, (places - known[left]) / np.where(width > 0, width, 1.0), 0.0)[:, None]
    ends = training.rewards[left], training.rewards[right]
    return np.where(share == 0, ends[0], np.where(share == 1, ends[1], (1 - share) * ends[0] + share * ends[1]))


def _together(trainings: Sequence[LearningCurve], axis: str, places: Array) -> Array:
    """Rewards of all training seeds of a scheme at the same places, [G, n, R]."""
    return np.stack([_at(training, axis, places) for training in trainings], axis=2)


def make_curve(trainings: Sequence[LearningCurve], axis: str) -> Curve | None:
    """The curve of the trainings of one scheme over `steps` or `tokens`; None without a place that all have."""
    if not trainings or len({training.rewards.shape[1] for training in trainings}) > 1:
        return None
    places = np.unique(np.concatenate([getattr(training, axis) for training in trainings]))
    first = max(getattr(training, axis)[0] for training in trainings)
    last = min(getattr(training, axis)[-1] for training in trainings)
    places = places[(places >= first) & (places <= last)]
    rewards = _together(trainings, axis, places)
    known = np.all(np.any(~np.isnan(rewards), axis=1), axis=1)
    places, rewards = places[known], rewards[known]
    if not len(places):
        return None
    shown = spread(len(places), POINTS)
    return Curve(trainings[0].scheme, places[shown], rewards[shown])


def curves(run: LoadedRun, axis: str) -> list[Curve]:
    """The curve of every scheme that has one."""
    examined = [training for training in run.trainings if len(training.steps)]
    by_scheme = ([training for training in examined if training.scheme == scheme] for scheme in run.schemes)
    return list(filter(None, (make_curve(trainings, axis) for trainings in by_scheme)))


def at_equal_tokens(run: LoadedRun) -> list[tuple[LearningCurve, Array]]:
    """Rewards of every held-out item in every finished training, [n], after as many tokens as all of them spent."""
    done = {stage.name for stage in run.stages if stage.status == "done"}
    found = [training for training in run.trainings if training.node in done and len(training.steps)]
    spent = np.array([min((training.tokens[-1] for training in found), default=0.0)])
    return [(training, _at(training, "tokens", spent)[0]) for training in found]


def finite(value: float) -> float | None:
    """The number, None for one that is not finite."""
    return value if math.isfinite(value) else None


def tokens_needed(run: LoadedRun, control: str) -> list[Row]:
    """Tokens until each scheme first has the control's final reward, as a share of the control's tokens.

    `share`, `low` and `high` are None where it is never reached (see REACH_METHOD); `seeds_reached`: seeds whose own
    curve gets to `target`, the end of the control's mean one.
    """
    found = curves(run, "tokens")
    reference = next((curve for curve in found if curve.scheme == control), None)
    if reference is None or not reference.places[-1]:
        return []
    target, spent = reference.means[-1], reference.places[-1]
    targets = reference.resamples[:, -1]
    rows: list[Row] = []
    for curve in found:
        share = first_reach(curve.places, curve.means[None, :], np.array([target]))[0] / spent
        interval = percentile_interval(share, first_reach(curve.places, curve.resamples, targets) / spent)
        reached = [np.nanmean(curve.rewards[:, :, r], axis=1).max() >= target for r in range(curve.rewards.shape[2])]
        rows.append(
            {"method": curve.scheme, "target": float(target)}
            | {"share": finite(share), "low": finite(interval.low), "high": finite(interval.high)}
            | {"seeds": len(reached), "seeds_reached": int(sum(reached))}
        )
    return rows
