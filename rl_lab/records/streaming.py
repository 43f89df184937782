"""Demonstrations of any size as batches: numbers in memory, images read for the step that needs them.

Letters: B rows of a batch, K frames of history, S image side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from algos.augmentation import augment
from algos.batch import FlowBatch
from algos.chunks import Timing
from algos.mixing import MixedSampler
from envs.types import Episode
from rl_lab.model.processor import PolicyProcessor
from rl_lab.records.action_batches import standardised_truth
from rl_lab.seeding import stream

READERS = min(8, os.cpu_count() or 1)
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
        self._sampler = MixedSampler([len(self._frame)], [1.0], batch_size, seed)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="images")
        self._ahead: tuple[int, list[Future[np.ndarray]]] | None = None

    def __len__(self) -> int:
        return len(self._frame)

    @property
    def truth_size(self) -> int | None:
        """Numbers of simulator ground truth in each state; None without any."""
        return None if self._truth is None else self._truth.shape[1]

    def batch(self, step: int) -> FlowBatch:
        """See `rl_lab.records.action_datasets.Dataset`."""
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
        return FlowBatch(
            observation=self.processor.batch(images, poses, [episode.instruction for episode in episodes]),
            actions=self.processor.encode(np.concatenate(chunks), poses),
            truth=None if self._truth is None else torch.from_numpy(self._truth[rows]),
        )

    def _steps(self, rows: np.ndarray) -> list[int]:
        return [int(self.episodes[self._episode[row]].frame_steps[self._frame[row]]) for row in rows]

    def _read(self, step: int) -> list[Future[np.ndarray]]:
        rows = self._sampler.numbers(step)
        return [self._readers.submit(self._images, step, place, row) for place, row in enumerate(rows)]

    def _images(self, step: int, place: int, row: int) -> np.ndarray:
        """Views of a state, uint8 [3, S, S, 3] or, with a history, [3, K, S, S, 3]."""
        episode = self.episodes[self._episode[row]]
        frames = self.timing.frames(int(episode.frame_steps[self._frame[row]]), episode.frame_steps)
        images = np.array(episode.images[np.maximum(frames, 0)])
        images[frames < 0] = 0
        views = images.swapaxes(0, 1)
        if self.augmented:
            views = augment(views, stream(self.seed, "augment", step, place))
        return views if self.timing.history > 1 else views[:, 0]
