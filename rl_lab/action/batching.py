"""Episodes and preference pairs to normalised batches: the only translator between what workers record and what
objectives read.

Letters: N states, H chunk length, K frames of history, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch

from algos.batch import FlowBatch
from algos.chunks import Timing
from algos.smooth_interpolation import Mode, interpolate_pair
from envs.types import RANKED, Episode, PreferencePair
from rl_lab.formats.summary import chunk_moments
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.processor import ActionStats, PolicyProcessor
from rl_lab.model.tokenizer import load_tokenizer

STD_FLOOR = 0.02
"""Smallest standard deviation of a normalised number (metres, rot6d entries, gripper): a prototype broke at 1e-3."""

TRUTH_LIMIT = 3.0
"""Standard deviations at which auxiliary targets are clipped: rare events would dominate a squared error."""


@dataclass
class Demonstrations:
    """Every recorded state of some episodes with the expert's next H commands."""

    images: np.ndarray
    """uint8 [N, 3, S, S, 3]."""
    poses: np.ndarray
    """Measured `ee` poses, [N, 16]."""
    instructions: list[str]
    actions: np.ndarray
    """Commanded chunks, [N, H, 16]."""
    truth: np.ndarray | None
    """Ground truth standardised within its task, zero-padded to the longest, float32 [N, n]; None without any."""

    def __len__(self) -> int:
        return len(self.poses)


def standardised_truth(episodes: Sequence[Episode]) -> np.ndarray | None:
    """Truth vectors of all frames, standardised by task because each task has its own meaning and length.

    None if an episode has none, as those of other simulators and of robots.
    """
    if any(episode.truth is None for episode in episodes):
        return None
    truths = [np.asarray(episode.truth) for episode in episodes]
    width = max(truth.shape[1] for truth in truths)
    rows = np.zeros((sum(len(episode.frame_steps) for episode in episodes), width), dtype=np.float32)
    ends = np.cumsum([len(episode.frame_steps) for episode in episodes])
    spans = [slice(end - len(episode.frame_steps), end) for end, episode in zip(ends, episodes, strict=True)]
    for task in {episode.task for episode in episodes}:
        rows_of = zip(spans, truths, episodes, strict=True)
        mine = [(span, truth) for span, truth, episode in rows_of if episode.task == task]
        values = np.concatenate([truth for _, truth in mine])
        mean, std = values.mean(0), np.maximum(values.std(0), 1e-3)
        for span, truth in mine:
            rows[span, : truth.shape[1]] = np.clip((truth - mean) / std, -TRUTH_LIMIT, TRUTH_LIMIT)
    return rows


def demonstrations(episodes: Sequence[Episode], timing: Timing) -> Demonstrations:
    """The states of demonstration episodes, in order."""
    chunks = [timing.chunks(episode.poses, episode.actions, episode.frame_steps) for episode in episodes]
    return Demonstrations(
        images=np.concatenate([np.asarray(episode.images) for episode in episodes]),
        poses=np.concatenate([episode.poses[episode.frame_steps] for episode in episodes]),
        instructions=[episode.instruction for episode in episodes for _ in episode.frame_steps],
        actions=np.concatenate(chunks),
        truth=standardised_truth(episodes),
    )


def fit_processor(config: HyVLAConfig, episodes: Sequence[Episode], timing: Timing) -> PolicyProcessor:
    """A processor whose statistics are those of the demonstrations; kept for the life of the policy.

    A model that predicts twice the commands of a chunk predicts it relative and absolute.
    """
    state, relative, absolute = chunk_moments(episodes, timing)
    has_absolute = config.n_action_steps == 2 * timing.horizon
    stats = ActionStats.from_moments(state, relative, absolute if has_absolute else None, STD_FLOOR)
    return PolicyProcessor(config, load_tokenizer(), stats)


def flow_batch(demos: Demonstrations, processor: PolicyProcessor) -> FlowBatch:
    """All demonstrations as one batch, from which each step selects its rows."""
    return FlowBatch(
        observation=processor.batch(demos.images, demos.poses, demos.instructions),
        actions=processor.encode(demos.actions, demos.poses),
        truth=None if demos.truth is None else torch.from_numpy(demos.truth),
    )


@dataclass
class PairStates:
    """States of preference pairs with the chunks to prefer and to avoid, for any number of pairs."""

    images: np.ndarray
    """uint8 [N, 3, S, S, 3]."""
    poses: np.ndarray
    """Measured `ee` poses, [N, 16]."""
    instructions: list[str]
    winner: np.ndarray
    """Commanded chunks, [N, H, 16]."""
    loser: np.ndarray
    """Commanded chunks, [N, H, 16]; equal to `winner` where `identical`."""
    identical: np.ndarray
    """bool [N]."""
    from_loser: np.ndarray
    """The state lies on the loser's segment, bool [N]."""
    pair: np.ndarray
    """Number of the pair, int64 [N]."""
    weight_version: np.ndarray
    """int64 [N]."""

    def __len__(self) -> int:
        return len(self.poses)

    def select(self, mask: np.ndarray) -> PairStates:
        """The states where the mask, bool [N], is true."""
        arrays = {name: value[mask] for name, value in vars(self).items() if name != "instructions"}
        return PairStates(instructions=list(compress(self.instructions, mask)), **arrays)


def pair_states(pairs: Sequence[PreferencePair], horizon: int, mode: Mode) -> PairStates:
    """Smooth Interpolation of every pair; states of a pair stay together, in the order of the pairs.

    Two ranked chunks are compared in the state in which they were sampled, and nowhere else.
    """
    parts: list[dict[str, np.ndarray]] = []
    instructions: list[str] = []
    for number, pair in enumerate(pairs):
        tuples = interpolate_pair(pair, horizon, "start" if pair.origin == RANKED else mode)
        frames = [
            (pair.loser if lost else pair.winner).images[step]
            for lost, step in zip(tuples.from_loser, tuples.step, strict=True)
        ]
        instructions += [pair.instruction] * len(tuples)
        parts.append(
            {
                "images": np.stack(frames),
                "poses": tuples.start,
                "winner": tuples.winner,
                "loser": tuples.loser,
                "identical": tuples.identical,
                "from_loser": tuples.from_loser,
                "pair": np.full(len(tuples), number),
                "weight_version": np.full(len(tuples), pair.weight_version),
            }
        )
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return PairStates(instructions=instructions, **merged)
