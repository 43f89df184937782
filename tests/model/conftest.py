"""A nano policy and random observations."""

import pytest
import torch

from algos.batch import ObservationBatch
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from tests.support.models import VLM, make_observations, make_policy, make_processor, make_vlm


@pytest.fixture(scope="session")
def nano() -> HyVLAConfig:
    return preset_config("nano")


@pytest.fixture
def policy() -> HyVLAPolicy:
    return make_policy()


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return make_vlm()


@pytest.fixture(scope="module")
def processor(vlm: VLM) -> HunYuanVLMoTProcessor:
    return make_processor(vlm)


@pytest.fixture
def observations(policy: HyVLAPolicy) -> ObservationBatch:
    return make_observations(policy, 4)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
