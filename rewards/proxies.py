"""Rewards that are easy to earn without doing the task: what an ablation holds a real reward against.

All have TRL's signature and values in 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.answers import completion_text

HALF_WORDS = 20.0
"""Length at which `short` pays one half."""


def constant(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """1/2 for everything: groups have no spread, so GRPO learns nothing. The control of having a reward at all."""
    return [0.5] * len(completions)


def short(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 / (1 + words / 20): pays for saying less."""
    return [1.0 / (1.0 + len(completion_text(text).split()) / HALF_WORDS) for text in completions]
