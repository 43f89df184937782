"""Experts, diagnoses and instructions of the tabletop tasks."""

import numpy as np
import pytest

from envs.tabletop import MODES, TASK_NAMES
from envs.tabletop.env import MAX_INSTRUCTION, TabletopEnv
from envs.tabletop.tasks.base import TEMPLATES

DEVELOPMENT, HELD_OUT = 1_000_000, 2_000_000
PERTURBED_FROM = {"handover_block": 30, "stack_blocks_two": 30, "blocks_ranking_rgb": 30}


def run_expert(env: TabletopEnv, limit: int) -> bool:
    """Follow the expert until success or `limit` more steps."""
    end = env.step_count + limit
    while not env.success and env.step_count < end:
        env.advance(env.expert_action())
    return env.success


@pytest.mark.parametrize("variant", ["clean", "randomized"])
@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_expert_solves_development_seeds(task, variant):
    env = TabletopEnv(task, variant=variant, image_size=None)
    for seed in range(DEVELOPMENT, DEVELOPMENT + 4):
        env.reset(seed=seed)
        assert run_expert(env, env.step_limit), f"seed {seed}: {env.diagnose()}"


@pytest.mark.parametrize(("task", "mode"), [(task, mode) for task in MODES for mode in MODES[task]])
def test_a_mode_of_the_expert_solves_the_task_or_fails_as_it_says(task, mode):
    env = TabletopEnv(task, image_size=None, expert_mode=mode)
    env.reset(seed=DEVELOPMENT + 3)
    assert run_expert(env, env.step_limit) == MODES[task][mode], env.diagnose()


def test_success_asks_for_less_or_more_by_its_tolerance():
    envs = [TabletopEnv("handover_block", image_size=None, success_tolerance=tolerance) for tolerance in (1.0, 0.01)]
    for env in envs:
        env.reset(seed=DEVELOPMENT)
    assert run_expert(envs[0], envs[0].step_limit) and not run_expert(envs[1], 100)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["clean", "randomized"])
@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_expert_solves_98_of_100_held_out_seeds(task, variant):
    env = TabletopEnv(task, variant=variant, image_size=None)
    solved = 0
    for seed in range(HELD_OUT, HELD_OUT + 100):
        env.reset(seed=seed)
        solved += run_expert(env, env.step_limit)
    assert solved >= 98


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_expert_goes_on_after_a_drop_and_after_being_pushed(task):
    env = TabletopEnv(task, image_size=None)
    for seed, disturb in ((DEVELOPMENT + 10, "drop"), (DEVELOPMENT + 11, "push")):
        env.reset(seed=seed)
        for _ in range(PERTURBED_FROM.get(task, 20)):
            env.advance(env.expert_action())
        for _ in range(6):
            action = env.expert_action()
            if disturb == "drop":
                action[[7, 15]] = 1.0
            else:
                action[[1, 9]] -= 0.015
            env.advance(action)
        assert run_expert(env, 300), f"{disturb}: {env.diagnose()}"


@pytest.mark.parametrize("task", TASK_NAMES)
def test_progress_rises_from_near_0_to_1_and_stages_count_up(task):
    env = TabletopEnv(task, image_size=None)
    env.reset(seed=DEVELOPMENT)
    diagnoses = [env.diagnose()]
    while not env.success:
        env.advance(env.expert_action())
        diagnoses.append(env.diagnose())
    progress = np.array([diagnosis.progress for diagnosis in diagnoses])
    assert progress[0] < 0.25 and progress[-1] == 1.0 and (progress[:-1] < 1.0).all()
    assert np.mean(np.diff(progress) >= -1e-3) > 0.85
    assert diagnoses[0].stage == 0 and diagnoses[-1].stage == len(env.stages)
    assert all(diagnosis.failure is None for diagnosis in diagnoses)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_expert_commands_are_small_steps(task):
    env = TabletopEnv(task, image_size=None)
    env.reset(seed=DEVELOPMENT + 1)
    while not env.success:
        action, pose = env.expert_action(), env.ee_pose()
        for start in (0, 8):
            assert np.linalg.norm(action[start : start + 3] - pose[start : start + 3]) < 0.025
        env.advance(action)


def push_over(env: TabletopEnv) -> None:
    """Sweep the closed left gripper through the upper half of the standing block."""
    x, y, z = env.truth()[:3]
    action = env.ee_pose()
    action[7] = 0.0
    for goal in ((x - 0.12, y - 0.02, z + 0.06), (x + 0.12, y + 0.0, z + 0.06)):
        for _ in range(25):
            offset = np.array(goal) - env.ee_pose()[:3]
            action[:3] = env.ee_pose()[:3] + offset * min(1.0, 0.03 / float(np.linalg.norm(offset)))
            env.advance(action)


def test_a_fallen_block_is_irreversible():
    env = TabletopEnv("handover_block", image_size=None)
    env.reset(seed=DEVELOPMENT)
    assert env.diagnose().failure is None
    push_over(env)
    assert env.diagnose().failure == "tipped"


@pytest.mark.parametrize("task", TASK_NAMES)
def test_instructions_of_the_two_splits_differ_and_fit_the_space(task):
    seen, unseen = TEMPLATES[task]["seen"], TEMPLATES[task]["unseen"]
    assert len(set(seen) | set(unseen)) == len(seen) + len(unseen) >= 9
    assert all(len(text) <= MAX_INSTRUCTION for text in (*seen, *unseen))


def test_instructions_come_from_the_chosen_split_by_seed():
    for split in ("seen", "unseen"):
        env = TabletopEnv("lift_pot", image_size=None, instruction_split=split)
        drawn = set()
        for seed in range(40):
            env.reset(seed=seed)
            drawn.add(env.instruction)
        assert drawn == set(TEMPLATES["lift_pot"][split])
