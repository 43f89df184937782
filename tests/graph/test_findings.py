"""What a finished stage says of itself, and how long the run still takes."""

import json
import re

import pytest

from rl_lab.common.terminal import ProgressBars
from rl_lab.stages.kinds import KINDS


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_evaluations_say_successes_with_their_interval(tmp_path):
    write_lines(tmp_path / "results.jsonl", [{"success": number < 36} for number in range(100)])
    assert KINDS["evaluate"].finding(tmp_path) == "36 of 100, 27 to 46 %"


def test_collections_say_what_the_pairs_took(tmp_path):
    (tmp_path / "collection.json").write_text('{"pairs": 60, "episodes": 93, "interventions": 75, "successes": 18}')
    assert KINDS["collect"].finding(tmp_path) == "60 pairs from 93 episodes, 75 interventions"


@pytest.mark.parametrize("kind", ["sft", "optimise", "cold_start", "rft"])
def test_training_says_its_last_loss(tmp_path, kind):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.03456}, {"alarm": "x"}])
    assert KINDS[kind].finding(tmp_path) == "last loss 0.03456"


def test_reinforcement_learning_says_its_reward_before_and_after(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": step, "reward/mean": step / 100} for step in range(1, 31)])
    assert KINDS["grpo"].finding(tmp_path) == "reward 0.055 in the first 10 steps, 0.255 in the last"


def test_examinations_say_their_mean_reward(tmp_path):
    write_lines(tmp_path / "results.jsonl", [{"rewards": [number % 2, None]} for number in range(100)])
    text = KINDS["examine"].finding(tmp_path)
    assert re.fullmatch(r"reward 0\.500 on 100 questions, 0\.[34]\d\d to 0\.[56]\d\d", text)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_stage_without_its_files_says_nothing(tmp_path, kind):
    assert KINDS[kind].finding(tmp_path) == ""


def test_the_time_of_the_whole_run_stands_behind_every_bar(monkeypatch, capsys):
    now = [10.0]
    monkeypatch.setattr("rl_lab.common.terminal.time.monotonic", lambda: now[0])
    bars = ProgressBars(lambda: "run: 12 min left")
    bars.update("sft", 10, 110, "loss 1")
    now[0] += 20
    bars.update("sft", 30, 110, "loss 0.5")
    assert bars.running == {"sft": (20.0, 80.0)}
    assert "loss 0.5, run: 12 min left" in capsys.readouterr().err
    bars.close("sft")
    assert bars.running == {}
