"""The policy of studies: it reads the simulator's truth, and goes through all that others go through."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from algos.batch import ObservationBatch
from algos.chunks import Timing
from algos.policy import PolicySpec
from envs.execution import Execution
from envs.rollback import RollbackConfig
from envs.rollout import Looking
from envs.types import Episode
from rl_lab.common.errors import RunError, UserError
from rl_lab.config.actions import ObjectiveConfig, OptimiseConfig, SFTConfig
from rl_lab.config.section import STATE_POLICY, ModelConfig
from rl_lab.graph.record import describe, substitutions
from rl_lab.learner.actions import OptimisePlan, SFTPlan
from rl_lab.learner.plans import Training
from rl_lab.model.checkpoint import check_policy, load_policy, published
from rl_lab.model.policies.state import StatePolicy
from rl_lab.records.action_batches import pair_states
from rl_lab.records.episodes import read_episodes, write_episodes, write_pairs
from rl_lab.stages.kinds import load_config
from rl_lab.stages.preflight import check_settings
from rl_lab.workers.policy import CorrectorPlan, LocalPolicy
from rl_lab.workers.serving import PolicyService
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.envs.toy import ToyEnv
from tests.own.test_own_policy import run
from tests.support.episodes import pair
from tests.support.experiments import write_small

MODEL = ModelConfig(preset="state")
UNIT = Unit(EnvSpec("tabletop", "lift_pot", "clean", 16), seeds=(3, 4), run_seed=0)
STEPS = {"steps": 40, "batch_size": 16, "warmup": 5, "draws_per_sample": 2}
ROLLBACK = RollbackConfig(rollback_steps=(8, 8), kept_after_event=8, patience=4, latency=2, join="stitch")
"""Pairs of episodes under latency, from which methods learn as from others."""


def observed(truth: torch.Tensor | None, num: int = 2) -> ObservationBatch:
    tokens = torch.zeros(num, 3, dtype=torch.int64)
    images = torch.zeros(num, 3, 3, 16, 16, dtype=torch.uint8)
    return ObservationBatch(images, torch.zeros(num, 20), tokens, tokens == 0, truth=truth)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Demonstrations, a policy after a short SFT, and the pairs of its failures."""
    folder = tmp_path_factory.mktemp("state_policy")
    write_episodes(folder / "demos", [one for one in Simulation().demonstrate(UNIT, 0.0) if isinstance(one, Episode)])
    settings = SFTConfig(**STEPS, probe_weight=0.0, ema=0.0)
    training = Training(SFTPlan(MODEL, settings, folder / "demos", stride=1, seed=0))
    first, *_, last = (training.run_step() for _ in range(settings.steps))
    training.finish(folder / "sft")
    assert last["loss"] < 0.5 * first["loss"]
    found = Simulation().collect(UNIT, published(folder / "sft", STATE_POLICY), ROLLBACK, CorrectorPlan())
    assert found.pairs and found.pairs[0].loser.truth is not None
    write_pairs(folder / "pairs", found.pairs)
    return folder


def test_it_is_small_and_reads_state_and_truth_alone():
    policy = StatePolicy(PolicySpec(chunk_size=8, truth_size=15))
    assert sum(parameter.numel() for parameter in policy.parameters()) < 500_000
    assert list(policy.parameter_groups()) == ["expert"]
    truth = torch.randn(2, 15)
    black, white = observed(truth), replace(observed(truth), images=torch.full((2, 3, 3, 16, 16), 255))
    assert torch.equal(policy.encode(black), policy.encode(white))
    assert not torch.equal(policy.encode(black), policy.encode(observed(truth + 1)))
    for missing in (None, torch.randn(2, 4)):
        with pytest.raises(ValueError, match="reads 15 numbers of the simulator's truth, but there"):
            policy.encode(observed(missing))


def test_truth_is_normalised_by_the_demonstrations_and_stays_with_the_policy(given):
    policy, processor, _ = load_policy(given / "sft", STATE_POLICY)
    truth = np.concatenate([one.truth for one in read_episodes(given / "demos")])
    np.testing.assert_allclose(policy.truth_mean, truth.mean(0), rtol=1e-5, atol=1e-6)
    assert processor.reads_truth and check_policy(given / "sft", STATE_POLICY)[0].truth_size == truth.shape[1]


def test_states_of_pairs_have_the_truth_of_their_own_moment():
    one = pair(1)
    for side in (one.winner, one.loser):
        side.truth = side.poses[:-1, :3].astype(np.float32)
    states = pair_states([one, one], Timing(8), None)
    np.testing.assert_allclose(states.truth, states.poses[:, :3], rtol=1e-6)
    some = states.select(states.from_loser)
    assert len(some) and len(some.truth) == len(some)
    assert pair_states([one, pair(2)], Timing(8), None).truth is None


def test_a_decision_has_the_truth_of_its_moment():
    env = ToyEnv()
    env.reset(seed=1)
    np.testing.assert_array_equal(Looking(env, 4).decision(1, 0).truth, env.truth())


@pytest.mark.parametrize("method", ["rpro", "dagger_buffered", "rpro_trajectory"])
def test_it_fails_is_corrected_and_learns_by_the_objectives_of_others(given, tmp_path, method):
    folders = {"policy": given / "sft", "sft": given / "sft", "demos": given / "demos", "pairs": (given / "pairs",)}
    settings = OptimiseConfig(**STEPS | {"steps": 3, "warmup": 1})
    plan = OptimisePlan(
        method, 1, settings, ObjectiveConfig(), (0.8, 0.2), **folders, stride=1, seed=0, code=STATE_POLICY
    )
    run(plan, tmp_path / "policy")
    rows = Simulation().evaluate(UNIT, published(tmp_path / "policy", STATE_POLICY), Execution())
    assert len(rows) == 2 and all(row["weight_version"] == 2 for row in rows)


def test_it_acts_in_simulators_alone(given):
    policy = LocalPolicy(given / "sft", seed=0, code=STATE_POLICY)
    (env,) = Simulation()._environments.of(UNIT.env, 1)
    env.reset(seed=3)
    decision = Looking(env, 4).decision(3, 0)
    assert policy.act([decision]).shape == (1, 8, 16)
    with pytest.raises(RunError, match="reads the simulator's truth, which is not there"):
        policy.act([replace(decision, truth=None)])
    with pytest.raises(UserError, match="nothing can serve it"):
        PolicyService(given / "sft", seed=0, device="cpu", code=STATE_POLICY)


def load(tmp_path, *overrides):
    path = write_small(tmp_path, yaml.safe_dump({"model": {"preset": "state"}, "env": {"backend": "tabletop"}}))
    return load_config(path, ["sft.probe_weight=0", *overrides])


def test_a_run_says_that_it_is_a_study(tmp_path):
    config = load(tmp_path)
    check_settings(config)
    assert config.model.chunk_size == 8 and config.policy_code == STATE_POLICY
    (row,) = [row for row in substitutions(config, []) if row["used"] == "the simulator's truth"]
    assert row["why"].startswith("a study")
    assert not [row for row in substitutions(config, []) if "own" in row["used"]]
    assert "own_code" not in describe(config), "the lab's own policy is not the user's"


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["env.tasks=[lift_pot, grab_roller]"],
            "preset is state, whose policy learns one task, but env.tasks names",
        ),
        (["sft.probe_weight=1"], "sft.probe_weight is 1, but"),
        (["model.prediction=velocity"], "prediction is for our own architecture"),
    ],
)
def test_what_it_cannot_do_is_one_line(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        check_settings(load(tmp_path, *overrides))
