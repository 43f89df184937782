"""Poses of the golden set: encoding, chunks relative to their start, decoding, normalisation. float64 throughout."""

from typing import Any

import numpy as np
import pytest

from envs import se3
from envs.se3 import umi_from_robotwin
from rl_lab.benchmarks.golden import load_policy, load_processor, load_transforms
from rl_lab.model.norm_stats import ActionStats
from rl_lab.model.processor import PolicyProcessor

TIGHT: dict[str, Any] = {"atol": 1e-9, "rtol": 0.0}
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return load_transforms()


def from_xyzw(poses: np.ndarray) -> np.ndarray:
    """Reorder both quaternions of two-arm vectors [..., 16]; the golden set stores xyzw."""
    return poses[..., [0, 1, 2, 6, 3, 4, 5, 7, 8, 9, 10, 14, 11, 12, 13, 15]]


def canonical(poses: np.ndarray) -> np.ndarray:
    """The quaternion of two with w >= 0, so that equal rotations compare equal."""
    arms = se3.split_arms(poses).copy()
    arms[..., 3:7] *= np.where(arms[..., 3:4] < 0, -1.0, 1.0)
    return arms


def assert_same_poses(actual: np.ndarray, expected_xyzw: np.ndarray, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(canonical(actual), canonical(from_xyzw(expected_xyzw)), atol=atol, rtol=0)


def golden_processor(arrays: Arrays) -> PolicyProcessor:
    stats = ActionStats(*(arrays[name] for name in ("qpos_mean", "qpos_std", "action_mean", "action_std")))
    config = load_policy().config
    config.chunk_size = config.n_action_steps = len(stats.action_mean)
    return PolicyProcessor(config, load_processor().tokenizer, stats)


def test_poses_are_encoded_with_the_rows_of_the_rotation(arrays: Arrays) -> None:
    np.testing.assert_allclose(
        se3.encode_pose(from_xyzw(arrays["chunk_posquat_xyzw"])), arrays["chunk_posrot6d"], **TIGHT
    )


def test_chunks_become_relative_to_their_first_pose(arrays: Arrays) -> None:
    chunk = from_xyzw(arrays["chunk_posquat_xyzw"])
    np.testing.assert_allclose(se3.to_relative(chunk, chunk[0]), arrays["chunk_relative"], **TIGHT)


@pytest.mark.parametrize(
    ("relative", "decoded"),
    [("chunk_relative", "decoded_from_relative"), ("noisy_relative", "decoded_from_noisy_relative")],
)
def test_relative_chunks_are_decoded_by_gram_schmidt(arrays: Arrays, relative: str, decoded: str) -> None:
    start = from_xyzw(arrays["start_posquat_xyzw"])
    assert_same_poses(se3.from_relative(arrays[relative], start), arrays[decoded])


def test_absolute_poses_are_decoded_to_the_nearest_rotation(arrays: Arrays) -> None:
    decoded = se3.decode_absolute(arrays["noisy_absolute_posrot6d"])
    assert_same_poses(decoded, arrays["decoded_from_noisy_absolute"])


def test_relative_and_absolute_poses_are_blended_half_and_half(arrays: Arrays) -> None:
    relative, absolute = (arrays[f"decoded_from_noisy_{kind}"] for kind in ("relative", "absolute"))
    assert_same_poses(se3.blend(from_xyzw(relative), from_xyzw(absolute)), arrays["blend_rel_abs"])


@pytest.mark.parametrize("robotwin", ["chunk_posquat_xyzw", "robotwin_from_umi_gripper"])
def test_poses_change_between_the_frames_of_robotwin_and_umi(arrays: Arrays, robotwin: str) -> None:
    umi = umi_from_robotwin(from_xyzw(arrays[robotwin]))
    assert_same_poses(umi, arrays["umi_from_robotwin_gripper"])
    expected = se3.split_arms(arrays["umi_from_robotwin"])
    np.testing.assert_allclose(
        canonical(umi)[..., :7], canonical(from_xyzw(expected.reshape(-1, 16)))[..., :7], **TIGHT
    )


def test_states_and_chunks_are_normalised_alike(arrays: Arrays) -> None:
    processor = golden_processor(arrays)
    state = processor.normalize_state(arrays["state_wxyz"][None]).numpy()
    np.testing.assert_allclose(state, arrays["state_normalized"], atol=1e-6, rtol=1e-6)

    chunk = from_xyzw(arrays["chunk_posquat_xyzw"])
    encoded = processor.encode(chunk[None], chunk[:1]).numpy()[0]
    np.testing.assert_allclose(encoded, arrays["action_relative_normalized"], atol=1e-6, rtol=1e-6)
    decoded = processor.decode(arrays["action_relative_normalized"][None], chunk[:1])[0]
    np.testing.assert_allclose(canonical(decoded), canonical(chunk), **TIGHT)
