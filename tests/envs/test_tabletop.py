"""The gymnasium side of `tabletop`: spaces, seeds, rendering only on request, clear errors."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import se3
from envs.tabletop import TASK_NAMES, gl, rendering
from envs.tabletop.env import TabletopEnv
from envs.tabletop.tasks import TASKS
from envs.types import ARMS, CAMERAS, ControlledEnv, camera_images, ee_pose


def same(a: object, b: object) -> bool:
    """Nested observations are equal bit for bit."""
    if isinstance(a, dict):
        assert isinstance(b, dict)
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b))  # type: ignore[arg-type]


def test_the_registered_names_are_those_of_the_tasks():
    assert tuple(TASKS) == TASK_NAMES


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {"render_mode": "rgb_array", "image_size": 32},
        {"image_size": None, "action_type": "qpos", "variant": "randomized"},
    ],
    ids=["images", "state"],
)
def test_gymnasium_accepts_every_task(task, options):
    env = gymnasium.make(f"tabletop/{task}-v0", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Actions are metres and quaternions as in RoboTwin, so they cannot be the recommended [-1, 1].
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        check_env(env.unwrapped)


def test_it_offers_what_collection_asks_for():
    env: ControlledEnv = TabletopEnv("handover_block", image_size=None)
    assert env.exact_restore and env.expert_from_any_state and env.step_limit == 180


def test_an_observation_has_robotwins_layout():
    env = TabletopEnv("stack_blocks_two")
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert camera_images(observation).shape == (3, 64, 64, 3)
    assert observation["joint_action"]["vector"].shape == (14,)
    assert set(observation["endpose"]) == {f"{arm}_{part}" for arm in ARMS for part in ("endpose", "gripper")}
    np.testing.assert_array_equal(ee_pose(observation), env.ee_pose())


def test_without_images_there_are_no_cameras_and_asking_says_how_to_get_them():
    env = TabletopEnv("lift_pot", image_size=None)
    observation, _ = env.reset(seed=0)
    assert "observation" not in observation and observation in env.observation_space
    with pytest.raises(ValueError, match="image_size=None"):
        env.observe()


@pytest.mark.parametrize("variant", ["clean", "randomized"])
def test_a_seed_names_an_episode(variant):
    first, second = (TabletopEnv("blocks_ranking_rgb", variant=variant, image_size=32) for _ in range(2))
    a, _ = first.reset(seed=7)
    first.reset(seed=8)
    again, _ = first.reset(seed=7)
    other, _ = second.reset(seed=7)
    assert same(a, again) and same(a, other)
    assert not same(a, second.reset(seed=8)[0])


def test_equal_actions_give_equal_episodes():
    envs = [TabletopEnv("grab_roller", image_size=None) for _ in range(2)]
    for env in envs:
        env.reset(seed=3)
        for _ in range(15):
            env.advance(env.expert_action())
    assert same(envs[0].observe(False), envs[1].observe(False))


def test_randomized_scenes_look_different_and_clean_ones_do_not():
    def pictures(variant):
        env = TabletopEnv("handover_block", variant=variant, image_size=32)
        return [camera_images(env.reset(seed=seed)[0])[0, -8:].astype(float) for seed in (0, 1)]

    clean, randomized = pictures("clean"), pictures("randomized")
    assert np.abs(clean[0] - clean[1]).mean() < 2
    assert np.abs(randomized[0] - randomized[1]).mean() > 10


def test_both_variants_of_a_seed_start_with_the_same_layout():
    clean, randomized = (TabletopEnv("handover_block", variant=v, image_size=None) for v in ("clean", "randomized"))
    clean.reset(seed=5)
    randomized.reset(seed=5)
    names = clean.truth_names
    flat = [i for i, name in enumerate(names) if name != "block_z"]
    np.testing.assert_allclose(clean.truth()[flat], randomized.truth()[flat], atol=1e-6)
    assert len(clean.truth()) == len(names)


def test_images_show_something_and_cameras_differ():
    images = camera_images(TabletopEnv("lift_pot").reset(seed=0)[0]).astype(float)
    assert all(image.std() > 10 for image in images)
    assert np.abs(images[0] - images[1]).mean() > 10


def test_drawing_starts_no_threads_of_its_own():
    camera_images(TabletopEnv("lift_pot", image_size=32).reset(seed=0)[0])
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    assert not [name for name in names if name.startswith("llvmpipe")]


def test_nothing_is_rendered_inside_advance():
    env = TabletopEnv("handover_block")
    env.reset(seed=0)
    before = rendering.render_count
    for _ in range(5):
        env.advance(env.expert_action())
        env.load(env.save())
        env.observe(images=False)
    assert rendering.render_count == before
    env.observe()
    assert rendering.render_count == before + len(CAMERAS)


def test_one_renderer_serves_all_environments_of_a_scene():
    envs = [TabletopEnv("handover_block", image_size=32) for _ in range(5)]
    images = [camera_images(env.reset(seed=4)[0]) for env in envs]
    key = [key for key in rendering._renderers if key[1:] == envs[0]._scene]
    assert len(key) == 1
    assert all(np.array_equal(images[0], image) for image in images)


def test_videos_have_their_own_size():
    env = TabletopEnv("handover_block", image_size=32, render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame is not None and frame.shape == (240, 320, 3)
    assert env.render_camera("head_camera", 120, 160).shape == (120, 160, 3)
    assert camera_images(env.observe()).shape == (3, 32, 32, 3)
    with pytest.raises(ValueError, match="480 x 960"):
        env.render_camera("head_camera", 600, 800)


def test_qpos_and_ee_experts_finish_the_same_task():
    env = TabletopEnv("lift_pot", image_size=None, action_type="qpos")
    env.reset(seed=1_000_001)
    while not env.success and env.step_count < env.step_limit:
        action = env.expert_action()
        assert action.shape == (14,) and action in env.action_space
        env.advance(action)
    assert env.success


def test_an_ee_command_is_reached():
    env = TabletopEnv("handover_block", image_size=None)
    env.reset(seed=0)
    target = env.ee_pose()
    target[[2, 10]] += 0.03
    for _ in range(6):
        env.advance(target)
    reached = env.ee_pose()
    np.testing.assert_allclose(reached[[0, 1, 2, 8, 9, 10]], target[[0, 1, 2, 8, 9, 10]], atol=2e-3)
    assert se3.geodesic_angle(reached[3:7], target[3:7]) < 0.01


def test_the_gripper_value_is_the_commanded_one():
    env = TabletopEnv("handover_block", image_size=None)
    env.reset(seed=0)
    action = env.ee_pose()
    action[7] = 0.25
    env.advance(action)
    assert env.ee_pose()[7] == pytest.approx(0.25)
    assert float(env.observe(False)["joint_action"]["left_gripper"]) == pytest.approx(0.25)


def test_step_is_advance_and_observe_with_the_reward_of_success():
    env = TabletopEnv("grab_roller", image_size=None)
    env.reset(seed=0)
    total, done = 0.0, False
    while not done:
        _, reward, terminated, truncated, info = env.step(env.expert_action())
        total, done = total + reward, terminated or truncated
    assert total == 1.0 and info["success"] and not truncated
    assert env.diagnose().progress == 1.0


def test_an_episode_is_cut_at_the_step_limit():
    env = TabletopEnv("grab_roller", image_size=None)
    env.reset(seed=0)
    hold = env.ee_pose()
    results = [env.step(hold) for _ in range(env.step_limit)]
    assert not any(result[3] for result in results[:-1]) and results[-1][3] and not results[-1][2]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(14), r"shape \(14,\).*\(16,\)"),
        (np.full(16, np.nan), "not finite"),
        (np.zeros(16), "zero quaternion"),
    ],
)
def test_a_wrong_action_is_refused_in_one_line(action, message):
    env = TabletopEnv("handover_block", image_size=None)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message) as error:
        env.advance(action)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "handover_blok"}, "handover_block"),
        ({"task": "lift_pot", "variant": "messy"}, "randomized"),
        ({"task": "lift_pot", "action_type": "delta"}, "qpos"),
        ({"task": "lift_pot", "image_size": 1000}, "320"),
        ({"task": "lift_pot", "instruction_split": "test"}, "unseen"),
    ],
)
def test_a_wrong_option_names_the_right_ones(options, message):
    with pytest.raises(ValueError, match=message):
        TabletopEnv(**options)


def test_using_an_environment_before_reset_says_so():
    with pytest.raises(RuntimeError, match="reset"):
        TabletopEnv("lift_pot", image_size=None).save()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "PYOPENGL_PLATFORM"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**inherited, **environment}, timeout=120
    )


def test_both_backends_render_and_leave_quietly():
    """Skipped for a backend that this machine lacks."""
    usable = {"egl": gl.egl_has_device, "osmesa": gl.osmesa_loads}
    for backend in [name for name, works in usable.items() if works()]:
        result = run_python(RENDER, MUJOCO_GL=backend)
        assert result.returncode == 0 and not result.stderr


RENDER = "from envs.tabletop.env import TabletopEnv; TabletopEnv('lift_pot', image_size=32).reset(seed=0)"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("disabled", "apt-get install libegl1 libegl-mesa0"),
        ("glfw", "apt-get install"),
        ("nonsense", "MUJOCO_GL='nonsense' is not a GL backend"),
    ],
)
def test_without_gl_the_error_says_what_to_do(value, message):
    result = run_python(RENDER, MUJOCO_GL=value)
    assert result.returncode != 0 and message in result.stderr.splitlines()[-1]


def test_without_gl_state_only_still_works():
    code = RENDER.replace("image_size=32", "image_size=None")
    assert run_python(code, MUJOCO_GL="disabled").returncode == 0


def test_registration_imports_no_simulator():
    code = "import sys, envs, envs.tabletop; assert 'mujoco' not in sys.modules and 'torch' not in sys.modules"
    assert run_python(code).returncode == 0


@pytest.mark.parametrize("action_type", ["ee", "qpos"])
def test_the_middle_of_the_actions_is_one(action_type):
    env = TabletopEnv("handover_block", action_type=action_type, image_size=None)
    env.reset(seed=0)
    middle = (env.action_space.low + env.action_space.high) / 2
    assert middle in env.action_space
    env.advance(middle)
    env.close()
