"""Stored chunks and episodes under another reward."""

import json

import numpy as np
import pytest
import yaml

from rewards.actions.ensemble import Ensemble, ModelInfo
from rl_lab.errors import UserError
from rl_lab.records.episodes import write_candidates, write_episodes
from rl_lab.rescore import main
from rl_lab.rollouts.ranking import rank_folder
from rl_lab.rollouts.rescore_actions import compare_scores
from tests.action.test_ranking import STATES
from tests.rewards.test_actions import walk

RANKINGS = {"interventions": {}, "deviation": {"weights": {"deviation": 1.0}}, "random": {"weights": {"random": 1.0}}}
RANKINGS |= {"success": {"weights": {"success": 1.0}, "margin": 0.0}}


@pytest.fixture
def run(tmp_path):
    """A run that ranked chunks by their deviation, with a reward model of random weights."""
    config = {"seed": 0, "sweep": {"baseline": "interventions", "rankings": RANKINGS}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    row = {
        "name": "deviation.1.rank",
        "method": "deviation",
        "replicate": 1,
        "inputs": {"candidates": "seed.1.candidates"},
    }
    (tmp_path / "stages.json").write_text(json.dumps({"store": "", "nodes": [row]}))
    candidates = tmp_path / "candidates" / "seed.1.candidates"
    write_candidates(candidates, STATES)
    rank_folder(candidates, {}, {"deviation": 1.0}, 1.0, 0, tmp_path / "pairs" / "deviation.1.rank")
    write_episodes(tmp_path / "episodes" / "seed.1.episodes", [walk(seed, success=seed % 2 == 0) for seed in range(4)])
    Ensemble(ModelInfo("success", 2, 8, 8), [1, 2]).save(tmp_path / "reward_models" / "seed.1.success")
    return tmp_path


def rescored(run, name):
    assert main([str(run), "--reward", name]) == 0
    return json.loads((run / f"rescored-{name}.json").read_text())


def test_the_same_reward_agrees_with_itself(run):
    found = rescored(run, "deviation")["chunks"]["deviation.1.rank"]
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
    found = rescored(run, "success")["episodes"]["success"]["seed.1.episodes"]
    assert (found["episodes"], found["successes"]) == (4, 2)
    assert len(found["flips"]) % 2 == 0  # as many count as successes as there are
    assert "seed.1.episodes by success: rank agreement with success" in capsys.readouterr().out


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
