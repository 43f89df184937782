"""Reward models of actions as a training stage: splits by episode, members, resuming, and the card."""

import numpy as np
import pytest
import torch

from rewards.actions.ensemble import Ensemble
from rl_lab.common.errors import UserError
from rl_lab.config.actions import RewardModelsConfig
from rl_lab.learner.action_rewards import RewardPlan, make_card, split_episodes
from rl_lab.learner.plans import Training
from rl_lab.records.episodes import write_episodes
from tests.support.episodes import walk
from tests.support.trainings import trained

SETTINGS = RewardModelsConfig(steps=4, warmup=1, batch_size=4, latent=8)


def episodes(successes=10, failures=10):
    return [walk(seed, success=seed < successes) for seed in range(successes + failures)]


@pytest.fixture
def plan(tmp_path):
    def plan(kind="success", recorded=None, settings=SETTINGS, demos=None):
        write_episodes(tmp_path / "episodes", episodes() if recorded is None else recorded)
        if demos is not None:
            write_episodes(tmp_path / "demos", demos)
        return RewardPlan(kind, settings, tmp_path / "episodes", demos and tmp_path / "demos", horizon=4, seed=0)

    return plan


def test_no_episode_is_in_two_splits_and_all_have_the_same_share_of_successes():
    splits = split_episodes(episodes(20, 10), 0.2, seed=1)
    seeds = [{episode.seed for episode in part} for part in splits.values()]
    assert sum(map(len, seeds)) == len(set.union(*seeds)) == 30
    counts = [(len(part), sum(episode.success for episode in part)) for part in splits.values()]
    assert counts == [(18, 12), (6, 4), (6, 4)]
    assert split_episodes(episodes(20, 10), 0.2, seed=2)["test"] != splits["test"]


@pytest.mark.parametrize("kind", ["success", "progress", "world_model"])
def test_a_killed_training_goes_on_bit_for_bit(plan, tmp_path, kind):
    trained(plan(kind), tmp_path / "whole")
    trained(plan(kind), tmp_path / "resumed", kill_at=2)
    one, other = (Ensemble.load(tmp_path / name).state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_members_read_the_rows_in_orders_of_their_own(plan):
    batch = Training(plan()).parts.data.batch(0)
    assert not torch.equal(batch.images[0], batch.images[1])


def test_the_card_is_measured_on_episodes_that_were_not_learned(plan, tmp_path):
    mine = plan(settings=RewardModelsConfig(steps=40, warmup=1, batch_size=8, latent=8, lr=3e-3))
    trained(mine, tmp_path / "model")
    card = make_card(tmp_path / "model", mine)
    assert card["splits"] == {
        "train": {"episodes": 12, "successes": 6},
        "calibration": {"episodes": 4, "successes": 2},
        "test": {"episodes": 4, "successes": 2},
    }
    assert card["test"]["accuracy"] == card["test"]["auroc"] == 1
    assert card["test"]["brier"] < card["test"]["brier_of_rate"]
    assert len(card["test"]["members"]) == 2 and card["episodes_per_second"] > 0


def test_a_card_without_both_outcomes_claims_nothing(plan, tmp_path):
    mine = plan("world_model", recorded=episodes(0, 6), demos=[walk(50), walk(51)])
    trained(mine, tmp_path / "model")
    assert make_card(tmp_path / "model", mine)["test"] is None


def test_goals_come_from_episodes_that_succeeded(plan, tmp_path):
    trained(plan("world_model"), tmp_path / "model")
    ensemble = Ensemble.load(tmp_path / "model")
    assert ensemble.info.tasks == ("handover_block",) and np.abs(ensemble.goals.numpy()).sum() > 0


@pytest.mark.parametrize(
    "kind, recorded, said",
    [
        ("world_model", episodes(0, 6), "none of 4 episodes succeeded, so world_model has nothing to aim at"),
        ("progress", episodes(6, 0), "all 4 episodes succeeded, so progress has no failure to tell from"),
        ("world_model", [walk(seed, every=3) for seed in range(6)], "set record.execute to a divisor of the chunk's 4"),
    ],
)
def test_episodes_that_teach_nothing_are_named(plan, kind, recorded, said):
    with pytest.raises(UserError, match=said):
        Training(plan(kind, recorded=recorded))
