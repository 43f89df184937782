"""The work of a run on RoboTwin's own code with the box robot, at the smallest size: a demonstration, an evaluation,
and a failure that its expert corrects; skipped where the runtime or a Vulkan driver is missing."""

import numpy as np
import pytest

from envs.execution import Execution
from envs.rollback import RollbackConfig
from rl_lab.model.checkpoint import publish
from rl_lab.records.action_batches import standardised_truth
from rl_lab.records.episodes import read_pairs, write_pairs
from rl_lab.workers.policy import CorrectorPlan
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.support.models import save_nano_policy

SEED = 3


def test_a_demonstration_an_evaluation_and_a_pair(runtime, tmp_path):
    simulation = Simulation()
    simulation._environments._server = runtime
    unit = Unit(EnvSpec("robotwin", "handover_block", "demo_clean", image_size=64), (SEED,), run_seed=0)
    (demo,) = simulation.demonstrate(unit, 0.0)
    assert demo.success and demo.images.shape == (demo.num_steps, 3, 64, 64, 3)
    assert demo.extra["control_hz"] == 10 and demo.extra["simulation"].startswith("boxarms, ")
    moved = np.any(np.diff(demo.actions, axis=0) != 0, axis=1)
    assert moved.mean() > 0.95, "the expert's commands are evenly spaced: hardly any repeats the one before"
    truth = standardised_truth([demo])
    assert truth.shape == (demo.num_steps, 12) and np.ptp(truth[:, :3]) > 1, "block and pad; the block is carried"

    snapshot = publish(save_nano_policy(tmp_path / "checkpoint"), 1)
    (row,) = simulation.evaluate(unit, snapshot, Execution(execute=8))
    assert (row["seed"], row["success"], row["num_steps"]) == (SEED, False, row["step_limit"])
    assert row["step_limit"] == pytest.approx(1.8 * demo.num_steps, abs=4)

    found = simulation.collect(unit, snapshot, RollbackConfig(execute=8, rollback_steps=(8, 16)), CorrectorPlan())
    write_pairs(tmp_path / "pairs", found.pairs)
    (pair,) = read_pairs(tmp_path / "pairs")
    assert (pair.corrector, pair.control_hz) == ("scripted_expert", 10)
    assert (pair.restore_error, pair.exact_restore) == (0.0, True)
    np.testing.assert_array_equal(pair.winner.images[0], pair.loser.images[0])
    assert pair.winner.truth.shape == (len(pair.winner.actions), 12)
