"""Every random stream of a run, derived from the one seed in its config by name.

A stream is addressed, not consumed: `stream(seed, "sft", "rows", 17)` gives the same numbers whatever ran before, so a
resumed run needs no stored generator state and workers can be restarted anywhere.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

SPLIT_SIZE = 1_000_000
SPLITS = {"train": 0, "development": 1, "held_out": 2}
"""Disjoint blocks of environment seeds; held_out is for reported numbers only."""
ROBOTWIN_BLOCK = 100_000
"""RoboTwin records demonstrations on seeds below this; its evaluation with seed n begins at this times (1 + n)."""
TRAINING_SEEDS = {"tabletop": SPLIT_SIZE, "robotwin": ROBOTWIN_BLOCK}
"""Seeds of training lie below this, by backend; those of own environments as on the tabletop."""


def _entropy(seed: int, names: tuple[str | int, ...]) -> int:
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The numpy generator addressed by a path of names under the run's seed."""
    return np.random.Generator(np.random.PCG64(_entropy(seed, names)))


def integer(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^63) for what takes plain numbers, addressed like a stream."""
    return _entropy(seed, names) % 2**63


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """The torch (CPU) generator addressed by a path of names under the run's seed."""
    return torch.Generator().manual_seed(integer(seed, *names))


def evaluation_seeds(split: str, count: int) -> list[int]:
    """The first `count` environment seeds of a split: the same for every run, so that runs can be paired."""
    start = SPLITS[split] * SPLIT_SIZE
    return list(range(start, start + count))


def robotwin_seeds(split: str, robotwin_seed: int, count: int) -> list[int]:
    """Environment seeds in the order in which RoboTwin's evaluation with this seed tries them; development seeds are
    the second half of the block, which no evaluation of fewer than 50,000 seeds reaches."""
    start = ROBOTWIN_BLOCK * (1 + robotwin_seed) + {"held_out": 0, "development": ROBOTWIN_BLOCK // 2}[split]
    return list(range(start, start + count))


def training_seeds(seed: int, name: str, count: int, backend: str = "tabletop") -> list[int]:
    """`count` distinct environment seeds of the training split, drawn by the run's seed and a name."""
    return stream(seed, "env", name).choice(TRAINING_SEEDS.get(backend, SPLIT_SIZE), size=count, replace=False).tolist()
