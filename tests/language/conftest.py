from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def policy(language_policy) -> Path:
    """A nano VLM with random weights; read only."""
    return language_policy
