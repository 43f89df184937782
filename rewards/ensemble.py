"""Learned reward models as a part of a reward: the mean of an ensemble, what its members disagree by, abstention.

    value = 1/M sum_m p_m,   disagreement = sqrt(1/M sum_m (p_m - value)^2)      (Coste et al., arXiv:2310.02743)

A sample on which the members disagree by more than a limit has no reward: it is masked and counted, as a failed call
is, because a guess in its place would be what a policy learns to provoke. Letters: M members, B samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rewards.guard import Failure, Reason

DISAGREEMENT = "disagreement"
"""Parts `disagreement/NAME` say what the members of model NAME disagree by; they have no weight."""


class RewardModel(Protocol):
    """A trained model of what answers are worth, called with all samples at once."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], images: Sequence[Any]) -> np.ndarray:
        """Probabilities that each answer is good, by member: float [M, B] in 0..1."""

    def close(self) -> None:
        """Let go of what it holds."""


def combine_members(
    name: str, members: np.ndarray, abstain_above: float | None
) -> tuple[list[float | None], list[float], list[Failure]]:
    """Rewards [B] of members [M, B], disagreement [B], and failures: members that disagree, or give no number."""
    values, disagreement = members.mean(0), members.std(0)
    rewards: list[float | None] = []
    failures = []
    for sample, (value, apart) in enumerate(zip(values.tolist(), disagreement.tolist(), strict=True)):
        failure = _failure(name, sample, value, apart, abstain_above)
        rewards.append(None if failure else value)
        failures += [failure] if failure else []
    return rewards, disagreement.tolist(), failures


def _failure(name: str, sample: int, value: float, apart: float, abstain_above: float | None) -> Failure | None:
    if not 0.0 <= value <= 1.0:
        reason: Reason = "not a number" if np.isnan(value) else "out of range"
        return Failure(sample, name, reason, f"{value} is not in 0..1")
    if abstain_above is not None and not apart <= abstain_above:
        return Failure(sample, name, "abstained", f"members disagree by {apart:.3f}, more than {abstain_above:g}")
    return None
