"""A flow policy of a few lines, and batches for it; enough to exercise any objective.

Letters: B rows, C action tokens of a chunk, A padded size of an action.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from algos.batch import ObservationBatch, PreferenceBatch, TensorRecord, TrajectoryBatch
from algos.flow_matching import chunk_loss, interpolate, loss_weight, velocity_from_clean, velocity_target

CHUNK, PADDED, USED, HIDDEN = 2, 4, 3, 16


@dataclass
class SamplePrefix(TensorRecord):
    """What `SamplePolicy` makes of an observation."""

    features: Tensor
    """float [B, HIDDEN]."""


class SamplePolicy(nn.Module):
    """An `algos.objective.FlowPolicy` that predicts the clean chunk with a small network from the state."""

    chunk_size, action_dim = CHUNK, PADDED

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.vlm = nn.Linear(USED, HIDDEN)
        self.expert = nn.Sequential(
            nn.Linear(HIDDEN + CHUNK * PADDED + 1, 64), nn.SiLU(), nn.Linear(64, CHUNK * PADDED)
        )

    def encode(self, observation: ObservationBatch, return_vision: bool = False) -> Any:
        """See `FlowPolicy`."""
        prefix = SamplePrefix(torch.tanh(self.vlm(observation.state)))
        return (prefix, prefix.features[:, None, None, :].expand(-1, 3, 4, -1)) if return_vision else prefix

    def flow_losses(
        self, prefix: SamplePrefix, actions: Tensor, noise: Tensor, time: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """See `FlowPolicy`."""
        rows = torch.arange(len(actions)) if rows is None else rows
        actions = torch.nn.functional.pad(actions, (0, PADDED - USED))
        x_t = interpolate(actions, noise, time)
        inputs = torch.cat([prefix.features[rows], x_t.flatten(1), time[:, None]], dim=1)
        clean = self.expert(inputs).view_as(actions)
        velocity = velocity_from_clean(x_t, clean, time)
        return chunk_loss(velocity, velocity_target(actions, noise), loss_weight(time, clip=0.3), USED)

    def sample_noise(self, num: int, generator: torch.Generator) -> Tensor:
        """See `FlowPolicy`."""
        return torch.randn(num, CHUNK, PADDED, generator=generator)

    def sample_time(self, num: int, generator: torch.Generator) -> Tensor:
        """See `FlowPolicy`."""
        return torch.rand(num, generator=generator)


def generator(seed: int = 0) -> torch.Generator:
    """A source of random numbers."""
    return torch.Generator().manual_seed(seed)


def observations(num: int, seed: int = 1) -> ObservationBatch:
    """States at random, black pictures."""
    return ObservationBatch(
        images=torch.zeros(num, 3, 3, 2, 2),
        state=torch.randn(num, USED, generator=generator(seed)),
        tokens=torch.zeros(num, 1, dtype=torch.int64),
        token_mask=torch.ones(num, 1, dtype=torch.bool),
    )


def preference_batch(num: int, num_identical: int, seed: int = 1) -> PreferenceBatch:
    """The winner's chunk repeats the state, the loser's is shifted; the last rows are identical pairs."""
    observation = observations(num, seed)
    winner = observation.state[:, None].repeat(1, CHUNK, 1)
    identical = torch.arange(num) >= num - num_identical
    return PreferenceBatch(
        observation=observation,
        winner=winner,
        loser=torch.where(identical[:, None, None], winner, winner + 0.7),
        identical=identical,
        source=torch.where(identical, 2, 0),
        weight_version=torch.where(identical, 0, 3),
    )


def imitation_batch(num: int, num_demonstrations: int) -> PreferenceBatch:
    """Identical pairs alone; the last rows are demonstrations, those before them were collected."""
    collected = torch.arange(num) < num - num_demonstrations
    source, version = torch.where(collected, 0, 2), torch.where(collected, 3, 0)
    return replace(preference_batch(num, num), source=source, weight_version=version)


def trajectory_batch(num: int, seed: int = 1) -> TrajectoryBatch:
    """`num` pairs of two winner rows and two loser rows; the last pair has no loser."""
    observation = observations(4 * num - 2, seed)
    rows = torch.arange(len(observation))
    is_winner = rows % 4 < 2
    actions = observation.state[:, None].repeat(1, CHUNK, 1)
    return TrajectoryBatch(
        observation=observation,
        actions=torch.where(is_winner[:, None, None], actions, actions + 0.7),
        pair=rows // 4,
        is_winner=is_winner,
        source=torch.zeros(len(rows), dtype=torch.int64),
        weight_version=torch.full((len(rows),), 3),
    )
