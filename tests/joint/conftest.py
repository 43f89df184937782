from pathlib import Path

import pytest
import torch

from algos.chunks import Timing
from rl_lab.config.section import ModelConfig
from rl_lab.model.checkpoint import CheckpointInfo, initial_language_model, save_policy
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.records.action_batches import fit_processor
from rl_lab.records.episodes import write_episodes, write_pairs
from tests.joint.fakes import write_joint_questions
from tests.support.recorded import episode, pair

EPISODES = [episode(1), episode(2)]


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """A folder of questions; read only."""
    return write_joint_questions(tmp_path_factory.mktemp("joint_questions") / "questions")


@pytest.fixture(scope="session")
def language_policy(tmp_path_factory) -> Path:
    """A nano VLM with random weights, of which the fakes need the processor alone; read only."""
    folder = tmp_path_factory.mktemp("policy")
    initial_language_model(ModelConfig(), seed=0).save(folder, CheckpointInfo(1, 7))
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    """A policy with random weights."""
    torch.manual_seed(0)
    policy = HyVLAPolicy(preset_config("nano"))
    processor = fit_processor(policy.config, EPISODES, Timing(policy.config.n_action_steps))
    folder = tmp_path_factory.mktemp("start")
    save_policy(folder, policy, processor, CheckpointInfo(weight_version=1, steps=10))
    return folder


@pytest.fixture(scope="session")
def demos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    write_episodes(folder, EPISODES)
    return folder


@pytest.fixture(scope="session")
def rounds(tmp_path_factory) -> tuple[Path, ...]:
    """Two rounds of pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    for number in (1, 2):
        write_pairs(folder / f"round-{number}", [pair(10 * number + k) for k in range(2)])
    return tuple(folder / f"round-{number}" for number in (1, 2))
