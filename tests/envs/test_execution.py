"""Chunks become commands: with and without latency, jumped to, averaged, stitched."""

import numpy as np
import pytest

from envs.execution import Execution, LateExecutor, jerk
from envs.se3 import geodesic_angle, normalize, split_arms
from envs.stitching import GAMMA, SIGMA, fresh, stitch

HORIZON = 8


def poses(rng, *shape):
    """Random `ee` commands of two arms, [*shape, 16]."""
    arms = rng.normal(size=(*shape, 2, 8))
    arms[..., 3:7] = normalize(arms[..., 3:7])
    arms[..., 7] = rng.uniform(size=(*shape, 2))
    return arms.reshape(*shape, 16)


def executed(policy, execution, steps, is_pose=True):
    """The first `steps` commands of a policy, a function from control step to chunk, with the executor."""
    executor, commands = LateExecutor(execution, is_pose), []
    for step in range(steps):
        if executor.asks:
            executor.give(policy(step))
        commands.append(executor.command())
    return np.stack(commands), executor


@pytest.mark.parametrize("join", ("wait", "jump", "stitch"))
def test_without_latency_each_chunk_is_run_from_its_first_command(join):
    chunks = {step: poses(np.random.default_rng(step), HORIZON) for step in range(0, 40, 4)}
    commands, executor = executed(chunks.__getitem__, Execution(join=join), 40)
    assert (commands == np.concatenate([chunks[step][:4] for step in range(0, 40, 4)])).all()
    assert executor.decisions == 10 and executor.stalls == 0


@pytest.mark.parametrize("latency", (0, 1, 3, 4))
@pytest.mark.parametrize("join", ("jump", "ensemble", "stitch"))
def test_chunks_that_agree_are_run_as_if_they_were_there_at_once(join, latency):
    path = poses(np.random.default_rng(0), 60)
    commands, executor = executed(lambda step: path[step : step + HORIZON], Execution(join=join, latency=latency), 40)
    assert commands == pytest.approx(path[:40], abs=1e-12) and executor.stalls == 0
    if join != "ensemble":
        assert (commands == path[:40]).all()


def test_who_waits_holds_the_last_command_for_the_time_of_a_prediction():
    path = poses(np.random.default_rng(0), 60)
    asked = []

    def policy(step):
        asked.append(step)
        return path[len(asked) * 10 :][:HORIZON]

    commands, executor = executed(policy, Execution(latency=3), 18)
    assert asked == [0, 7, 14]
    held = (commands[1:] == commands[:-1]).all(axis=1)
    assert executor.stalls == held.sum() == 6


@pytest.mark.parametrize("join", ("jump", "ensemble", "stitch"))
def test_a_chunk_that_is_used_up_is_held_and_counted(join):
    path = poses(np.random.default_rng(0), 99)
    commands, executor = executed(lambda step: path[step : step + 5], Execution(join=join, latency=7, execute=2), 21)
    assert executor.decisions == 3, "the next prediction begins when the one before is there"
    assert executor.stalls > 0 and (commands[5] == commands[4]).all()


def test_a_chunk_shorter_than_what_is_to_be_run_of_it_is_refused():
    path = poses(np.random.default_rng(0), 99)
    assert executed(lambda step: path[step : step + 4], Execution(), 9)[1].stalls == 0
    with pytest.raises(ValueError, match="execute is 4, but the chunk has 3 commands"):
        executed(lambda step: path[step : step + 3], Execution(), 9)


def test_a_guided_policy_is_told_what_is_still_to_be_run():
    chunks = {step: poses(np.random.default_rng(step), HORIZON) for step in (0, 4)}
    executor = LateExecutor(Execution(join="guide", latency=2), True)
    assert executor.plan is None
    executor.give(chunks[0])
    run = [executor.command() for _ in range(4)]
    assert executor.asks and executor.plan.late == 2 and (executor.plan.commands == chunks[0][4:]).all()
    executor.give(chunks[4])
    run += [executor.command() for _ in range(4)]
    assert (np.stack(run) == np.stack([*chunks[0][:6], *chunks[4][2:4]])).all()
    assert LateExecutor(Execution(join="jump", latency=2), True).plan is None


def test_a_jump_lands_on_the_command_of_its_time():
    chunks = {step: poses(np.random.default_rng(step), HORIZON) for step in (0, 4, 8)}
    commands, _ = executed(chunks.__getitem__, Execution(join="jump", latency=2), 10)
    wanted = [*chunks[0][:6], *chunks[4][2:6]]
    assert (commands == np.stack(wanted)).all()


def test_an_ensemble_weighs_older_chunks_more_and_means_of_turns_are_turns():
    first, second = np.zeros((HORIZON, 16)), np.zeros((HORIZON, 16))
    for chunk, angle, x in ((first, 0.0, 0.0), (second, 0.2, 1.0)):
        split_arms(chunk)[..., 3], split_arms(chunk)[..., 4] = np.cos(angle / 2), np.sin(angle / 2)
        split_arms(chunk)[..., 0] = x
    split_arms(second)[..., 3:7] *= -1  # the same turn
    commands, _ = executed({0: first, 4: second}.__getitem__, Execution(join="ensemble", latency=1), 6)
    older, newer = 1 / (1 + np.exp(-0.01)), np.exp(-0.01) / (1 + np.exp(-0.01))
    arms = split_arms(commands[5])
    assert arms[:, 0] == pytest.approx(newer)
    assert np.linalg.norm(arms[:, 3:7], axis=1) == pytest.approx(1)
    assert geodesic_angle(split_arms(first[0])[:, 3:7], arms[:, 3:7]) == pytest.approx(0.2 * newer, rel=1e-3)
    assert older > newer


@pytest.mark.parametrize("seed", range(20))
def test_a_stitched_chunk_leaves_and_arrives_in_the_direction_of_motion(seed):
    rng = np.random.default_rng(seed)
    done, chunk = poses(rng, 2), poses(rng, int(rng.integers(3, 20)))
    joined = stitch(done, chunk, poses=True)
    place = int(np.clip(np.floor(GAMMA * len(chunk)), 1, len(chunk) - 2))
    assert joined.shape == chunk.shape and (joined[place:] == chunk[place:]).all(), "f_c keeps its time"
    fine = 4096  # the same curve with so many commands before f_c: its ends show the tangents
    long = np.concatenate([np.repeat(chunk[:1], fine, axis=0), chunk[place - 1 :]])
    curve = stitch(done, long, poses=True, gamma=(fine + 1) / len(long) + 1e-9)
    for arm in range(2):
        begin, end = (split_arms(row)[arm, :3] for row in (done[-1], chunk[place]))
        first = split_arms(curve[0])[arm, :3] - begin
        last = end - split_arms(curve[fine])[arm, :3]
        motion = split_arms(done[1])[arm, :3] - split_arms(done[0])[arm, :3]
        ahead = split_arms(chunk[place + 1])[arm, :3] - split_arms(chunk[place - 1])[arm, :3]
        assert normalize(first) @ normalize(motion) > 0.999 and normalize(last) @ normalize(ahead) > 0.999
        reach = 3 * SIGMA * np.linalg.norm(end - begin) / (fine + 2)
        assert np.linalg.norm(first) == pytest.approx(reach, rel=0.01), "as fast as its control points say"


@pytest.mark.parametrize("seed", range(20))
def test_turns_and_grippers_change_evenly_and_arms_do_not_know_of_each_other(seed):
    rng = np.random.default_rng(seed)
    done, chunk, other = poses(rng, 2), poses(rng, 12), poses(rng, 12)
    joined = split_arms(np.concatenate([done[-1:], stitch(done, chunk, poses=True)]))[:5]  # f_c is the fourth
    angles = geodesic_angle(joined[:-1, :, 3:7], joined[1:, :, 3:7])
    assert angles == pytest.approx(np.broadcast_to(angles[:1], angles.shape), abs=1e-6)
    steps = np.diff(joined[..., 7], axis=0)
    assert steps == pytest.approx(np.broadcast_to(steps[:1], steps.shape))
    mixed = np.concatenate([chunk[:, :8], other[:, 8:]], axis=1)
    assert (stitch(done, mixed, poses=True)[:, :8] == stitch(done, chunk, poses=True)[:, :8]).all()


def test_plain_numbers_follow_one_curve_and_a_straight_even_motion_stays_one():
    line = np.arange(12)[:, None] * np.array([1.0, -2.0, 0.5])
    late = line[2:] + 0.0
    joined = stitch(line[:2], late, poses=False, sigma=1 / 3)
    assert joined == pytest.approx(late), "with inner points at thirds an even motion goes on as it is"


def test_what_is_late_is_dropped_but_three_commands_are_left():
    chunk = np.arange(8)[:, None]
    assert fresh(chunk, 0).tolist() == chunk.tolist()
    assert fresh(chunk, 2).tolist() == chunk[2:].tolist()
    assert fresh(chunk, 99).tolist() == chunk[5:].tolist()
    assert stitch(chunk[:2], chunk[:2], poses=False).tolist() == chunk[:2].tolist(), "too few to join to"


def test_jerk_is_the_third_derivative_in_seconds():
    times = np.arange(40) / 20
    poses = np.zeros((40, 16))
    poses[:, 0], poses[:, 8] = times**3, 0.0
    assert jerk(poses, 20.0) == pytest.approx(6 / np.sqrt(2)), "one of two arms moves with 6 m/s^3"
    assert jerk(poses[:3], 20.0) == 0
