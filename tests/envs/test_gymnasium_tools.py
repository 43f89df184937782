"""The table top under gymnasium's own wrappers and vector environments, as docs/environments.md says."""

import warnings
from pathlib import Path

import av
import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv
from gymnasium.wrappers import FilterObservation, FlattenObservation, RecordVideo, RescaleAction

import envs  # noqa: F401  (registers tabletop/*)


def made(**options: object) -> gymnasium.Env:
    """The shortest task, without pictures unless they are asked for."""
    return gymnasium.make("tabletop/lift_pot-v0", **{"image_size": None, **options})


def flat() -> gymnasium.Env:
    """The chain of the page: measured numbers only, in one vector, and commands from -1 to 1."""
    env = FlattenObservation(FilterObservation(made(), ["joint_action", "endpose"]))
    return RescaleAction(env, -1.0, 1.0)


def test_the_flat_chain_is_one_vector_and_an_expert_acts_through_it():
    env = flat()
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space and observation.shape == (44,)
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    inner = env.unwrapped
    command = inner.expert_action()
    low, high = inner.action_space.low, inner.action_space.high
    env.step(2 * (command - low) / (high - low) - 1)
    direct = made().unwrapped
    direct.reset(seed=0)
    direct.step(command)
    np.testing.assert_allclose(inner.ee_pose(), direct.ee_pose(), atol=1e-9)


def test_stable_baselines_accepts_the_flat_chain():
    reason = "stable-baselines3 is not installed (no part of ./setup.sh; pip install stable-baselines3)"
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason=reason)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*dtype float64.*")  # a recommendation
        checker.check_env(flat())


def test_record_video_writes_a_film(tmp_path: Path):
    pytest.importorskip("moviepy", reason="moviepy is not installed; ./setup.sh installs it")
    env = RecordVideo(made(render_mode="rgb_array"), str(tmp_path / "films"), episode_trigger=lambda episode: True)
    env.reset(seed=0)
    for _ in range(4):
        env.step(env.unwrapped.expert_action())
    env.close()
    with av.open(str(tmp_path / "films" / "rl-video-episode-0.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.width, stream.height) == (320, 240) and stream.average_rate == made().metadata["render_fps"]
        assert sum(1 for _ in film.decode(video=0)) >= 4


def test_async_vector_environments_keep_their_instructions_without_shared_memory():
    made(image_size=8).reset(seed=0)  # this process has rendered, as trainers have
    env = AsyncVectorEnv([made], shared_memory=False, context="spawn")
    try:
        observations, _ = env.reset(seed=[0])
    finally:
        env.close()
    alone, _ = made().reset(seed=0)
    assert observations["instruction"] == (alone["instruction"],)
    np.testing.assert_array_equal(observations["joint_action"]["vector"][0], alone["joint_action"]["vector"])
