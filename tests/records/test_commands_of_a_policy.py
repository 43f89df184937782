"""What a policy commands is kept to the last bit for learning, and exported as it was executed."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from algos.chunks import Timing
from envs.commands import executed
from envs.se3 import split_arms
from rl_lab.data import main
from rl_lab.records.action_batches import pair_states
from rl_lab.records.checks import command_problems, pose_problems
from rl_lab.records.episodes import read_pairs, write_episodes, write_pairs
from tests.support.episodes import read_folder


def grippers(ee):
    return split_arms(ee)[..., 7]


def test_its_samples_leave_the_range_and_the_environment_does_not_follow(learned_pairs):
    commanded = np.concatenate([grippers(pair.loser.actions) for pair in learned_pairs])
    measured = np.concatenate([grippers(pair.loser.poses) for pair in learned_pairs])
    assert commanded.min() < -0.02 and measured.min() >= 0 and measured.max() <= 1


def test_pairs_of_a_policy_come_back_to_the_last_bit(tmp_path, learned_pairs, capsys):
    write_pairs(tmp_path / "lab", learned_pairs)
    main(["validate", str(tmp_path / "lab")])
    main(["convert", str(tmp_path / "lab"), str(tmp_path / "set"), "--to", "pairs", "--lossless"])
    main(["validate", str(tmp_path / "set")])
    assert capsys.readouterr().out.splitlines()[-1] == f"{len(learned_pairs)} pairs, no problems"
    main(["convert", str(tmp_path / "set"), str(tmp_path / "back"), "--to", "lab"])
    before, after = (pair_states(read_pairs(tmp_path / name), Timing(4), None) for name in ("lab", "back"))
    for name in ("frames", "poses", "winner", "loser", "identical"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_lerobot_is_given_what_was_executed(tmp_path, learned_episodes):
    write_episodes(tmp_path / "lab", learned_episodes)
    main(["convert", str(tmp_path / "lab"), str(tmp_path / "set"), "--hold-images"])
    main(["validate", str(tmp_path / "set")])
    rows = pq.read_table(tmp_path / "set/data").to_pandas()
    commanded = np.concatenate([each.actions for each in learned_episodes])
    stored = np.stack(rows["action"])
    assert grippers(commanded).min() < -0.02 and grippers(stored).min() == 0
    np.testing.assert_allclose(stored, executed(commanded), atol=1e-6)
    for read, written in zip(read_folder(tmp_path / "set"), learned_episodes, strict=True):
        np.testing.assert_allclose(read.poses, written.poses, atol=1e-6)


def test_executed_commands_have_unit_quaternions_and_grippers_in_range():
    command = np.array([0.1, 0.2, 0.9, 2.0, 0.0, 0.0, 0.0, 1.08, -0.1, 0.2, 0.9, 0.0, 3.0, 0.0, 4.0, -0.12])
    expected = [0.1, 0.2, 0.9, 1, 0, 0, 0, 1, -0.1, 0.2, 0.9, 0, 0.6, 0, 0.8, 0]
    np.testing.assert_allclose(executed(command), expected, atol=1e-15)
    np.testing.assert_array_equal(executed(np.stack([command] * 3)), np.stack([executed(command)] * 3))


@pytest.mark.parametrize(("gripper", "is_command", "is_pose"), [(1.08, 1, 0), (-0.12, 1, 0), (1.01, 1, 1), (90, 0, 0)])
def test_bounds_fit_what_a_number_is(gripper, is_command, is_pose):
    ee = np.array([[0, 0, 0, 1, 0, 0, 0, gripper] * 2], dtype=float)
    assert (not command_problems("x", "action", ee)) == is_command
    assert (not pose_problems("x", "pose", ee)) == is_pose
