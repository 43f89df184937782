"""Reward calls that fail while a policy trains: said once by function, answer and reason; given up where none works."""

from __future__ import annotations

import numpy as np

from rewards.guard import FAILED_CALL
from rl_lab.errors import UserError
from rl_lab.language.answering import Scored
from rl_lab.runner.stage_context import StageContext

FRUITLESS_STEPS = 3
"""Steps in a row without any reward after which a training ends: it would run to its end and learn nothing."""


class RewardFailures:
    """What a training has said of its failed reward calls so far."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._told: set[str] = set()
        self._fruitless = 0

    def check(self, step: int, scored: Scored) -> None:
        """Name the first failure of each part and reason. UserError if no answer of several steps has a reward."""
        for name, words in scored.examples.items():
            if name not in self._told:
                self._told.add(name)
                text = f"{FAILED_CALL}: {words}; such answers are masked, and counted in reward_failures/{name}"
                self._context.say(f"step {step}: {text}")
                self._context.log(step, alarm=text)
        all_failed = bool(np.isnan(scored.rewards).all()) and all(names for row in scored.failures for names in row)
        self._fruitless = self._fruitless + 1 if all_failed else 0
        if self._fruitless == FRUITLESS_STEPS:
            why = next(iter(scored.examples.values()), "see the failures in its rollouts")
            raise UserError(
                f"no answer of the last {FRUITLESS_STEPS} steps has a reward; the first failure: {why}; mend the "
                "reward, and go on with --resume"
            )
