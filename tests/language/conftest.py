from pathlib import Path

import pytest

from rl_lab.config.section import ModelConfig
from rl_lab.model.checkpoint import CheckpointInfo, initial_language_model
from tests.language.builders import write_questions


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """A folder of questions; read only."""
    return write_questions(tmp_path_factory.mktemp("questions") / "questions")


@pytest.fixture(scope="session")
def policy(tmp_path_factory) -> Path:
    """A nano VLM with random weights; read only."""
    folder = tmp_path_factory.mktemp("policy")
    initial_language_model(ModelConfig(), seed=0).save(folder, CheckpointInfo(1, 7))
    return folder
