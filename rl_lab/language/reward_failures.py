"""Reward calls that fail in a stage: said once by function, answer and reason; given up where none works."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.guard import FAILED_CALL
from rl_lab.errors import RunError
from rl_lab.language.answering import FirstFailures, all_failed
from rl_lab.records.types import RolloutGroup
from rl_lab.runner.stage_context import StageContext

FRUITLESS_STEPS = 3
"""Steps in a row without any reward after which a training ends: it would run to its end and learn nothing."""


class RewardFailures:
    """What a stage has said of its failed reward calls so far."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._told: set[str] = set()
        self._fruitless = 0

    def check(self, step: int, groups: Sequence[RolloutGroup], first: FirstFailures) -> None:
        """As `tell`, for a step of a training. RunError if no answer of several steps has a reward."""
        self.tell(step, first)
        self._fruitless = self._fruitless + 1 if all_failed(groups) else 0
        if self._fruitless == FRUITLESS_STEPS:
            raise _nothing(f"no answer of the last {FRUITLESS_STEPS} steps has a reward", first)

    def check_all(self, name: str, groups: Sequence[RolloutGroup], first: FirstFailures) -> None:
        """As `tell`, for an examination. RunError if none of its answers has a reward."""
        self.tell(0, first)
        if all_failed(groups):
            raise _nothing(f"no answer to a question of the set {name} has a reward", first)

    def tell(self, step: int, first: FirstFailures) -> None:
        """Name the first failure of each part and reason."""
        for name, words in first.items():
            if name not in self._told:
                self._told.add(name)
                text = f"{FAILED_CALL}: {words}; such answers are masked, and counted in reward_failures/{name}"
                self._context.say(f"step {step}: {text}")
                self._context.log(step, alarm=text)


def _nothing(what: str, first: FirstFailures) -> RunError:
    why = next(iter(first.values()), "see the failures in its rollouts")
    return RunError(f"{what}; the first failure: {why}; mend the reward, and go on with --resume")
