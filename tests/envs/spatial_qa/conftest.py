from contextlib import suppress

import numpy as np
import pytest

from envs.spatial_qa.draws import Draw, UnclearError
from envs.spatial_qa.items import Knobs
from envs.spatial_qa.questions import GENERATORS, make_item

TRAIN, HELDOUT_SCENE = 12_800, 1_100_000_000


@pytest.fixture(scope="session")
def one_of_each():
    """An item of every generator, of training scenes and of held-out ones."""
    return {(task, seed): make_item(task, seed, Knobs()) for task in GENERATORS for seed in (TRAIN, HELDOUT_SCENE)}


@pytest.fixture
def still_lifes():
    """Four still lifes with everything clear."""
    lifes, seed = [], 0
    while len(lifes) < 4:
        seed += 1
        with suppress(UnclearError):
            lifes.append(Draw(np.random.default_rng(seed), Knobs(num_objects=4), seed, 0).still())
    return lifes
