"""Keys move one arm along and around one axis, and back."""

import numpy as np
import pytest

from envs import se3
from rl_lab.teleoperation.keys import GRIP, MOVES, STEP_M, TURN_RAD, TURNS, WAIT, KeyboardArms

POSE = np.array([-0.2, 0.1, 0.9, 1, 0, 0, 0, 1, 0.2, 0.1, 0.9, 0, 1, 0, 0, 0], dtype=np.float64)


@pytest.mark.parametrize("keys", ["ad", "ws", "rf", "ik", "jl", "uo"])
def test_two_keys_of_a_pair_undo_each_other(keys):
    arms = KeyboardArms(POSE)
    moved = arms.press(keys[0])
    assert np.abs(moved - POSE)[:8].max() > 0 and np.array_equal(moved[8:], POSE[8:])
    assert arms.press(keys[1]) == pytest.approx(POSE, abs=1e-12)


def test_steps_have_their_size_and_turns_keep_a_unit_quaternion():
    for key, (axis, sign) in MOVES.items():
        assert KeyboardArms(POSE).press(key)[axis] - POSE[axis] == pytest.approx(sign * STEP_M)
    for key in TURNS:
        turned = KeyboardArms(POSE).press(key)[3:7]
        assert np.linalg.norm(turned) == pytest.approx(1)
        assert float(se3.geodesic_angle(POSE[3:7], turned)) == pytest.approx(TURN_RAD)


def test_the_other_arm_the_gripper_and_waiting():
    arms = KeyboardArms(POSE)
    assert np.array_equal(arms.press(WAIT), POSE)
    assert arms.press(GRIP)[7] == 0 and arms.press(GRIP)[7] == 1
    arms.switch()
    assert arms.arm == "right" and arms.press(GRIP)[15] == 1 and arms.press("x") is None
