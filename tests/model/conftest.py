"""A nano policy and random observations."""

from __future__ import annotations

import pytest
import torch

from algos.batch import ObservationBatch
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from tests.support.models import make_observations, make_policy


@pytest.fixture(scope="session")
def nano() -> HyVLAConfig:
    return preset_config("nano")


@pytest.fixture
def policy() -> HyVLAPolicy:
    return make_policy()


@pytest.fixture
def observations(policy: HyVLAPolicy) -> ObservationBatch:
    return make_observations(policy, 4)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
