"""Laws of rotations and poses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import se3

seeds = st.integers(0, 100_000)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def quats(seed: int, *shape: int) -> np.ndarray:
    return se3.normalize(rng(seed).normal(size=(*shape, 4)))


def ee(seed: int, *shape: int) -> np.ndarray:
    arms = rng(seed).normal(size=(*shape, 2, 8))
    arms[..., 3:7] = se3.normalize(arms[..., 3:7])
    arms[..., 7] = rng(seed).uniform(size=(*shape, 2))
    return arms.reshape(*shape, 16)


def about(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    return np.append(np.cos(angle / 2), np.sin(angle / 2) * np.array(axis))


def test_a_quarter_turn_about_z_by_hand():
    matrix = se3.quat_to_matrix(about((0, 0, 1), np.pi / 2))
    assert np.allclose(matrix, [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert np.allclose(se3.matrix_to_rot6d(matrix), [0, -1, 0, 1, 0, 0]), "rows, not columns"


def test_zero_stays_zero_when_normalised():
    assert np.array_equal(se3.normalize(np.zeros((2, 3))), np.zeros((2, 3)))


@given(seeds)
def test_matrices_are_rotations_and_products_compose(seed):
    a, b = quats(seed, 5), quats(seed + 1, 5)
    matrix = se3.quat_to_matrix(a)
    assert np.allclose(matrix @ np.swapaxes(matrix, -1, -2), np.eye(3)) and np.allclose(np.linalg.det(matrix), 1)
    assert np.allclose(se3.quat_to_matrix(se3.quat_multiply(a, b)), matrix @ se3.quat_to_matrix(b))
    assert np.allclose(se3.quat_to_matrix(se3.quat_conjugate(a)), np.swapaxes(matrix, -1, -2))


@given(seeds)
def test_quaternion_and_matrix_are_inverse_up_to_sign(seed):
    quat = quats(seed, 6)
    back = se3.matrix_to_quat(se3.quat_to_matrix(quat))
    assert np.all(back[:, 0] >= 0)
    assert np.allclose(back * np.sign(np.sum(back * quat, axis=-1, keepdims=True)), quat)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0.8, 0)])
def test_half_turns_survive_the_matrix(axis):
    quat = about(axis, np.pi)
    back = se3.matrix_to_quat(se3.quat_to_matrix(quat))
    assert se3.geodesic_angle(quat, back) < 1e-7


@given(seeds)
def test_rot6d_round_trip_and_gram_schmidt(seed):
    matrix = se3.quat_to_matrix(quats(seed, 4))
    rot6d = se3.matrix_to_rot6d(matrix)
    assert np.allclose(se3.rot6d_to_matrix(rot6d), matrix)
    noisy = se3.rot6d_to_matrix(rot6d + rng(seed).normal(size=rot6d.shape) * 0.1)
    assert np.allclose(noisy @ np.swapaxes(noisy, -1, -2), np.eye(3)) and np.allclose(np.linalg.det(noisy), 1)


@given(seeds)
def test_the_nearest_rotation_of_a_rotation_is_itself_and_no_other_is_nearer(seed):
    matrix = se3.quat_to_matrix(quats(seed))
    assert np.allclose(se3.nearest_rotation(matrix), matrix)
    noisy = matrix + rng(seed).normal(size=(3, 3)) * 0.3
    nearest = se3.nearest_rotation(noisy)
    assert np.allclose(nearest @ nearest.T, np.eye(3)) and np.isclose(np.linalg.det(nearest), 1)
    for other in se3.quat_to_matrix(quats(seed + 1, 20)):
        assert np.linalg.norm(noisy - nearest) <= np.linalg.norm(noisy - other) + 1e-12


@given(seeds, st.floats(0, np.pi))
def test_the_geodesic_angle_is_the_angle_of_the_relative_rotation(seed, angle):
    a = quats(seed)
    axis = se3.normalize(rng(seed + 1).normal(size=3))
    b = se3.quat_multiply(a, about(axis, angle))
    assert se3.geodesic_angle(a, b) == pytest.approx(angle, abs=1e-7)
    assert se3.geodesic_angle(a, -b) == pytest.approx(angle, abs=1e-7)


@given(seeds, st.floats(0, 1))
def test_slerp_divides_the_angle_evenly_and_stays_unit(seed, fraction):
    a, b = quats(seed), quats(seed + 1)
    middle, whole = se3.slerp(a, b, fraction), se3.geodesic_angle(a, b)
    assert np.linalg.norm(middle) == pytest.approx(1)
    assert se3.geodesic_angle(a, middle) == pytest.approx(fraction * whole, abs=1e-7)
    assert se3.geodesic_angle(middle, b) == pytest.approx((1 - fraction) * whole, abs=1e-7)
    flipped = se3.slerp(a, -b, fraction)
    assert se3.geodesic_angle(middle, flipped) < 1e-7


def test_slerp_between_equal_and_nearly_equal_rotations_is_finite():
    quat = quats(0)
    assert np.allclose(se3.slerp(quat, quat, 0.3), quat)
    near = se3.quat_multiply(quat, about((1, 0, 0), 1e-9))
    assert np.allclose(se3.slerp(quat, near, 0.5), quat, atol=1e-8)


@given(seeds)
def test_slerp_broadcasts_fractions(seed):
    a, b = quats(seed, 3, 1), quats(seed + 1, 3, 1)
    fractions = np.linspace(0, 1, 4)[None].repeat(3, axis=0)
    together = se3.slerp(a, b, fractions)
    assert together.shape == (3, 4, 4)
    assert np.allclose(together[1, 2], se3.slerp(a[1, 0], b[1, 0], fractions[1, 2]))


@given(seeds)
def test_encoded_poses_decode_to_the_same_pose(seed):
    poses = ee(seed, 3)
    encoded = se3.encode_pose(poses)
    assert encoded.shape == (3, 20)
    back = se3.decode_absolute(encoded)
    arms, arms_back = se3.split_arms(poses), se3.split_arms(back)
    assert np.allclose(arms[..., :3], arms_back[..., :3]) and np.allclose(arms[..., 7], arms_back[..., 7])
    assert np.all(se3.geodesic_angle(arms[..., 3:7], arms_back[..., 3:7]) < 1e-7)


@given(seeds)
def test_relative_poses_are_those_of_homogeneous_matrices_and_come_back(seed):
    start, poses = ee(seed), ee(seed + 1, 4)
    relative = se3.to_relative(poses, start)
    assert np.allclose(se3.encode_pose(se3.from_relative(relative, start)), se3.encode_pose(poses))
    start_left, pose_left = se3.split_arms(start)[0], se3.split_arms(poses)[2, 0]

    def homogeneous(arm: np.ndarray) -> np.ndarray:
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = se3.quat_to_matrix(arm[3:7]), arm[:3]
        return matrix

    expected = np.linalg.inv(homogeneous(start_left)) @ homogeneous(pose_left)
    assert np.allclose(relative[2, :3], expected[:3, 3])
    assert np.allclose(relative[2, 3:9], se3.matrix_to_rot6d(expected[:3, :3]))
    assert relative[2, 9] == pose_left[7], "the gripper stays absolute"


@given(seeds)
def test_relative_to_itself_is_the_identity_and_batches_agree_with_single_poses(seed):
    start = ee(seed, 3)
    own = se3.to_relative(start[:, None], start)
    arms = se3.split_arms(own)[..., :9]
    assert np.allclose(arms, np.broadcast_to([0, 0, 0, 1, 0, 0, 0, 1, 0], arms.shape))
    poses = ee(seed + 1, 3, 5)
    assert np.allclose(se3.to_relative(poses, start)[1], se3.to_relative(poses[1], start[1]))


@given(seeds)
def test_relative_poses_do_not_depend_on_the_world_frame(seed):
    start, poses = ee(seed), ee(seed + 1, 4)
    rotation, offset = quats(seed + 2), rng(seed).normal(size=3)

    def move(values: np.ndarray) -> np.ndarray:
        arms = se3.split_arms(values).copy()
        arms[..., :3] = arms[..., :3] @ se3.quat_to_matrix(rotation).T + offset
        arms[..., 3:7] = se3.quat_multiply(np.broadcast_to(rotation, arms[..., 3:7].shape), arms[..., 3:7])
        return arms.reshape(values.shape)

    assert np.allclose(se3.to_relative(move(poses), move(start)), se3.to_relative(poses, start))
