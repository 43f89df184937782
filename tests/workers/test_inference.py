"""Simulation workers act alike with a policy of their own and with one they share."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from envs.commands import CommandError
from envs.execution import Execution, Plan
from envs.rollout import Decision
from rl_lab.common.errors import RunError
from rl_lab.config.placement import Placement
from rl_lab.config.schema import WorkersConfig
from rl_lab.model.checkpoint import publish, pull
from rl_lab.model.norm_stats import RELEASED_STATS_FILE, STATS_FILE, ActionStats
from rl_lab.model.processor import PolicyProcessor
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.policy import KEPT_POLICIES, Inference, LocalPolicy, SharedPolicy, policy_key
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.support.models import save_nano_policy

UNIT = Unit(EnvSpec("tabletop", "handover_block", "clean", image_size=64), seeds=(3, 4), run_seed=0)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return publish(save_nano_policy(tmp_path_factory.mktemp("checkpoint")), 1)


@pytest.fixture(scope="module")
def shared_actor():
    """The pool's actor and its inference actor, as a run starts them."""
    cluster = Cluster(WorkersConfig(simulation=1, policy="shared"), Placement(device="cpu"))
    with cluster.simulation_pool() as pool:
        yield pool.actors[0]
    cluster.close()


def test_a_shared_policy_gives_the_episodes_of_a_local_one(snapshot, shared_actor):
    local = Simulation().evaluate(UNIT, snapshot, Execution(execute=8))
    assert ray.get(shared_actor.evaluate.remote(UNIT, snapshot, Execution(execute=8))) == local


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


def test_a_guided_chunk_goes_on_from_the_plan_and_one_without_a_plan_is_free(snapshot, monkeypatch):
    policy = LocalPolicy.from_snapshot(snapshot, seed=0)

    def velocity(self, prefix, x_t, time):  # the exact flow of chunks that are standard normal
        t = time[:, None, None]
        return x_t * (2 * t - 1) / ((1 - t) ** 2 + t**2)

    monkeypatch.setattr(type(policy.policy), "velocity", velocity)
    asked = first_decision()
    (wanted,) = policy.act([asked])
    held, free = policy.act([replace(asked, key=(3, 1), plan=Plan(wanted, late=8)), replace(asked, key=(3, 1))])
    (alone,) = policy.act([replace(asked, key=(3, 1), plan=Plan(wanted[:1], late=1))])
    away = [np.abs(chunk - wanted).mean(axis=-1) for chunk in (held, free, alone)]
    assert away[0].mean() < 0.3 * away[1].mean(), "held all along"
    assert away[2][0] < 0.3 * away[1][0] and alone[1:] == pytest.approx(free[1:], abs=1e-6), "held for one command"

    def untrained(self, prefix, x_t, time):  # padded numbers carry no loss: what a network says of them may be anything
        used = self.used_dim
        return torch.cat([velocity(self, prefix, x_t, time)[..., :used], 3 * x_t[..., : x_t.shape[-1] - used]], dim=-1)

    monkeypatch.setattr(type(policy.policy), "velocity", untrained)
    (same,) = policy.act([replace(asked, key=(3, 1), plan=Plan(wanted, late=8))])
    np.testing.assert_allclose(same, held, atol=1e-6, err_msg="padding pulls at nothing")


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


def misfit(snapshot, tmp_path, **factors):
    """The checkpoint with statistics of another scale."""
    folder = pull(snapshot, tmp_path / "misfit")
    stats = ActionStats.find(folder)
    replace(stats, **{name: getattr(stats, name) * factor for name, factor in factors.items()}).save(
        folder / STATS_FILE
    )
    (folder / RELEASED_STATS_FILE).unlink(missing_ok=True)
    return publish(folder, 1)


@pytest.mark.parametrize("factors", [{"action_std": 1e4, "action_mean": 1e4}, {"action_mean": 1e4}])
def test_statistics_of_another_scale_end_a_unit_with_one_line_before_anything_moves(snapshot, tmp_path, factors):
    with pytest.raises(RunError, match=r"of weight version 1 must not act: command \d+ is refused: its (left|right) "):
        Simulation().evaluate(UNIT, misfit(snapshot, tmp_path, **factors), Execution(execute=8))


def test_a_shared_policy_refuses_in_the_same_words(snapshot, shared_actor, tmp_path):
    broken = misfit(snapshot, tmp_path, action_mean=1e4)
    with pytest.raises(RayTaskError) as caught:
        ray.get(shared_actor.evaluate.remote(UNIT, broken, Execution(execute=8)))
    with pytest.raises(RunError) as local:
        Simulation().evaluate(UNIT, broken, Execution(execute=8))
    assert type(caught.value.cause) is RunError and str(caught.value.cause) == str(local.value)


def test_chunks_far_outside_the_training_data_are_refused(snapshot, tmp_path):
    processor = PolicyProcessor.from_pretrained(pull(snapshot, tmp_path / "folder"))
    poses = np.tile([0.3, -0.2, 0.9, 1.0, 0.0, 0.0, 0.0, 1.0], 2)[None]
    chunks = np.zeros((1, processor.config.n_action_steps, 20), np.float32)
    processor.decode(chunks, poses)
    for value in (np.nan, -np.inf, 1000.5):
        chunks[0, 3, 19] = value
        with pytest.raises(
            CommandError, match=f"action token 3 is refused: its right gripper .number 19. is {value:g}"
        ):
            processor.decode(chunks, poses)
