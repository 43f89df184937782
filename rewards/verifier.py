"""The reward of an answer against its ground truth, by the item's `reward_type`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rewards.answers import REWARD_TYPES, answer_text
from rewards.config import RewardConfig, suggestion
from rewards.grounding import box_reward, boxes_reward, point_reward, points_reward
from rewards.scalar import count_reward, number_reward
from rewards.text import choice_reward, ordering_reward, yes_no_reward
from rewards.trajectory import trajectory_reward
from rewards.truth import decode_truth

VERIFIERS: dict[str, Callable[[str, Any, RewardConfig], float]] = {
    "box": lambda answer, truth, config: box_reward(answer, truth),
    "boxes": lambda answer, truth, config: boxes_reward(answer, truth, config.boxes),
    "point": lambda answer, truth, config: point_reward(answer, truth, config.point),
    "points": lambda answer, truth, config: points_reward(answer, truth, config.points),
    "trajectory": lambda answer, truth, config: trajectory_reward(answer, truth, config.trajectory),
    "number": lambda answer, truth, config: number_reward(answer, truth, config.number),
    "count": lambda answer, truth, config: count_reward(answer, truth, config.count),
    "choice": lambda answer, truth, config: choice_reward(answer, truth),
    "yes_no": lambda answer, truth, config: yes_no_reward(answer, truth),
    "ordering": lambda answer, truth, config: ordering_reward(answer, truth),
}
"""Formula of every reward type but `open`: of the answer's text ("" without one), the ground truth, the constants."""


def verifier_reward(text: str, answer: Any, reward_type: str, config: RewardConfig) -> float | None:
    """Reward of a completion's text by the formula of its type; None for `open`. An answer that does not parse gets 0.

    ValueError for an unknown type and for a ground truth that does not fit it, also if the answer does not parse.
    """
    check_reward_type(reward_type)
    if reward_type == "open":
        return None
    return VERIFIERS[reward_type](answer_text(text) or "", decode_truth(answer, reward_type), config)


def check_reward_type(reward_type: Any) -> None:
    """ValueError with the nearest known type for an unknown one."""
    if reward_type not in REWARD_TYPES:
        raise ValueError(f"unknown reward type {reward_type!r}{suggestion(str(reward_type), REWARD_TYPES)}")
