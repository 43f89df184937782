"""Rewards of 0 and 1 from the lab's graded ones: an answer is solved, or it is not.

rewards: {weights: {answer: 0.0, solved: 1.0}, functions: {solved: "rewards.threshold:solved"}}

Graded with the default constants of `rewards.config`: what a file says of `rewards.point.scale` and its like does not
reach a function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.rubric import Rewards

SOLVED_FROM = 0.7
"""Graded reward from which an answer counts, as a point within .036 of the picture's diagonal of its target."""
_graded = Rewards()


def solved(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """1 from `SOLVED_FROM` on, else 0, for each of B completions; None where the graded reward is.

    `columns` are those of `rewards.rubric.Rewards`: `answer` and `reward_type`, [B] each. ValueError for an unknown
    type.
    """
    return [
        None if reward is None else float(reward >= SOLVED_FROM) for reward in _graded(prompts, completions, **columns)
    ]
