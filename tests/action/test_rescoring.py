"""Stored chunks and episodes under another reward."""

import json

import numpy as np
import pytest

from rl_lab.common.errors import UserError
from rl_lab.rescore import main
from rl_lab.rollouts.rescore_actions import compare_scores
from tests.support.stored_runs import STATES, write_ranked_run


@pytest.fixture
def run(tmp_path):
    return write_ranked_run(tmp_path)


def rescored(run, name):
    assert main([str(run), "--reward", name]) == 0
    return json.loads((run / f"rescored-{name}.json").read_text())


def test_the_same_reward_agrees_with_itself(run):
    found = rescored(run, "deviation")["chunks"]["given.1.deviation.1.rank"]
    assert (found["rank_correlation"], found["state_correlation"]) == pytest.approx((1, 1))
    assert (found["best_changed"], found["reversed"], found["pairs"], found["new_pairs"]) == (0, 0, 4, 4)


def test_the_opposite_reward_reverses_every_pair():
    old = [np.array([[1.0, 0.0, -1.0]])] * 4
    found = compare_scores(STATES, old, [-one for one in old], (1.0, 1.0))
    assert (found.rank_correlation, found.state_correlation) == pytest.approx((-1, -1))
    assert (found.best_changed, found.reversed) == (1, 4)
    assert found.flips[0].gap == 2
    assert (found.flips[0].old_progress, found.flips[0].new_progress) == pytest.approx((0.2, 0.6))


def test_episodes_are_scored_by_the_runs_own_models(run, capsys):
    found = rescored(run, "success")["episodes"]["success"]["given.1.reward.episodes"]
    assert (found["episodes"], found["successes"]) == (4, 2)
    assert len(found["flips"]) % 2 == 0  # as many count as successes as there are
    assert "given.1.reward.episodes by success: rank agreement with success" in capsys.readouterr().out


def test_a_file_names_a_ranking_too(run, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("ranking: {weights: {deviation: 1.0, random: 0.5}}\n")
    assert main([str(run), "--reward", str(path)]) == 0
    assert (run / "rescored-mine.json").is_file()


@pytest.mark.parametrize(
    "text, said",
    [
        ("ranking: {weights: {world_model: 1.0}}", "trained no reward model world_model"),
        ("ranking: {weights: {succes: 1.0}}", "ranking.weights.succes"),
        ("rewards: {}", "has no section `ranking`"),
    ],
)
def test_what_cannot_be_scored_is_named(run, tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        main([str(run), "--reward", str(path)])
