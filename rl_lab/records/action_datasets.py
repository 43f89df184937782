"""What one training stage on actions reads, and which of its rows each step takes.

Demonstrations of any size are numbers in memory, with images read for the step that needs them. Buffers are one batch
in memory, so that prefixes are computed once; their rows are numbered through those of `MixedSampler`: this round's
pairs, older pairs, demonstrations, ranked chunks. Letters: B rows of a batch, K frames of history, S image side.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from algos.augmentation import augment
from algos.batch import FlowBatch, ObservationBatch, PreferenceBatch, TrajectoryBatch, join_rows, num_bytes
from algos.chunks import Timing
from algos.methods import Method, condition_instructions, dropped
from algos.mixing import MixedSampler
from algos.policy import Policy
from envs.types import Episode, PreferencePair
from rl_lab.common.seeding import stream
from rl_lab.model.lora import Adapted, BaseWeights
from rl_lab.model.processor import PolicyProcessor
from rl_lab.records.action_batches import States, join_frames, joined_truth, pair_states, standardised_truth

SIDE_STATES = 4
"""States drawn from each side of a pair for one trajectory-wise comparison."""
NEW, OLDER, DEMONSTRATIONS, RANKED = range(4)
"""Numbers of the buffers, in the order of `algos.flowpro.SOURCES`."""
ENCODE_ROWS = 128
"""Observations encoded at once when prefixes are stored."""


class Dataset(Protocol):
    """Batches by step number."""

    rows: Any

    def batch(self, step: int) -> Any:
        """The batch of step 0, 1, ...; the same whatever was asked before."""


IMAGE_READERS = min(8, os.cpu_count() or 1)
"""Threads that read and decode images; they change no number."""


class DemonstrationStream:
    """The states of demonstration episodes in shuffled passes; the next batch is read while this one is learned."""

    rows = None

    def __init__(
        self,
        episodes: Sequence[Episode],
        processor: PolicyProcessor,
        timing: Timing,
        *,
        batch_size: int,
        seed: int,
        augmented: bool = False,
    ) -> None:
        self.episodes, self.processor, self.timing = episodes, processor, timing
        self.seed, self.augmented = seed, augmented
        counts = [len(episode.frame_steps) for episode in episodes]
        self._episode = np.repeat(np.arange(len(episodes)), counts)
        self._frame = np.concatenate([np.arange(count) for count in counts])
        self._truth = standardised_truth(episodes)
        self._privileged = joined_truth([one.truth for one in episodes]) if processor.reads_truth else None
        self._sampler = MixedSampler([len(self._frame)], [1.0], batch_size, seed)
        self._readers = ThreadPoolExecutor(IMAGE_READERS, thread_name_prefix="images")
        self._ahead: tuple[int, list[Future[np.ndarray]]] | None = None

    def __len__(self) -> int:
        return len(self._frame)

    @property
    def truth_size(self) -> int | None:
        """Numbers of simulator ground truth in each state; None without any."""
        return None if self._truth is None else self._truth.shape[1]

    def batch(self, step: int) -> FlowBatch:
        """See `Dataset`."""
        reading = self._ahead[1] if self._ahead and self._ahead[0] == step else self._read(step)
        self._ahead = step + 1, self._read(step + 1)
        rows = self._sampler.numbers(step)
        episodes, steps = [self.episodes[number] for number in self._episode[rows]], self._steps(rows)
        poses = np.stack([episode.poses[t] for episode, t in zip(episodes, steps, strict=True)])
        chunks = [
            self.timing.chunks(episode.poses, episode.actions, np.array([t]))
            for episode, t in zip(episodes, steps, strict=True)
        ]
        images = np.stack([future.result() for future in reading])
        texts = [episode.instruction for episode in episodes]
        read = self._privileged[rows] if self._privileged is not None else None
        return FlowBatch(
            observation=self.processor.batch(images, poses, texts, truth=read),
            actions=self.processor.encode(np.concatenate(chunks), poses),
            truth=None if self._truth is None else torch.from_numpy(self._truth[rows]),
        )

    def _steps(self, rows: np.ndarray) -> list[int]:
        return [int(self.episodes[self._episode[row]].frame_steps[self._frame[row]]) for row in rows]

    def _read(self, step: int) -> list[Future[np.ndarray]]:
        rows = self._sampler.numbers(step)
        return [self._readers.submit(self._images, step, place, row) for place, row in enumerate(rows)]

    def _images(self, step: int, place: int, row: int) -> np.ndarray:
        """Views of a state, uint8 [V, S, S, 3] or, with a history, [V, K, S, S, 3]."""
        episode = self.episodes[self._episode[row]]
        frames = self.timing.frames(int(episode.frame_steps[self._frame[row]]), episode.frame_steps)
        images = np.array(episode.images[np.maximum(frames, 0)])
        images[frames < 0] = 0
        views = images.swapaxes(0, 1)
        if self.augmented:
            views = augment(views, stream(self.seed, "augment", step, place))
        return views if self.timing.history > 1 else views[:, 0]


@dataclass
class StateData:
    """Rows of one or several buffers, a demonstration state or a preference tuple each; or decisions of one."""

    rows: Any
    """`PreferenceBatch` or `ExploredBatch`."""
    sampler: MixedSampler

    def batch(self, step: int) -> Any:
        """See `Dataset`."""
        return self.rows.select(torch.from_numpy(self.sampler.numbers(step)))


@dataclass
class LabelledData:
    """Rows whose instruction says which side they are from; a step draws which of its rows are read without."""

    rows: PreferenceBatch
    """All rows as they are, then all with their indicator."""
    sampler: MixedSampler
    seed: int

    def batch(self, step: int) -> PreferenceBatch:
        """See `Dataset`."""
        numbers = self.sampler.numbers(step)
        plain = dropped(len(numbers), stream(self.seed, "advantage", step))
        return self.rows.select(torch.from_numpy(np.where(plain, numbers, numbers + len(self.rows) // 2)))


@dataclass
class TrajectoryData:
    """Whole pairs: a step draws pairs (or single demonstration rows), then some states of both sides of each."""

    rows: PreferenceBatch
    """`winner` holds the recorded chunk of every row, whichever side it is on."""
    members: list[tuple[np.ndarray, np.ndarray]]
    """Rows of the winner's and of the loser's side, for every pair and demonstration state in buffer order."""
    sampler: MixedSampler
    """Draws numbers of `members`."""
    seed: int

    def batch(self, step: int) -> TrajectoryBatch:
        """See `Dataset`."""
        generator = stream(self.seed, "trajectory_states", step)
        drawn = [
            [generator.choice(side, min(SIDE_STATES, len(side)), replace=False) for side in self.members[item]]
            for item in self.sampler.numbers(step)
        ]
        index = torch.from_numpy(np.concatenate([np.concatenate(sides) for sides in drawn]))
        counts = [[len(winner), len(loser)] for winner, loser in drawn]
        chosen = self.rows.select(index)
        return TrajectoryBatch(
            observation=chosen.observation,
            actions=chosen.winner,
            pair=torch.from_numpy(np.repeat(np.arange(len(drawn)), np.sum(counts, axis=1))),
            is_winner=torch.from_numpy(np.repeat(np.tile([True, False], len(drawn)), np.ravel(counts))),
            source=chosen.source,
            weight_version=chosen.weight_version,
            prefix=chosen.prefix,
            reference_prefix=chosen.reference_prefix,
        )


def preference_data(
    method: Method,
    rounds: Sequence[Sequence[PreferencePair]],
    demos: States,
    processor: PolicyProcessor,
    timing: Timing,
    *,
    mix: Sequence[float],
    batch_size: int,
    seed: int,
    ranked: Sequence[PreferencePair] = (),
) -> StateData | TrajectoryData | LabelledData:
    """The buffers of one round: its pairs (the last of `rounds`), the pairs of older rounds, demonstrations, and pairs
    of ranked chunks; each if there are any.

    `mix` are the batch shares (new, demonstrations) in round 1 and (new, older, demonstrations) later, with that of
    ranked pairs behind them; that of demonstrations alone where there are no rounds.
    """
    *before, newest = rounds or [()]
    collected = {NEW: newest, OLDER: [pair for pairs in before for pair in pairs], RANKED: ranked}
    states = {
        source: pair_states(pairs, timing, method.loser_states, processor.stats)
        for source, pairs in collected.items()
        if pairs
    }
    states[DEMONSTRATIONS] = demos
    sources = sorted(states)
    buffers = [_for_method(method, states[source]) for source in sources]
    ratios = mix if method.fixed_ratios else None
    if method.rows == "labelled":
        rows = _preference_batch([*buffers, *map(_labelled, buffers)], [*sources, *sources], processor)
        return LabelledData(rows, MixedSampler([len(item) for item in buffers], ratios, batch_size, seed), seed)
    rows = _preference_batch(buffers, sources, processor)
    if method.rows == "trajectories":
        members, sizes = _members(buffers)
        sampler = MixedSampler(sizes, ratios, max(1, batch_size // SIDE_STATES), seed)
        return TrajectoryData(rows, members, sampler, seed)
    return StateData(rows, MixedSampler([len(item) for item in buffers], ratios, batch_size, seed))


def _for_method(method: Method, states: States) -> States:
    """The rows of a buffer as a method sees them."""
    if method.rows == "winners":
        return states.select(~states.from_loser)
    return _recorded(states) if method.rows in ("trajectories", "labelled") else states


def _labelled(states: States) -> States:
    """The same rows with an indicator in their instruction."""
    return replace(states, instructions=condition_instructions(states.instructions, ~states.from_loser))


def _preference_batch(buffers: Sequence[States], sources: Sequence[int], processor: PolicyProcessor) -> PreferenceBatch:
    """The rows of all buffers, normalised, in order; `sources` numbers the buffers as `PreferenceBatch.source` does."""
    poses = np.concatenate([states.poses for states in buffers])
    texts = [text for states in buffers for text in states.instructions]
    frames, seen = join_frames([states.frames for states in buffers], [states.seen for states in buffers])
    truth = joined_truth([states.truth for states in buffers]) if processor.reads_truth else None

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(states, name) for states in buffers])

    return PreferenceBatch(
        observation=processor.batch(frames, poses, texts, seen, truth),
        winner=processor.encode(column("winner"), poses),
        loser=processor.encode(column("loser"), poses),
        identical=torch.from_numpy(column("identical")),
        source=torch.from_numpy(np.repeat(sources, [len(states) for states in buffers])),
        weight_version=torch.from_numpy(column("weight_version")),
    )


def _members(buffers: Sequence[States]) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[int]]:
    """Rows of both sides of every pair, numbered through the buffers, and the number of pairs of each buffer."""
    members, sizes, start = [], [], 0
    for states in buffers:
        numbers = np.unique(states.pair)
        for number in numbers:
            mine = states.pair == number
            winner, loser = (np.flatnonzero(mine & (states.from_loser == lost)) + start for lost in (False, True))
            members.append((winner, loser))
        sizes.append(len(numbers))
        start += len(states)
    return members, sizes


def _recorded(states: States) -> States:
    """Every state with what was done there, winner or loser alike."""
    chunk = np.where(states.from_loser[:, None, None], states.loser, states.winner)
    return replace(states, winner=chunk, loser=chunk, identical=np.ones(len(states), dtype=bool))


@torch.no_grad()
def encode_rows(
    policy: Policy | Adapted | BaseWeights, observation: ObservationBatch, limit_gib: float = math.inf
) -> Any:
    """Prefixes of all rows of an observation batch, computed a few at a time and kept in CPU memory.

    None where they would take more than `limit_gib`: a row of the released policy takes 16 MB.
    """

    def encode(rows: torch.Tensor) -> Any:
        return policy.encode(observation.select(rows).to(policy.device)).to("cpu")

    first, *others = torch.arange(len(observation)).split(ENCODE_ROWS)
    parts = [encode(first)]
    if num_bytes(parts[0]) / len(first) * len(observation) > limit_gib * 2**30:
        return None
    parts += map(encode, others)
    return join_rows(parts)
