"""Smooth Interpolation: worked examples and laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.smooth_interpolation import (
    interpolate_pair,
    last_commands,
    left_of_difference,
    recorded_chunks,
    shifted_poses,
)
from envs.se3 import encode_pose, geodesic_angle, normalize, pose_distance, quat_multiply, quat_to_matrix, split_arms
from envs.types import PreferencePair, Segment

CHUNK = 8
seeds = st.integers(0, 10_000)


def ee(left, right=(0.3, 0, 0), gripper=1.0, quat=(1.0, 0, 0, 0)) -> np.ndarray:
    return np.array([*left, *quat, gripper, *right, 1.0, 0, 0, 0, 1.0], dtype=np.float64)


def segment(poses: np.ndarray) -> Segment:
    """A segment whose commands are reached at once."""
    return Segment(poses=poses, actions=poses[1:], images=np.zeros((len(poses) - 1, 3, 1, 1, 3), dtype=np.uint8))


def pair(winner: Segment, loser: Segment) -> PreferencePair:
    labels = {"task": "t", "variant": "clean", "instruction": "", "trigger": "x", "corrector": "c", "start_digest": ""}
    numbers = dict.fromkeys(("seed", "start_step", "trigger_step", "rollback_steps", "weight_version"), 0)
    return PreferencePair(winner=winner, loser=loser, **labels, **numbers)


def line(*points: tuple[float, float, float]) -> Segment:
    return segment(np.stack([ee(point) for point in points]))


def walk(generator: np.random.Generator, start: np.ndarray, num_steps: int) -> Segment:
    """A smooth random motion of both arms from `start`."""
    arms = split_arms(start).copy()
    velocity, spin = generator.normal(size=(2, 3)) * 0.01, generator.normal(size=(2, 3)) * 0.03
    poses = [start]
    for _ in range(num_steps):
        velocity = 0.9 * velocity + generator.normal(size=(2, 3)) * 0.004
        spin = 0.9 * spin + generator.normal(size=(2, 3)) * 0.01
        arms[:, :3] += velocity
        arms[:, 3:7] = quat_multiply(arms[:, 3:7], normalize(np.concatenate([np.ones((2, 1)), spin / 2], axis=1)))
        arms[:, 7] = np.clip(arms[:, 7] + generator.normal(size=2) * 0.1, 0, 1)
        poses.append(arms.reshape(16).copy())
    return segment(np.stack(poses))


def random_pair(seed: int, num_winner: int = 24, num_loser: int = 18) -> PreferencePair:
    generator = np.random.default_rng(seed)
    arms = generator.normal(size=(2, 8)) * 0.2
    arms[:, 3:7] = normalize(generator.normal(size=(2, 4)))
    arms[:, 7] = generator.uniform(size=2)
    start = arms.reshape(16)
    return pair(walk(generator, start, num_winner), walk(generator, start, num_loser))


def test_loser_of_three_and_winner_of_four_give_one_real_and_four_identical_tuples():
    """The worked test of a third-party implementation, chunk length 3."""
    example = random_pair(0, num_winner=4, num_loser=3)
    tuples = interpolate_pair(example, 3)
    assert tuples.identical.tolist() == [False, True, True, True, True]
    assert tuples.step.tolist() == [0, 0, 1, 2, 3]
    assert np.array_equal(tuples.loser[0], example.loser.actions)
    assert np.array_equal(tuples.winner[4], np.repeat(example.winner.actions[3:], 3, axis=0)), "padded tail"


def test_a_loser_shorter_than_a_chunk_gives_no_real_tuple():
    tuples = interpolate_pair(random_pair(0, num_loser=5), CHUNK)
    assert tuples.identical.all() and len(tuples) == 24


def test_the_pose_distance_weighs_metres_radians_and_gripper():
    half_turn = (np.cos(0.5), 0, 0, np.sin(0.5))
    assert pose_distance(ee((0, 0, 0)), ee((3, 4, 0))) == pytest.approx(5)
    assert pose_distance(ee((0, 0, 0)), ee((0, 0, 0), quat=half_turn)) == pytest.approx(0.5)
    assert pose_distance(ee((0, 0, 0)), ee((0, 0, 0), gripper=0.5)) == pytest.approx(0.1)
    assert pose_distance(ee((0, 0, 0)), ee((1, 0, 0), right=(0.3, 2, 0))) == pytest.approx(3)


def test_a_loser_beside_the_winner_joins_it_within_a_chunk_and_does_not_fall_behind():
    """The winner moves 1 cm a step along x; the loser runs beside it, 1 cm away."""
    winner = line(*[(0.01 * i, 0, 0) for i in range(20)])
    loser = line((0, 0, 0), *[(0.01 * i, 0.01, 0) for i in range(1, 14)])
    chunk = interpolate_pair(pair(winner, loser), CHUNK).winner[4]
    assert np.allclose(chunk[:, 0], winner.actions[4:12, 0]), "as far along as the winner after as many steps"
    assert np.allclose(chunk[:, 1], [0.01 * (1 - s) ** 2 * (1 + 2 * s) for s in np.arange(1, 9) / 8])
    assert np.allclose(chunk[-1], winner.actions[11])


def test_rotations_join_by_their_share_and_grippers_by_a_line():
    turned = (np.cos(0.3), 0, 0, np.sin(0.3))
    recorded = np.stack([ee((0.01 * i, 0, 0), gripper=1.0) for i in range(1, 9)])[None]
    chunk = shifted_poses(recorded, ee((0, 0, 0), gripper=0.4, quat=turned)[None], ee((0, 0, 0))[None])[0]
    assert np.allclose(geodesic_angle(chunk[:, 3:7], np.array([1.0, 0, 0, 0])), 0.6 * left_of_difference(CHUNK))
    assert np.allclose(chunk[:4, 7], [0.6, 0.8, 1, 1])
    assert np.array_equal(chunk[:, :3], recorded[0, :, :3]) and np.allclose(chunk[:, 8:], recorded[0, :, 8:])


def test_only_the_shared_start_is_real_without_interpolation():
    example = random_pair(3)
    tuples = interpolate_pair(example, CHUNK, loser_states=1)
    assert int((~tuples.identical).sum()) == 1 and len(tuples) == 25
    assert np.array_equal(tuples.winner[0], recorded_chunks(example.winner.actions, np.array([0]), CHUNK)[0])
    full = interpolate_pair(example, CHUNK)
    assert np.array_equal(full.winner[0], tuples.winner[0]) and np.array_equal(full.loser[0], tuples.loser[0])


def test_an_empty_segment_is_refused():
    example = random_pair(0)
    empty = Segment(example.loser.poses[:1], example.loser.actions[:0], example.loser.images[:0])
    with pytest.raises(ValueError, match="loser 0 steps"):
        interpolate_pair(pair(example.winner, empty), CHUNK)


def test_tuples_can_be_selected():
    tuples = interpolate_pair(random_pair(1), CHUNK)
    losers = tuples.select(tuples.from_loser)
    assert len(losers) == 18 - CHUNK + 1 and not losers.identical.any()


@settings(max_examples=25)
@given(seeds)
def test_shapes_start_poses_and_recorded_chunks(seed):
    example = random_pair(seed)
    tuples = interpolate_pair(example, CHUNK)
    assert tuples.winner.shape == tuples.loser.shape == (len(tuples), CHUNK, 16)
    winners, losers = tuples.select(~tuples.from_loser), tuples.select(tuples.from_loser)
    assert np.array_equal(tuples.identical, ~tuples.from_loser)
    assert np.array_equal(losers.start, example.loser.poses[losers.step])
    assert np.array_equal(winners.start, example.winner.poses[winners.step])
    for tuples_of, side in (
        (losers.loser, example.loser),
        (winners.winner, example.winner),
        (winners.loser, example.winner),
    ):
        steps = (losers if side is example.loser else winners).step
        assert np.array_equal(tuples_of, recorded_chunks(side.actions, steps, CHUNK))


@settings(max_examples=25)
@given(seeds)
def test_rotations_are_unit_and_grippers_stay_in_range(seed):
    tuples = interpolate_pair(random_pair(seed), CHUNK)
    arms = split_arms(tuples.winner)
    assert np.allclose(np.linalg.norm(arms[..., 3:7], axis=-1), 1)
    assert np.all((arms[..., 7] >= -1e-9) & (arms[..., 7] <= 1 + 1e-9))


@settings(max_examples=25)
@given(seeds)
def test_a_winner_that_is_its_own_loser_gives_its_recorded_chunks(seed):
    """Of a pair without a difference nothing is to be learned."""
    winner = random_pair(seed).winner
    tuples = interpolate_pair(pair(winner, winner), CHUNK)
    assert np.allclose(encode_pose(tuples.winner), encode_pose(tuples.loser), atol=1e-9)


@settings(max_examples=25)
@given(seeds)
def test_the_way_back_is_one_curve_from_the_last_command_to_the_winner(seed):
    """It ends on the winner; beside the winner's own steps none is longer than its share of the difference."""
    example = random_pair(seed)
    tuples = interpolate_pair(example, CHUNK)
    states = example.winner.poses[None, : len(example.winner.actions)]
    for chunk, start, step in zip(tuples.winner[1:11], tuples.start[1:11], tuples.step[1:11], strict=True):
        nearest = int(np.argmin(pose_distance(start, states[0])))
        recorded = recorded_chunks(example.winner.actions, np.array([nearest]), CHUNK)[0]
        assert np.allclose(encode_pose(chunk[-1:]), encode_pose(recorded[-1:]), atol=1e-9)
        left = split_arms(chunk)[..., :3] - split_arms(recorded)[..., :3]
        apart = split_arms(example.loser.actions[step - 1])[..., :3]
        apart = apart - split_arms(example.winner.actions[max(nearest - 1, 0)])[..., :3]
        steps = np.linalg.norm(np.diff(left, axis=0, prepend=apart[None]), axis=-1)
        assert steps.max() <= 1.5 / CHUNK * np.linalg.norm(apart, axis=-1).max() + 1e-9


def test_arms_that_lag_behind_their_commands_change_nothing():
    """The arm trails its command by 4 mm and the gripper cannot close on what it holds."""
    commands = np.stack([ee((0.01 * i, 0, 0), gripper=0.0) for i in range(20)])
    poses = np.stack([ee((0.01 * i - 0.004, 0, 0), gripper=0.5) for i in range(20)])
    winner = Segment(poses, commands[1:], np.zeros((19, 3, 1, 1, 3), dtype=np.uint8))
    tuples = interpolate_pair(pair(winner, winner), CHUNK)
    assert np.allclose(tuples.winner, tuples.loser, atol=1e-9)


def test_a_command_that_is_far_from_its_arm_counts_as_one_step():
    turned = (np.cos(0.4), 0, 0, np.sin(0.4))
    poses = np.stack([ee((0, 0, 0), gripper=0.5)] * 3)
    commands = np.stack([ee((0.01, 0, 0), gripper=0.0), ee((0, 0.3, 0), gripper=0.0, quat=turned)])
    side = Segment(poses, commands, np.zeros((2, 3, 1, 1, 3), dtype=np.uint8))
    near = last_commands(side, np.array([0, 1]), (0.02, 0.1))
    assert np.allclose(near, ee((0.01, 0, 0), gripper=0.0)), "of the first state the first command"
    side = Segment(poses, commands[[1, 0]], side.images)
    far = last_commands(side, np.array([1]), (0.02, 0.1))
    assert np.allclose(far, ee((0, 0.02, 0), gripper=0.0, quat=(np.cos(0.05), 0, 0, np.sin(0.05))))


def moved_by(poses: np.ndarray, rotation: np.ndarray, offset: np.ndarray) -> np.ndarray:
    arms = split_arms(poses).copy()
    arms[..., :3] = arms[..., :3] @ quat_to_matrix(rotation).T + offset
    arms[..., 3:7] = quat_multiply(np.broadcast_to(rotation, arms[..., 3:7].shape), arms[..., 3:7])
    return arms.reshape(poses.shape)


@settings(max_examples=25)
@given(seeds)
def test_a_rigid_motion_of_everything_moves_the_chunks_along(seed):
    generator = np.random.default_rng(seed + 1)
    rotation, offset = normalize(generator.normal(size=4)), generator.normal(size=3)
    example = random_pair(seed)

    def move(side: Segment) -> Segment:
        return Segment(moved_by(side.poses, rotation, offset), moved_by(side.actions, rotation, offset), side.images)

    plain = interpolate_pair(example, CHUNK)
    moved = interpolate_pair(pair(move(example.winner), move(example.loser)), CHUNK)
    assert np.allclose(encode_pose(moved.winner), encode_pose(moved_by(plain.winner, rotation, offset)), atol=1e-7)


@settings(max_examples=25)
@given(seeds)
def test_the_sign_of_a_quaternion_does_not_matter(seed):
    generator = np.random.default_rng(seed + 2)
    example = random_pair(seed)

    def flip(side: Segment) -> Segment:
        flipped = []
        for poses in (side.poses, side.actions):
            arms = split_arms(poses).copy()
            arms[..., 3:7] *= generator.choice([-1.0, 1.0], size=(*arms.shape[:-1], 1))
            flipped.append(arms.reshape(poses.shape))
        return Segment(*flipped, side.images)

    plain = interpolate_pair(example, CHUNK)
    flipped = interpolate_pair(pair(flip(example.winner), flip(example.loser)), CHUNK)
    assert np.allclose(encode_pose(plain.winner), encode_pose(flipped.winner), atol=1e-9)
