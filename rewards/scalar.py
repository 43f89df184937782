"""Rewards of numbers and counts."""

from __future__ import annotations

import math
from typing import Any

from rewards.answers import parse_count, parse_number
from rewards.config import CountConfig, NumberConfig
from rewards.truth import true_count, true_number


def number_reward(answer: str, truth: Any, config: NumberConfig) -> float:
    """`number`: exp(-rate * e), e = |answered - true| / max(|true|, floor).

    The unit is the question's; one written behind the number is not read. 0 unless the answer has exactly one number.
    """
    target = true_number(truth)
    value = parse_number(answer)
    if value is None:
        return 0.0
    return math.exp(-config.rate * (abs(value - target) / max(abs(target), config.floor)))


def count_reward(answer: str, truth: Any, config: CountConfig) -> float:
    """`count`: 1 if equal, else partial_credit * max(0, 1 - |answered - true| / max(true, 1))."""
    target = true_count(truth)
    value = parse_count(answer)
    if value is None:
        return 0.0
    return 1.0 if value == target else config.partial_credit * max(0.0, 1.0 - abs(value - target) / max(target, 1))
