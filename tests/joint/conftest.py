from pathlib import Path

import pytest

from rl_lab.records.episodes import write_episodes, write_pairs
from tests.support.episodes import episode, pair
from tests.support.models import save_nano_policy


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    """A policy with random weights."""
    return save_nano_policy(tmp_path_factory.mktemp("start"), seeds=(1, 2), steps=10)


@pytest.fixture(scope="session")
def demos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    write_episodes(folder, [episode(1), episode(2)])
    return folder


@pytest.fixture(scope="session")
def rounds(tmp_path_factory) -> tuple[Path, ...]:
    """Two rounds of pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    for number in (1, 2):
        write_pairs(folder / f"round-{number}", [pair(10 * number + k) for k in range(2)])
    return tuple(folder / f"round-{number}" for number in (1, 2))
