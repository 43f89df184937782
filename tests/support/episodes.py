"""Small synthetic episodes, pairs and sampled chunks: straight motions, images whose brightness is the step."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from envs.se3 import normalize
from envs.types import Candidates, Episode, PreferencePair, Segment
from rl_lab.records.checks import OnProblem
from rl_lab.records.robotwin import SAVE_FREQ
from rl_lab.records.sources import open_source

SIDE = 64


def poses(steps: int, seed: int) -> np.ndarray:
    """Both arms move along random lines with slowly turning tools, [steps + 1, 16]."""
    generator = np.random.default_rng(seed)
    start, velocity = generator.uniform(-0.3, 0.3, (2, 2, 3)) * [[[1.0]], [[0.05]]]
    time = np.arange(steps + 1)[:, None, None]
    quat = normalize(np.array([1.0, 0.0, 0.0, 0.0]) + 0.01 * time * generator.normal(size=(2, 4)))
    gripper = np.clip(1.0 - 0.02 * time, 0, 1) * np.ones((1, 2, 1))
    return np.concatenate([start + velocity * time, quat, gripper], axis=-1).reshape(steps + 1, 16)


def images(steps: int) -> np.ndarray:
    """uint8 [steps, 3, SIDE, SIDE, 3]."""
    return np.arange(steps, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 3, SIDE, SIDE, 3), np.uint8)


def segment(steps: int, seed: int) -> Segment:
    """Commands are the next measured poses."""
    path = poses(steps, seed)
    return Segment(poses=path, actions=path[1:], images=images(steps))


def pair(seed: int, winner_steps: int = 20, loser_steps: int = 14) -> PreferencePair:
    """A pair from one start pose."""
    winner, loser = segment(winner_steps, seed), segment(loser_steps, seed + 1000)
    loser.poses[0] = winner.poses[0]
    return PreferencePair(
        task="handover_block",
        variant="clean",
        seed=seed,
        instruction="Pass the red block to the right arm.",
        winner=winner,
        loser=loser,
        start_step=3,
        trigger_step=3 + loser_steps,
        trigger="tipped",
        rollback_steps=loser_steps,
        corrector="scripted_expert",
        start_digest="0" * 64,
        weight_version=1,
    )


def episode(seed: int, steps: int = 15, truth_size: int = 4, task: str = "handover_block") -> Episode:
    """A demonstration with a frame at every step."""
    path = poses(steps, seed)
    return Episode(
        task=task,
        variant="clean",
        seed=seed,
        instruction="Pass the red block to the right arm.",
        success=True,
        num_steps=steps,
        poses=path,
        actions=path[1:],
        frame_steps=np.arange(steps),
        images=images(steps),
        truth=np.random.default_rng(seed).normal(size=(steps, truth_size)).astype(np.float32),
    )


def walk(seed: int, *, success: bool = True, steps: int = 12, every: int = 4) -> Episode:
    """An episode whose bright column moves right with every step; only successes reach the right border."""
    one = episode(seed, steps)
    one.frame_steps = np.arange(0, steps + 1, every)
    one.images = np.stack([column(step / steps if success else 0.3 * step / steps) for step in one.frame_steps])
    one.success = success
    return one


def column(place: float, side: int = 32) -> np.ndarray:
    """Three dark pictures with a bright column, [3, side, side, 3]."""
    image = np.full((3, side, side, 3), 40, np.uint8)
    start = round(place * (side - 2))
    image[:, :, start : start + 2] = 220
    return image


def sampled_chunks(seed: int, horizon: int = 8, samples: int = 3) -> Candidates:
    """A state whose chunks lead further with their number, on a path that the expert shares with the last."""
    paths = np.stack([poses(horizon, seed) for _ in range(samples)])
    paths[:, 1:, 0] += 0.01 * np.arange(samples)[::-1, None]
    return Candidates(
        task="handover_block",
        variant="clean",
        seed=seed,
        instruction="Pass the red block to the right arm.",
        step=4,
        start_digest=f"{seed:064d}",
        weight_version=1,
        poses=paths,
        actions=paths[:, 1:],
        images=np.stack([images(horizon)] * samples),
        after=np.zeros((samples, 3, SIDE, SIDE, 3), np.uint8),
        expert=paths[-1, 1:],
        progress=np.linspace(0.2, 0.6, samples),
        success=np.zeros(samples, bool),
    )


def read_folder(
    folder: Path,
    report: OnProblem | None = None,
    *,
    image_size: int = 224,
    save_freq: int = SAVE_FREQ,
    split: str = "seen",
) -> Iterator[Episode]:
    """The episodes of a folder of any format, in order."""
    return open_source(folder, image_size=image_size, save_freq=save_freq, split=split).episodes(report)
