"""Rotations and rigid poses in numpy, batched over leading axes.

Conventions: quaternions are `wxyz` with unit norm unless a name says otherwise; `rot6d` is the first two *rows* of the
rotation matrix, flattened (as in the released Hy-VLA code, not the columns of Zhou et al.); lengths in metres, angles
in radians. A pose of one arm in an `ee` action is `[xyz, quat_wxyz, gripper_01]` (8 numbers), two arms make 16; its
encoded form is `[xyz, rot6d, gripper_01]` (10 numbers), two arms make 20. What takes two arms takes one as well, with
half the numbers.

The frames of the Hy-Embodied UMI recordings, and poses from and to RoboTwin's, are those of the released Hy-VLA
documentation. World axes (forward, left, up) are (x, y, z) for UMI and (y, -x, z) for RoboTwin. A UMI gripper counts
millimetres closed, 0 (open) to 90; RoboTwin's is 1 (open) to 0. W and P are the released matrices; the released table
of gripper axes, UMI (y, z, x) and RoboTwin (x, y, z), would need P transposed.
"""

from __future__ import annotations

import numpy as np

ARM_EE_DIM = 8

ARM_ENCODED_DIM = 10


def normalize(vector: np.ndarray) -> np.ndarray:
    """Scale the last axis to unit length, [..., n] -> [..., n]; a zero vector stays zero."""
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    return vector / np.where(length > 0, length, 1.0)


_FACTORS = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])

_SIGNS = np.array([[1, -1, -1, -1], [1, 1, 1, -1], [1, -1, 1, 1], [1, 1, -1, 1]], dtype=np.int8)
"""Component i of a*b is the sum over j of `_SIGNS[i, j]` a_j b_k with k = `_FACTORS[i, j]`."""


def quat_multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamilton product a*b of `wxyz` quaternions, [..., 4]."""
    terms = a[..., None, :] * (_SIGNS * b.take(_FACTORS, axis=-1))
    return terms[..., 0] + terms[..., 1] + terms[..., 2] + terms[..., 3]


def quat_conjugate(quat_wxyz: np.ndarray) -> np.ndarray:
    """Inverse rotation of a unit quaternion, [..., 4]."""
    return quat_wxyz * np.array([1.0, -1.0, -1.0, -1.0])


def quat_to_matrix(quat_wxyz: np.ndarray) -> np.ndarray:
    """Rotation matrices of (not necessarily normalised) quaternions, [..., 4] -> [..., 3, 3]."""
    quat = normalize(np.asarray(quat_wxyz, dtype=np.float64))
    w, x, y, z = (quat[..., i] for i in range(4))
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack(rows, axis=-1).reshape(*quat.shape[:-1], 3, 3)


def matrix_to_quat(matrix: np.ndarray) -> np.ndarray:
    """Unit quaternions with w >= 0 of rotation matrices, [..., 3, 3] -> [..., 4].

    Takes the largest of the four equivalent square roots, so it is accurate for every rotation.
    """
    m = np.asarray(matrix, dtype=np.float64)
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    candidates = np.empty((*m.shape[:-2], 4, 4))  # 4 q q^T
    squares = [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22]
    for i, square in enumerate(squares):
        candidates[..., i, i] = square
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        candidates[..., 0, i + 1] = candidates[..., i + 1, 0] = m[..., k, j] - m[..., j, k]
        candidates[..., j + 1, k + 1] = candidates[..., k + 1, j + 1] = m[..., j, k] + m[..., k, j]
    best = np.argmax(np.stack(squares, axis=-1), axis=-1)
    quat = normalize(np.take_along_axis(candidates, best[..., None, None], axis=-2)[..., 0, :])
    return np.where(quat[..., :1] < 0, -quat, quat)


def geodesic_angle(quat_a: np.ndarray, quat_b: np.ndarray) -> np.ndarray:
    """Angle in [0, pi] of the rotation between unit quaternions, [..., 4] x [..., 4] -> [...]."""
    delta = quat_multiply(quat_conjugate(quat_a), quat_b)
    return 2.0 * np.arctan2(np.linalg.norm(delta[..., 1:], axis=-1), np.abs(delta[..., 0]))


def slerp(quat_a: np.ndarray, quat_b: np.ndarray, fraction: np.ndarray | float) -> np.ndarray:
    """Shortest-arc interpolation from a (fraction 0) to b (fraction 1); quaternions [..., 4], fraction [...]."""
    quat_a, quat_b = np.asarray(quat_a, dtype=np.float64), np.asarray(quat_b, dtype=np.float64)
    quat_b = np.where(np.sum(quat_a * quat_b, axis=-1, keepdims=True) < 0, -quat_b, quat_b)
    half = 0.5 * geodesic_angle(quat_a, quat_b)[..., None]
    fraction = np.asarray(fraction, dtype=np.float64)[..., None]
    sin_half = np.sin(half)
    small = sin_half < 1e-8
    safe = np.where(small, 1.0, sin_half)
    weight_a = np.where(small, 1.0 - fraction, np.sin((1.0 - fraction) * half) / safe)
    weight_b = np.where(small, fraction, np.sin(fraction * half) / safe)
    return normalize(weight_a * quat_a + weight_b * quat_b)


def matrix_to_rot6d(matrix: np.ndarray) -> np.ndarray:
    """First two rows of the matrix, flattened: [..., 3, 3] -> [..., 6]."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def rot6d_to_matrix(rot6d: np.ndarray) -> np.ndarray:
    """Gram-Schmidt on the two rows, the third is their cross product: [..., 6] -> [..., 3, 3]."""
    first = normalize(rot6d[..., :3])
    second = rot6d[..., 3:] - np.sum(first * rot6d[..., 3:], axis=-1, keepdims=True) * first
    second = normalize(second)
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """Rotation closest in Frobenius norm, U diag(1, 1, det(UV^T)) V^T of the SVD: [..., 3, 3] -> [..., 3, 3]."""
    u, _, vt = np.linalg.svd(matrix)
    u[..., :, 2] *= np.linalg.det(u @ vt)[..., None]
    return u @ vt


def split_arms(vectors: np.ndarray) -> np.ndarray:
    """View `ee` or encoded vectors as [..., arms, 8 or 10]: one arm, or two (left, right)."""
    size = vectors.shape[-1]
    arms = size // ARM_EE_DIM  # 8, 10 -> 1; 16, 20 -> 2
    return vectors.reshape(*vectors.shape[:-1], arms, size // arms)


def _join_arms(arms: np.ndarray) -> np.ndarray:
    """Inverse of `split_arms`."""
    return arms.reshape(*arms.shape[:-2], arms.shape[-2] * arms.shape[-1])


ORIENTATION_WEIGHT_M = 0.5
"""Metres for a radian in the pose distance."""

GRIPPER_WEIGHT_M = 0.2
"""Metres for a full gripper opening."""


def pose_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """FlowPRO's d = |p - p'| + 0.5 geodesic(R, R') + 0.2 |g - g'| (arXiv:2606.14409, section 4.2), summed over both
    arms, in metres: two [..., 16] -> [...]."""
    arms_a, arms_b = split_arms(a), split_arms(b)
    position = np.linalg.norm(arms_a[..., :3] - arms_b[..., :3], axis=-1)
    angle = geodesic_angle(arms_a[..., 3:7], arms_b[..., 3:7])
    gripper = np.abs(arms_a[..., 7] - arms_b[..., 7])
    return np.sum(position + ORIENTATION_WEIGHT_M * angle + GRIPPER_WEIGHT_M * gripper, axis=-1)


def encode_pose(ee: np.ndarray) -> np.ndarray:
    """Absolute two-arm `ee` vectors to their encoded form: [..., 16] -> [..., 20]."""
    arms = split_arms(np.asarray(ee, dtype=np.float64))
    rot6d = matrix_to_rot6d(quat_to_matrix(arms[..., 3:7]))
    encoded = np.concatenate([arms[..., :3], rot6d, arms[..., 7:8]], axis=-1)
    return _join_arms(encoded)


def decode_absolute(encoded: np.ndarray) -> np.ndarray:
    """Poses of an absolute action head, whose two rows need not be orthogonal: [..., 20] -> [..., 16].

    As released: the rows as they are, the cross product of the unit rows below them, and the rotation nearest to that.
    """
    arms = split_arms(np.asarray(encoded, dtype=np.float64))
    rows = arms[..., 3:9].reshape(*arms.shape[:-1], 2, 3)
    unit = normalize(rows)
    third = normalize(np.cross(unit[..., 0, :], unit[..., 1, :]))
    quat = matrix_to_quat(nearest_rotation(np.concatenate([rows, third[..., None, :]], axis=-2)))
    ee = np.concatenate([arms[..., :3], quat, arms[..., 9:10]], axis=-1)
    return _join_arms(ee)


def blend(ee_a: np.ndarray, ee_b: np.ndarray, fraction: float = 0.5) -> np.ndarray:
    """Poses between a (fraction 0) and b (fraction 1), [..., 16]: positions and grippers mixed, rotations by slerp."""
    arms_a, arms_b = (split_arms(np.asarray(ee, dtype=np.float64)) for ee in (ee_a, ee_b))
    mixed = (1 - fraction) * arms_a + fraction * arms_b
    mixed[..., 3:7] = slerp(arms_a[..., 3:7], arms_b[..., 3:7], fraction)
    return _join_arms(mixed)


def to_relative(ee: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Encode poses relative to a start pose, T_rel = T_start^-1 T, per arm; the gripper stays absolute.

    `ee` [..., n, 16] and `start` [..., 16] give [..., n, 20].
    """
    arms, start_arms = split_arms(np.asarray(ee, dtype=np.float64)), split_arms(np.asarray(start, dtype=np.float64))
    rotation_start = quat_to_matrix(start_arms[..., 3:7])[..., None, :, :, :]
    offset = (arms[..., :3] - start_arms[..., None, :, :3])[..., None]
    inverse = np.swapaxes(rotation_start, -1, -2)
    position = (inverse @ offset)[..., 0]
    rot6d = matrix_to_rot6d(inverse @ quat_to_matrix(arms[..., 3:7]))
    encoded = np.concatenate([position, rot6d, arms[..., 7:8]], axis=-1)
    return _join_arms(encoded)


def from_relative(relative: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Inverse of `to_relative`, T = T_start T_rel: [..., n, 20] and [..., 16] give [..., n, 16]."""
    arms, start_arms = (
        split_arms(np.asarray(relative, dtype=np.float64)),
        split_arms(np.asarray(start, dtype=np.float64)),
    )
    rotation_start = quat_to_matrix(start_arms[..., 3:7])[..., None, :, :, :]
    position = (rotation_start @ arms[..., :3, None])[..., 0] + start_arms[..., None, :, :3]
    quat = matrix_to_quat(rotation_start @ rot6d_to_matrix(arms[..., 3:9]))
    ee = np.concatenate([position, quat, arms[..., 9:10]], axis=-1)
    return _join_arms(ee)


UMI_STROKE_MM = 90.0
"""Reading of a closed UMI gripper."""

WORLD = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""W: RoboTwin world coordinates to UMI world coordinates."""

LOCAL = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
"""P: the columns are the axes of the UMI gripper in those of the RoboTwin gripper."""


def umi_from_robotwin(ee: np.ndarray) -> np.ndarray:
    """p' = W p, R' = W R P, gripper_mm = (1 - gripper_01) * 90 of two-arm `ee` poses, [..., 16] -> [..., 16]."""
    arms = split_arms(np.asarray(ee, dtype=np.float64))
    quat = matrix_to_quat(WORLD @ quat_to_matrix(arms[..., 3:7]) @ LOCAL)
    gripper = (1 - arms[..., 7:]) * UMI_STROKE_MM
    return np.concatenate([arms[..., :3] @ WORLD.T, quat, gripper], axis=-1).reshape(np.shape(ee))


def robotwin_from_umi(ee: np.ndarray) -> np.ndarray:
    """The inverse: poses of a UMI recording in RoboTwin's frames, [..., 16] -> [..., 16]."""
    arms = split_arms(np.asarray(ee, dtype=np.float64))
    quat = matrix_to_quat(WORLD.T @ quat_to_matrix(arms[..., 3:7]) @ LOCAL.T)
    gripper = 1 - arms[..., 7:] / UMI_STROKE_MM
    return np.concatenate([arms[..., :3] @ WORLD, quat, gripper], axis=-1).reshape(np.shape(ee))
