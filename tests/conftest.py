"""Before any test: triton before GL (importing rl_lab does that), one thread, no service that talks to a network."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ROBOTWIN_ROOT"] = ""  # the machine's RoboTwin, if it has one, decides on no test

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import rl_lab  # noqa: E402, F401

torch.set_num_threads(1)

# The same examples every time, and no deadline: the tests run beside other work.
hypothesis.settings.register_profile("lab", deadline=None, derandomize=True)
hypothesis.settings.load_profile("lab")


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """A folder of questions; read only."""
    from tests.support.questions import write_questions

    return write_questions(tmp_path_factory.mktemp("questions") / "questions")


@pytest.fixture(scope="session")
def language_policy(tmp_path_factory) -> Path:
    """A nano VLM with random weights; read only."""
    from tests.support.models import save_nano_language_model

    return save_nano_language_model(tmp_path_factory.mktemp("policy"))
