"""RoboTwin's own code, its runtime from PyPI, with the box robot; skipped where it or a Vulkan driver is missing.

One simulator's process serves all tests: its first picture takes seconds.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.robotwin import connection, layout
from envs.robotwin.boxarms.runtime import TASKS
from envs.robotwin.connection import RoboTwinError, SeedRejectedError, server_environment
from envs.robotwin.env import RoboTwinEnv
from envs.rollout import demonstrate
from envs.types import CAMERAS
from rl_lab.config.robotwin import backend_line, check_robotwin
from rl_lab.doctor import check_robotwin as check_robotwin_here
from rl_lab.graph.record import describe
from rl_lab.stages.kinds import resolve_config
from tests.support.experts import interruption

SEED = 100_000


def make(server, task="handover_block", **options):
    return RoboTwinEnv(task, server=server, **{"image_size": None, **options})


def scene(env):
    return np.concatenate([np.ravel(value) for value in env._scene.values()])


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_solves_every_task_that_needs_no_assets(runtime, task):
    env = make(runtime, task)
    for seed in range(SEED, SEED + 3):
        env.reset(seed=seed)  # raises SeedRejectedError unless the expert succeeds
        assert env.diagnose().progress == 0.0 and not env.success
        assert env.instruction and "{" not in env.instruction


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_is_never_interrupted(runtime, task):
    env = make(runtime, task)
    assert [interruption(env, SEED + number) for number in range(2)] == [None] * 2


def test_rates_and_limits_follow_from_the_length_of_a_command(runtime):
    seen = {}
    for steps in (15, 25, 50):
        env = make(runtime, command_steps=steps)
        assert interruption(env, SEED) is None and env.control_hz == 250 / steps
        seen[steps] = np.array([env.patience, env.correction_limit, env.step_limit]) * steps
    for steps in (15, 50):
        np.testing.assert_allclose(seen[steps], seen[25], rtol=0.25)


@pytest.mark.parametrize("action_type", ["ee", "qpos"])
def test_the_experts_commands_solve_the_task_step_by_step(runtime, action_type):
    env = make(runtime, action_type=action_type)
    env.reset(seed=SEED)
    while not env.success and env.step_count < 150:
        action = env.expert_action()
        assert action.shape == env.action_space.shape == ({"ee": 16, "qpos": 14}[action_type],)
        env.advance(action)
        assert env._step_info["physics_steps"] == 25 or env.success
    assert env.success


def test_a_command_lasts_the_physics_steps_that_are_asked_for(runtime):
    env = make(runtime, command_steps=10)
    env.reset(seed=SEED)
    env.advance(env.ee_pose())
    assert env._step_info["physics_steps"] == 10


def test_an_observation_shows_three_square_pictures(runtime):
    env = make(runtime, image_size=64)
    observation, _ = env.reset(seed=SEED)
    views = [observation["observation"][camera]["rgb"] for camera in CAMERAS]
    assert all(view.shape == (64, 64, 3) and view.dtype == np.uint8 for view in views)
    assert all(len(np.unique(view.reshape(-1, 3), axis=0)) > 20 for view in views)  # a scene, not a blank
    film = env.watch(180, 240)  # square, so on black
    assert film.shape == (180, 240, 3) and film[:, 30:210].std() > 5 and not film[:, :29].any()
    red = (views[0][..., 0] > 120) & (views[0][..., 1] < 80)
    assert 5 < red.sum() < 400  # the block that is handed over
    assert observation["joint_action"]["vector"].shape == (14,)


def test_a_state_that_is_restored_in_a_fresh_scene_continues_bit_for_bit(runtime):
    env, other = make(runtime), make(runtime, "stack_blocks_two")
    env.reset(seed=SEED)
    for _ in range(30):
        env.advance(env.expert_action())
    snapshot, actions, ends = env.save(), [env.expert_action() for _ in range(10)], []
    for _ in range(2):
        other.reset(seed=SEED)  # so that the snapshot's scene is set up anew
        env.load(snapshot)
        for action in actions:
            env.advance(action)
        ends.append(scene(env))
    np.testing.assert_array_equal(*ends)


def test_what_needs_assets_says_which_tasks_run_without_and_how_to_fetch_them(runtime):
    with pytest.raises(RoboTwinError, match=r"beat_block_hammer needs .* box robot does blocks_.* robotwin-download"):
        make(runtime, "beat_block_hammer").reset(seed=SEED)
    with pytest.raises(RoboTwinError, match="random_background and cluttered_table need RoboTwin's assets"):
        make(runtime, variant="demo_randomized").reset(seed=SEED)


def test_the_process_says_what_it_simulates(runtime):
    for asked, steps in ((None, 25), (10, 10)):
        said = runtime.connection.ask("check", task="handover_block", config="demo_clean", command_steps=asked)
        assert (said["robot"], said["command_steps"]) == ("boxarms", steps)
        assert "inverse kinematics" in said["planner"] and "rasteriser" in said["renderer"]


def test_a_run_is_told_its_robot_planner_renderer_and_command(runtime):
    config = resolve_config({"name": "x", "stages": ["demos"], "env": {"backend": "auto", "command_steps": 50}}, "here")
    assert (config.env.backend, config.env.variants) == ("robotwin", ("demo_clean",))
    check_robotwin(config)
    assert "the box robot: RoboTwin's tasks and checks on another robot, never compared" in backend_line(config)
    facts = describe(config)
    assert facts["robotwin"]["simulations"]["demo_clean"]["command_steps"] == 50
    row = facts["substitutions"][0]
    assert (row["wanted"], row["used"]) == ("RoboTwin's own robot", "box robot (boxarms)")
    assert "50 physics steps (0.2 s)" in row["why"] and "never compared with published scores" in row["why"]


def test_the_doctor_draws_a_scene(runtime, monkeypatch):
    monkeypatch.setattr(connection, "RoboTwinServer", lambda _: runtime)  # another would compile the shaders again
    monkeypatch.setattr(runtime, "close", lambda: None)
    findings = list(check_robotwin_here())
    assert [finding.level for finding in findings] == ["ok", "ok"]
    assert "three 64x64 pictures in" in findings[1].what and "boxarms" in findings[1].what


def cpu_seconds(pid):
    """Time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_shaders_are_compiled_for_the_first_scene_alone(runtime):
    env = make(runtime, image_size=64)
    env.reset(seed=SEED)
    before = cpu_seconds(runtime.connection.pid)
    env.reset(seed=SEED + 1)
    env.load(env.save())
    env.advance(env.ee_pose())
    env.observe()
    assert cpu_seconds(runtime.connection.pid) - before < 3.0  # four scenes take 0.6 s, shaders 6.6 s each time


def test_a_demonstration_says_on_which_robot_it_was_made_and_how_long_its_commands_last(runtime):
    told = demonstrate(make(runtime, image_size=16), SEED, noise_m=0.0, generator=np.random.default_rng(0)).extra
    assert told["control_hz"] == 10.0
    assert told["simulation"].startswith("boxarms, ") and told["simulation"].endswith("commands of 25 physics steps")


def test_a_seed_on_which_its_expert_raises_is_rejected_by_name(runtime):
    with pytest.raises(
        SeedRejectedError, match=r"^the expert raised AssertionError: target_pose cannot be None"
    ) as one:
        make(runtime).reset(seed=7)
    assert one.value.is_error


def test_restored_states_are_alike_bit_for_bit_with_a_block_in_the_gripper(runtime):
    env = make(runtime)
    env.reset(seed=SEED)
    for _ in range(25):
        env.advance(env.expert_action())
    error = env.measure_restore(np.stack([env._plan[25 + step] for step in range(8)]))
    assert error.is_zero and env.exact_restore and env.step_count == 25


def test_an_arm_without_a_plan_is_named_and_one_that_holds_still_is_not(runtime):
    env = make(runtime)
    env.reset(seed=SEED)
    action = env.ee_pose()
    env.advance(action)
    assert env._step_info["skipped"] == []
    action[8:11] = 1.5, 1.5, 1.5
    env.advance(action)
    assert env._step_info["skipped"] == ["right"]
    with pytest.raises(ValueError, match="RoboTwin takes 0 to 4294967295"):
        env.reset(seed=2**32)


SCENES = """
import importlib
from envs.robotwin import layout, robots
from envs.robotwin.boxarms import planner, runtime
from envs.robotwin.task import Task

robot, made, init = runtime.BoxRobot(), [], planner.Planner.__init__
planner.Planner.__init__ = lambda self, *args, **more: made.append(init(self, *args, **more))
found = layout.detect(layout.find_installed())
identity = {"task": "handover_block", "config": "demo_clean", "robot": {"command_steps": None, "picture_px": None}}
args = robots.scene_arguments(found, robot, identity)
task = Task(importlib.import_module("robotwin.envs.handover_block").handover_block)
for seed in (1, 100_001, 2):
    task.set_up(seed, 70, args)
    print("seen:", len(made), task.env.eval_mode, task.env.step_lim, sorted(task.added()))
    task.env.arm_tag = "left"
"""


def test_scenes_share_two_planners_and_only_evaluation_has_held_out_textures(runtime):
    command = [sys.executable, "-c", SCENES]
    root = str(Path(__file__).parents[2])
    found = layout.detect(layout.find_installed() or "")
    environment = server_environment(found) | {"PYTHONPATH": root}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    lines = [line.removeprefix("seen: ") for line in done.stdout.splitlines() if line.startswith("seen: ")]
    assert lines == ["2 False 70 []", "2 True 70 []", "2 False 70 []"], done.stderr
