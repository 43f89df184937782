"""Sets in other units or another order of numbers are read, and said to be odd."""

import dataclasses

import numpy as np
import pytest

from envs.se3 import split_arms
from rl_lab.data import main
from rl_lab.records.checks import Doubts
from rl_lab.records.episodes import write_episodes, write_pairs
from tests.support.episodes import episode, pair


def changed(of, edit):
    """The episode with both arms' poses [n, 2, 8] and commands edited in place."""
    poses = of.poses.copy()
    edit(split_arms(poses))
    return dataclasses.replace(of, poses=poses, actions=poses[1:])


def in_millimetres(arms):
    arms[..., :3] *= 1000


def closed(arms):
    arms[:, 1, 7] *= 0.08


def scalar_last(arms):
    arms[:, 0, 3:7] = np.roll(arms[:, 0, 3:7], -1, axis=-1)


ODD = {
    "positions reach": in_millimetres,
    "the right gripper never opens (at most 0.08)": closed,
    "100 % of the left arm's quaternions turn nothing if their last number is the scalar": scalar_last,
}


@pytest.mark.parametrize("words", ODD)
def test_a_set_that_reads_as_odd_is_said_to_be(tmp_path, capsys, words):
    write_episodes(tmp_path / "lab", [changed(episode(seed), ODD[words]) for seed in (1, 2)])
    assert main(["validate", str(tmp_path / "lab")]) == 0
    warning, last = capsys.readouterr().out.splitlines()
    assert warning.startswith(f"warning: {words}") and last == "2 episodes, no problems"


def test_what_is_odd_in_some_poses_only_is_not(learned_pairs, learned_episodes):
    doubts = Doubts()
    assert doubts.lines() == []
    for record in [*learned_pairs, *learned_episodes, episode(1), changed(episode(2), scalar_last)]:
        doubts.add(record)
    assert doubts.lines() == []


def test_both_sides_of_pairs_are_looked_at(tmp_path, capsys):
    odd = pair(1)
    odd.loser.poses = odd.loser.poses.copy()  # whose commands are a view of it
    odd.loser.poses[3, 0] = 700.0
    write_pairs(tmp_path / "lab", [odd])
    main(["validate", str(tmp_path / "lab")])
    assert "warning: positions reach 700" in capsys.readouterr().out
