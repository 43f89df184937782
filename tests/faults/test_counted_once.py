"""Rollouts ahead of the learner, the run killed at random steps: every selected item is answered and observed once."""

from __future__ import annotations

import numpy as np
import pytest

from rl_lab.records.rollouts import RolloutStore
from tests.serving.language_runs import assert_counted_once
from tests.support.learners import Killed
from tests.support.stage_runs import FakeRun


@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_counted_twice(tmp_path, questions, policy, staleness, seed):
    run = FakeRun(tmp_path / "run", questions, policy, f"rl.staleness={staleness}", "rl.steps=8", "checkpoint_every=3")
    for step in np.random.default_rng(seed).integers(0, 9, 3).tolist():
        run.kill_at = step
        try:
            run.start()
        except Killed:
            assert_counted_once_so_far(run)
    run.kill_at = None
    run.start()
    assert_counted_once(run.out)
    assert [line["step"] for line in run.metrics()] == list(range(9))


def assert_counted_once_so_far(run: FakeRun) -> None:
    """No file of rollouts holds a group twice, whatever has been done by now."""
    rows = RolloutStore(run.out).read(columns=["step", "item", "group", "sample"])
    places = [(row["step"], row["group"], row["sample"]) for row in rows]
    assert len(set(places)) == len(places)
