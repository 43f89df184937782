"""The contract of a reward function."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rewards.config import RewardConfig
from rewards.rubric import Rewards
from rl_lab.common.errors import UserError

PROMPTS = ["Is the cup red?", "How many blocks are there?", "Which block is left?"]
COMPLETIONS = ["<think>I see it.</think><answer>yes</answer>", "Three, I think.", ""]
COLUMNS = {"answer": ["yes", "3", "B"], "reward_type": ["yes_no", "count", "choice"]}
PART = "own"


def check_reward(source: str, settings: dict[str, Any]) -> Iterator[str]:
    """What holds of a reward function, as it is found; ValueError at the first that does not.

    `settings` are further columns, one value for every sample. UserError where it cannot be imported.
    """
    config = RewardConfig(weights={"answer": 0.0, PART: 1.0}, functions={PART: source})
    with contextlib.closing(Rewards(config)) as rewards:
        try:
            rewards.start()
        except ValueError as error:
            raise UserError(f"{source}: {error}") from error
        yield "can be imported in a process of its own"
        columns = COLUMNS | {name: [value] * len(PROMPTS) for name, value in settings.items()}
        first = rewards.breakdown(PROMPTS, COMPLETIONS, **columns)
        if first.failures:
            failure = first.failures[0]
            raise ValueError(f"{failure.reason} for the answer {COMPLETIONS[failure.sample]!r}: {failure.detail}")
        yield f"gives a number in 0..1 or None for every answer: {first.parts[PART]}"
        if rewards.breakdown(PROMPTS, COMPLETIONS, **columns).parts[PART] != first.parts[PART]:
            raise ValueError("it gives other values when asked again, so that no run could be repeated")
        yield "gives the same when asked again"
