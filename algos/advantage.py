"""Advantage-conditioned imitation: the baseline called pi0.6* in FlowPRO (arXiv:2606.14409, section 6.3).

Winners and losers are both imitated by the plain flow loss; the instruction says which is which. Differs from RECAP
(arXiv:2511.14759): the preference replaces a learned value, so there is no threshold, and the base policy was not
pre-trained with the indicator. At evaluation the policy is asked for the positive one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POSITIVE, NEGATIVE = "Advantage: positive", "Advantage: negative"


def with_advantage(instruction: str, positive: bool) -> str:
    """The instruction with its indicator behind it, which is just before the action tokens."""
    return f"{instruction.rstrip()} {POSITIVE if positive else NEGATIVE}"


def condition_instructions(instructions: Sequence[str], positive: Sequence[bool] | np.ndarray) -> list[str]:
    """Instructions with indicators: demonstrations and winners are positive, losers negative."""
    return [with_advantage(text, bool(good)) for text, good in zip(instructions, positive, strict=True)]


def dropped(count: int, generator: np.random.Generator, dropout: float = 0.3) -> np.ndarray:
    """Which rows of a batch lose their indicator, bool [count], each with probability `dropout` (0.3 in RECAP).

    To be drawn anew for every batch, so that every row is learned both with and without. ValueError outside [0, 1].
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"advantage dropout is {dropout}; it is a probability between 0 and 1")
    return generator.random(count) < dropout
