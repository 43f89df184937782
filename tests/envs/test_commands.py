"""Commands that no arm may be sent to are refused, by the number, its place and its bound."""

import gymnasium
import numpy as np
import pytest

from envs import commands
from envs.commands import CommandError, check_commands
from rl_lab.teleoperation.keys import KeyboardArms
from tests.support.refusals import refusal

SOUND = np.tile([0.3, -0.2, 0.9, 1.0, 0.0, 0.0, 0.0, 1.0], 2)


def changed(place: int, value: float, rows: int = 4) -> np.ndarray:
    """A chunk with one number of its third command replaced."""
    chunk = np.tile(SOUND, (rows, 1))
    chunk[2, place] = value
    return chunk


def test_sound_commands_pass_in_any_shape() -> None:
    for shape in ((16,), (4, 16), (2, 4, 16)):
        check_commands(np.broadcast_to(SOUND, shape), unit=True)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, 918.0, "command 2 is refused: its left x (number 0) is 918, expected -10 to 10"),
        (10, -10.01, "its right z (number 10) is -10.01, expected -10 to 10"),
        (15, 90.0, "its right gripper (number 15) is 90, expected -5 to 6"),
        (3, np.nan, "its left qw (number 3) is nan, expected a finite number"),
        (5, -np.inf, "its left qy (number 5) is -inf, expected a finite number"),
        (9, np.nan, "its right y (number 9) is nan, expected -10 to 10"),
    ],
)
def test_a_number_that_is_not_finite_or_too_far_is_named(place: int, value: float, said: str) -> None:
    assert said in refusal(lambda: check_commands(changed(place, value)), by=CommandError)


def test_what_policies_and_experts_command_passes() -> None:
    for value in (-0.3, 1.3):
        check_commands(changed(7, value))
    check_commands(changed(3, 0.5))
    with pytest.raises(CommandError, match="a quaternion is 0.5 off unit norm"):
        check_commands(changed(3, 0.5), unit=True)


def test_an_environment_takes_its_own_actions_and_refuses_the_others() -> None:
    env = gymnasium.make("tabletop/handover_block-v0", image_size=None, disable_env_checker=True).unwrapped
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(3):
        env.advance(env.action_space.sample())
    with pytest.raises(CommandError, match="left x"):
        env.advance(changed(0, 918.0)[2])
    assert env.step_count == 3


def test_keys_cannot_leave_the_bounds() -> None:
    arms = KeyboardArms(changed(0, commands.POSITION_LIMIT_M - 0.01)[2])
    for _ in range(3):
        command = arms.press("d")
    check_commands(command)
    assert command[0] == commands.POSITION_LIMIT_M
