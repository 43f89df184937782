"""From a policy's own episodes to a reward model and ranked pairs, in one process, with random weights."""

import numpy as np
import pytest

from envs.branching import BranchConfig
from envs.execution import Execution
from rl_lab.config.actions import RewardModelsConfig
from rl_lab.learner.action_rewards import RewardPlan
from rl_lab.learner.plans import Training
from rl_lab.model.checkpoint import published
from rl_lab.records.episodes import read_pairs, write_candidates, write_episodes
from rl_lab.rollouts.ranking import rank_folder
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.support.models import save_nano_policy

UNIT = Unit(EnvSpec("tabletop", "handover_block", "clean", 64), (11,), run_seed=0)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return published(save_nano_policy(tmp_path_factory.mktemp("policy"), seeds=(1, 2)))


def test_recorded_episodes_and_sampled_chunks_teach_and_rank(snapshot, tmp_path):
    simulation = Simulation()
    (recorded,) = simulation.record(UNIT, snapshot, Execution(execute=8))
    assert recorded.frame_steps[-1] == recorded.num_steps and len(recorded.images) == len(recorded.frame_steps)
    states = simulation.candidates(UNIT, snapshot, BranchConfig(execute=8, states=3, samples=2, decisions=1))
    for state in states:
        assert (recorded.poses[state.step] == state.poses[0, 0]).all()  # the same episode
        assert not (state.actions[0] == state.actions[1]).all()
    again = Simulation().candidates(UNIT, snapshot, BranchConfig(execute=8, states=3, samples=2, decisions=1))
    assert all((one.actions == other.actions).all() for one, other in zip(states, again, strict=True))

    recorded.success = True  # a policy of random weights does not
    write_episodes(tmp_path / "episodes", [recorded] * 3)
    settings = RewardModelsConfig(steps=2, warmup=1, batch_size=4, latent=8, held_out=0.1)
    training = Training(RewardPlan("world_model", settings, tmp_path / "episodes", None, horizon=8, seed=0))
    assert np.isfinite([training.run_step()["loss"] for _ in range(2)]).all()
    training.finish(tmp_path / "model")
    write_candidates(tmp_path / "candidates", states)
    weights = {"world_model": 1.0, "deviation": 0.5}
    found = rank_folder(
        tmp_path / "candidates", {"world_model": tmp_path / "model"}, weights, 0.0, 0, tmp_path / "pairs"
    )
    pairs = read_pairs(tmp_path / "pairs")
    assert found["pairs"] == len(pairs) == 3 - found.get("abstained/disagreement", 0)
    assert {pair.reward for pair in pairs} <= {"1 world_model + 0.5 deviation"}
