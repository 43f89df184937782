"""Rewards of sampled chunks -> which of them is preferred to which, or that nobody can say.

The chunks of one state are compared with each other only, so each member's scores count from their mean in the state,
in units of the spread within states that the member has over all of them:

    s~_m(i) = (s_m(i) - mean_j s_m(j)) / sigma_m,   sigma_m^2 = mean over states of Var_j s_m(j)

That lets rewards with different units be added (NORA-1.5, arXiv:2511.14659: R = R_goal + 0.5 R_deviation). The best and
the worst chunk by the mean over members make a pair unless (a) a member sees no advantage of the best over the worst,
or (b) the mean gap is below a margin. Letters: M members, N chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from envs.se3 import pose_distance


@dataclass(frozen=True)
class Choice:
    """What the rewards say about one state."""

    best: int
    worst: int
    gap: float
    """Difference of their mean standardised scores."""
    abstained: str | None
    """disagreement, margin, or None where the pair stands."""


def standardised(scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Scores s~ of every state from scores [M, N] each; ValueError for one that is not finite.

    A reward that never tells chunks apart stays 0.
    """
    if not all(np.isfinite(one).all() for one in scores):
        raise ValueError("a reward of a chunk is not a finite number")
    centred = [one - one.mean(1, keepdims=True) for one in scores]
    spread = np.sqrt(np.mean([np.square(one).mean(1) for one in centred], axis=0))
    return [one / np.where(spread > 0, spread, 1.0)[:, None] for one in centred]


def combined(rewards: Mapping[str, Sequence[np.ndarray]], weights: Mapping[str, float]) -> list[np.ndarray]:
    """Weighted sum of the standardised rewards of every state, [M, N]; one with a single member joins all others."""
    parts = [[weights[name] * one for one in standardised(scores)] for name, scores in rewards.items()]
    return [np.sum(np.broadcast_arrays(*state), axis=0) for state in zip(*parts, strict=True)]


def choose(scores: np.ndarray, margin: float) -> Choice:
    """The pair of one state from standardised scores [M, N]."""
    mean = scores.mean(0)
    best, worst = int(mean.argmax()), int(mean.argmin())
    gap, gaps = float(mean[best] - mean[worst]), scores[:, best] - scores[:, worst]
    reason = "disagreement" if not (gaps > 0).all() else "margin" if not gap >= margin else None
    return Choice(best, worst, gap, reason)


def expert_deviation(chunks: np.ndarray, expert: np.ndarray, spread: np.ndarray | None = None) -> np.ndarray:
    """Rewards [N], at most 0: chunks of absolute `ee` commands [N, H, 8 or 16] beside the expert's [H, 8 or 16].

    NORA-1.5's second reward (arXiv:2511.14659), R_a = -|a - a*|, without training. |a - a*| is the mean over the
    commands of a chunk of FlowPRO's distance of poses (`envs.se3.pose_distance`). Differs from the paper, which takes
    the L1 norm of normalised actions: so a reward has a unit. Of numbers that are no poses, [N, H, A], it is that norm,
    divided by A; `spread` [A] has their standard deviations.
    """
    if spread is not None:
        return -(np.abs(chunks - expert) / np.where(spread > 0, spread, 1.0)).mean((-2, -1))
    return -pose_distance(chunks, expert).mean(-1)
