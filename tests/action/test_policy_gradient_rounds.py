"""Rounds of policy gradients: groups explore from one start, and each method learns from their success alone."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from envs.execution import Execution
from rl_lab.common.errors import UserError
from rl_lab.config.actions import ObjectiveConfig, OptimiseConfig, SFTConfig
from rl_lab.config.section import ModelConfig
from rl_lab.learner.actions import SFTPlan
from rl_lab.learner.plans import Training
from rl_lab.learner.policy_gradient import (
    NOISE_FILE,
    Exploration,
    PolicyGradientPlan,
    advantages,
    executed_numbers,
    explored_rows,
)
from rl_lab.model.checkpoint import load_policy, published, read_info
from rl_lab.records.episodes import read_episodes, write_episodes
from rl_lab.rollouts import policy_episodes
from rl_lab.stages.kinds import expand, load_config
from rl_lab.stages.preflight import check_settings
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.support.experiments import write_small

STEPS = {"steps": 2, "batch_size": 8, "warmup": 1, "draws_per_sample": 2}
SAMPLERS = {"flow_grpo": "sde", "reinflow": "learned", "fpo": "flow"}
BOUNDS = (0.05, 0.2)


class Given:
    """Demonstrations and a policy after SFT."""

    def __init__(self, folder, preset, side):
        self.model, self.folder, self.simulation = ModelConfig(preset=preset), folder, Simulation()
        self.unit = Unit(EnvSpec("tabletop", "lift_pot", "clean", side), seeds=(3, 3), run_seed=0)
        write_episodes(folder / "demos", self.simulation.demonstrate(replace(self.unit, seeds=(3,)), 0.0))
        plan = SFTPlan(self.model, SFTConfig(**STEPS, probe_weight=0.0), folder / "demos", stride=1, seed=0)
        self.train(plan, folder / "sft")
        for env in self.simulation._environments.of(self.unit.env, 2):
            env.step_limit = 24

    def train(self, plan, folder):
        training = Training(plan)
        lines = [training.run_step() for _ in range(plan.settings.steps)]
        training.finish(folder)
        return lines

    def explore(self, method, policy="sft", execute=8):
        how = Exploration(SAMPLERS[method], 3, noise=0.3, noise_bounds=BOUNDS)
        weights = published(self.folder / policy, self.model.code)
        return self.simulation.explore(self.unit, weights, Execution(execute=execute), how)

    def plan(self, method, episodes, name, policy="sft"):
        write_episodes(self.folder / name, episodes)
        settings = OptimiseConfig(**STEPS, schedule="constant")
        folders = {"policy": self.folder / policy, "explored": self.folder / name}
        return PolicyGradientPlan(
            method, 1, settings, ObjectiveConfig(noise_bounds=BOUNDS), **folders, seed=0, code=self.model.code
        )


@pytest.fixture(scope="module", params=["state", "nano"])
def given(request, tmp_path_factory):
    return Given(tmp_path_factory.mktemp(request.param), request.param, {"state": 16, "nano": 64}[request.param])


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return Given(tmp_path_factory.mktemp("given"), "state", 16)


def won_and_lost(episodes):
    """The group as if the first had succeeded and the others not."""
    return [replace(one, success=not place) for place, one in enumerate(episodes)]


def test_a_group_has_one_start_and_several_ways_on(state):
    first, second = state.explore("flow_grpo")
    assert first.seed == second.seed == 3
    np.testing.assert_array_equal(first.poses[0], second.poses[0])
    assert not np.array_equal(first.actions[0], second.actions[0])
    assert first.paths.shape == (len(first.frame_steps), 4, 8, 20)
    again, _ = state.explore("flow_grpo")
    np.testing.assert_array_equal(first.paths, again.paths)


@pytest.mark.parametrize("method", SAMPLERS)
def test_a_round_begins_with_ratios_of_1_and_moves_the_policy(given, method):
    episodes = won_and_lost(given.explore(method))
    first, last = given.train(given.plan(method, episodes, f"{method}.explore"), given.folder / method)
    assert first["ratio/min"] == pytest.approx(1, abs=0.02) and first["ratio/max"] == pytest.approx(1, abs=0.02)
    assert last["ratio/max"] != first["ratio/max"] and np.isfinite(last["loss"])
    assert read_info(given.folder / method).weight_version == 2
    assert (given.folder / method / NOISE_FILE).exists() == (method == "reinflow")


def test_learned_noise_is_what_the_next_round_explores_with(state):
    plan = state.plan("reinflow", won_and_lost(state.explore("reinflow")), "noisy.explore")
    state.train(plan, state.folder / "noisy")
    with_net = state.explore("reinflow", "noisy")
    (state.folder / "noisy" / NOISE_FILE).unlink()
    assert not np.array_equal(with_net[0].paths, state.explore("reinflow", "noisy")[0].paths)


def test_a_training_that_was_killed_goes_on_with_the_same_bits(state):
    plan = state.plan("fpo", won_and_lost(state.explore("fpo")), "killed.explore")
    whole, first, second = Training(plan), Training(plan), Training(plan)
    lines = [whole.run_step() for _ in range(2)]
    first.run_step()
    second.load_state_dict(first.state_dict())
    assert second.run_step() == lines[1]
    for one, other in zip(whole.parts.model.parameters(), second.parts.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_advantages_are_relative_to_the_start_and_groups_that_end_alike_teach_nothing(state):
    lost = [replace(one, success=False) for one in state.explore("fpo")]
    other = [replace(one, seed=4, success=bool(place)) for place, one in enumerate(lost)]
    np.testing.assert_allclose(advantages([*lost, *other]), [0, 0, -(0.5**0.5), 0.5**0.5], atol=1e-3)
    assert Training(state.plan("fpo", lost, "alike.explore")).run_step()["grad_norm"] == 0


def test_numbers_that_the_robot_ran_are_known_of_each_decision(state):
    policy, processor, info = load_policy(state.folder / "sft", state.model.code)
    (one, _) = won_and_lost(state.explore("flow_grpo", execute=5))
    executed = explored_rows([one], processor, info).executed
    assert executed.shape == (5, 8, policy.action_dim)
    assert executed.all(2).sum(1).tolist() == executed.any(2).sum(1).tolist() == [5, 5, 5, 5, 4], "of 24 steps"
    padded = executed_numbers(torch.tensor([2]), processor, policy.action_dim + 3)
    assert padded[0, :2, : policy.action_dim].all() and padded.sum() == 2 * policy.action_dim


def test_the_stage_counts_steps_and_keeps_what_the_learner_needs(state, tmp_path, monkeypatch):
    episodes = state.explore("flow_grpo")
    monkeypatch.setattr(policy_episodes, "simulate", lambda *_: episodes)
    settings = SimpleNamespace(groups=1, episodes=2, execute=8, denoising_steps=3)
    said = list[str]()
    node = SimpleNamespace(params={"sampler": "sde"}, method="flow_grpo")
    context = SimpleNamespace(
        **{"config": SimpleNamespace(explore=settings), "node": node, "objective": ObjectiveConfig()},
        **{"inputs": {"policy": state.folder / "sft"}, "out": tmp_path, "say": said.append},
    )
    policy_episodes.explore(None, context)
    counts = json.loads((tmp_path / "collection.json").read_text())
    assert counts["episodes"] == 2 and counts["policy_steps"] == sum(one.num_steps for one in episodes)
    np.testing.assert_array_equal(read_episodes(tmp_path)[1].paths, episodes[1].paths)
    assert "0 of 2 episodes succeeded" in said[0]


def test_methods_that_explore_do_so_in_the_place_of_collecting_pairs(tmp_path):
    config = load_config(write_small(tmp_path), ["method=flow_grpo", "controls=[fpo,rpro]"])
    nodes = {node.name: node for node in expand(config)}
    assert nodes["flow_grpo.2.explore"].inputs == {"policy": "flow_grpo.1.optimise"}
    explored = {"policy": "flow_grpo.1.optimise", "explored": "flow_grpo.2.explore"}
    assert nodes["flow_grpo.2.optimise"].inputs == explored
    assert nodes["fpo.1.explore"].params["sampler"] == "flow" and "rpro.1.collect" in nodes


def test_what_exploring_cannot_do_is_refused(tmp_path):
    path = write_small(tmp_path)
    for override, said in {
        "objectives.fpo.noise=0.5": "objectives.fpo: fpo has no noise; leave it out",
        "objectives.flow_grpo.lambda_sft=2": "objectives.flow_grpo: flow_grpo has no lambda_sft",
        "objectives.rpro.epsilon=0.1": "objectives.rpro: rpro has no epsilon",
        "objectives.reinflow.noise_bounds=[0.2,0.1]": "give the lower one first",
        "explore.episodes=1": "explore.episodes",
    }.items():
        with pytest.raises(UserError, match=said.replace("[", r"\[")):
            load_config(path, [override])
    with pytest.raises(UserError, match="explore.execute is 9"):
        check_settings(load_config(path, ["method=fpo", "env.backend=tabletop", "explore.execute=9"]))
