"""Pairs and episodes of a real policy, whose sampled commands leave the range of a gripper."""

import pytest

from envs.execution import Execution
from envs.rollback import RollbackConfig
from rl_lab.config.section import ModelConfig
from rl_lab.learner.actions import starting_policy
from rl_lab.model.checkpoint import published, save_policy
from rl_lab.records.action_batches import fit_processor
from rl_lab.workers.policy import CorrectorPlan
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.support.episodes import episode

UNIT = Unit(EnvSpec("tabletop", "handover_block", "clean", image_size=64), seeds=(3, 4), run_seed=0)
ROLLBACK = RollbackConfig(execute=4, rollback_steps=(1, 1), kept_after_event=8)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A simulation worker and a nano policy of random weights, published."""
    start = starting_policy(ModelConfig(), seed=0, stride=1)
    folder = tmp_path_factory.mktemp("policy")
    demos = [episode(1), episode(2)]
    for demo in demos:
        demo.actions[::2, [7, 15]] = 0.0  # half of the time closed, so that the statistics reach over the whole range
    processor = fit_processor(start.policy.config, demos, start.timing)
    save_policy(folder, start.policy, processor, start.info)
    return Simulation(), published(folder)


@pytest.fixture(scope="session")
def learned_pairs(untrained):
    """Its failures beside the scripted expert's corrections."""
    simulation, policy = untrained
    return simulation.collect(UNIT, policy, ROLLBACK, CorrectorPlan()).pairs


@pytest.fixture(scope="session")
def learned_episodes(untrained):
    """Its episodes, with images at its decisions."""
    simulation, policy = untrained
    return simulation.record(UNIT, policy, Execution(execute=4))
