"""Chunks and histories by hand, and as the released code takes them."""

import numpy as np
import pytest

from algos.chunks import Timing
from algos.smooth_interpolation import recorded_chunks
from rl_lab.benchmarks.golden import load_transforms
from tests.support.episodes import poses

POSES = poses(10, 1)
ACTIONS = POSES[1:]


def places(timing: Timing, step: int) -> list[int]:
    """Which recorded pose each slot of a chunk is."""
    (chunk,) = timing.chunks(POSES, ACTIONS, np.array([step]))
    return [int(np.argmin(np.abs(POSES - slot).sum(axis=1))) for slot in chunk]


@pytest.mark.parametrize(
    ("timing", "step", "expected"),
    [
        (Timing(4), 2, [3, 4, 5, 6]),
        (Timing(4), 8, [9, 10, 10, 10]),
        (Timing(4, stride=3), 0, [3, 6, 9, 10]),
        (Timing(4, stride=3, first_slot="current"), 0, [0, 3, 6, 9]),
        (Timing(3, stride=3, first_slot="current"), 5, [5, 8, 10]),
    ],
)
def test_slots_are_the_poses_that_the_recipe_names(timing, step, expected):
    assert places(timing, step) == expected


def test_the_labs_own_chunks_are_the_recorded_commands():
    steps = np.arange(10)
    expected = recorded_chunks(ACTIONS, steps, 6)
    np.testing.assert_array_equal(Timing(6).chunks(POSES, ACTIONS, steps), expected)


def test_slot_0_is_the_measured_pose_where_the_command_differs_from_it():
    commands = ACTIONS + 0.01
    chunks = Timing(3, first_slot="current").chunks(POSES, commands, np.array([4]))
    np.testing.assert_array_equal(chunks[0], [POSES[4], commands[4], commands[5]])


def test_frames_of_the_history_are_those_of_the_reference():
    every_step = np.arange(1000)
    for step, *indices in load_transforms()["history_indices"].tolist():
        frames = Timing(1, history=len(indices), interval=5).frames(step, every_step)
        assert np.maximum(frames, 0).tolist() == indices
        assert (frames < 0).tolist() == [step < 5 * back for back in range(len(indices) - 1, -1, -1)]


def test_the_interval_counts_commands_and_rare_frames_are_held():
    assert Timing(1, stride=3, history=3, interval=5).frames(31, np.arange(99)).tolist() == [1, 16, 31]
    assert Timing(1, history=4, interval=2).frames(7, np.array([0, 4, 6])).tolist() == [0, 0, 1, 2]
