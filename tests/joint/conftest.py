from pathlib import Path

import pytest

from rl_lab.config.model import ModelConfig
from rl_lab.language.model import initial_language_model
from rl_lab.learning.checkpoint import CheckpointInfo
from tests.joint.fakes import write_joint_questions


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
