"""Rewards of episodes."""

import dataclasses

from rewards.actions.ensemble import success
from tests.support.episodes import episode


def test_success_is_one_for_reached_goals_and_zero_otherwise():
    reached = episode(1)
    missed = dataclasses.replace(reached, success=False, failure="timeout")
    assert success([reached, missed, reached]) == [1.0, 0.0, 1.0]
