"""Simulation workers act alike with a policy of their own and with one they share."""

import gymnasium
import numpy as np
import pytest
import ray

from algos.chunks import Timing
from envs.rollout import Decision
from rl_lab.action.batching import fit_processor
from rl_lab.config.placement import Placement
from rl_lab.config.schema import WorkersConfig
from rl_lab.learning.checkpoint import CheckpointInfo, save_policy
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.inference import KEPT_POLICIES, Inference, SharedPolicy
from rl_lab.workers.policy import policy_key
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from rl_lab.workers.weights import publish
from tests.records import episode

UNIT = Unit(EnvSpec("tabletop", "handover_block", "clean", image_size=64), seeds=(3, 4), run_seed=0)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    policy = HyVLAPolicy(preset_config("nano"))
    processor = fit_processor(policy.config, [episode(0)], Timing(policy.chunk_size))
    save_policy(folder, policy, processor, CheckpointInfo(weight_version=1, steps=0))
    return publish(folder, 1)


@pytest.fixture(scope="module")
def shared_actor():
    """The pool's actor and its inference actor, as a run starts them."""
    cluster = Cluster(WorkersConfig(simulation=1, policy="shared"), Placement(device="cpu"))
    with cluster.simulation_pool() as pool:
        yield pool.actors[0]
    cluster.close()


def test_a_shared_policy_gives_the_episodes_of_a_local_one(snapshot, shared_actor):
    local = Simulation().evaluate(UNIT, snapshot, execute=8)
    assert ray.get(shared_actor.evaluate.remote(UNIT, snapshot, execute=8)) == local


class DirectServer:
    """Calls an `Inference` in this process the way Ray calls an actor."""

    def __init__(self):
        self.inference = Inference("cpu")
        self.act, self.load = self._Method(self, "act"), self._Method(self, "load")

    class _Method:
        def __init__(self, server, name):
            self.server, self.name = server, name

        def remote(self, *arguments):
            return ray.put(getattr(self.server.inference, self.name)(*arguments))


def first_decision() -> Decision:
    env = gymnasium.make("tabletop/handover_block-v0", image_size=64).unwrapped
    return Decision(env.reset(seed=3)[0], (3, 0))


def test_a_server_that_was_started_again_gets_the_weights_again(snapshot, shared_actor):
    server, asked = DirectServer(), [first_decision()]
    policy = SharedPolicy(server, snapshot, seed=0)
    first = policy.act(asked)
    server.inference = Inference("cpu")
    np.testing.assert_array_equal(policy.act(asked), first)


def test_a_server_keeps_the_policies_used_last(snapshot):
    server = Inference("cpu")
    for seed in range(KEPT_POLICIES + 1):
        server.load(snapshot, seed)
    assert server.act(policy_key(snapshot, 0), []) is None
