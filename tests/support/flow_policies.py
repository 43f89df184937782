"""A flow policy of a few lines, and batches for it; enough to exercise any objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algos.batch import FlowBatch, ObservationBatch, PreferenceBatch, TensorRecord
from algos.flow_matching import chunk_loss, interpolate, loss_weight, velocity_from_clean, velocity_target
from algos.objective import Objective

CHUNK, PADDED, USED, HIDDEN = 2, 4, 3, 16


@dataclass
class FakePrefix(TensorRecord):
    features: Tensor


class FakePolicy(nn.Module):
    """Predicts the clean chunk with a small network; counts calls and remembers what it was asked."""

    chunk_size, action_dim = CHUNK, PADDED

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.vlm = nn.Linear(USED, HIDDEN)
        self.expert = nn.Sequential(
            nn.Linear(HIDDEN + CHUNK * PADDED + 1, 64), nn.SiLU(), nn.Linear(64, CHUNK * PADDED)
        )
        self.encode_calls = 0
        self.asked: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def encode(self, observation: ObservationBatch, return_vision: bool = False):
        self.encode_calls += 1
        prefix = FakePrefix(torch.tanh(self.vlm(observation.state)))
        return (prefix, prefix.features[:, None, None, :].expand(-1, 3, 4, -1)) if return_vision else prefix

    def flow_losses(self, prefix, actions, noise, time, rows=None):
        rows = torch.arange(len(actions)) if rows is None else rows
        self.asked.append((actions, noise, time, rows))
        actions = torch.nn.functional.pad(actions, (0, PADDED - USED))
        x_t = interpolate(actions, noise, time)
        inputs = torch.cat([prefix.features[rows], x_t.flatten(1), time[:, None]], dim=1)
        clean = self.expert(inputs).view_as(actions)
        velocity = velocity_from_clean(x_t, clean, time)
        return chunk_loss(velocity, velocity_target(actions, noise), loss_weight(time, clip=0.3), USED)

    def sample_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num, CHUNK, PADDED, generator=generator)

    def sample_time(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num, generator=generator)


class TapePolicy(FakePolicy):
    """Reads noise and time from a tape in row order, so that parts of a batch see what the whole batch saw."""

    def __init__(self, seed: int = 0, length: int = 256) -> None:
        super().__init__(seed)
        generator = torch.Generator().manual_seed(99)
        self.noise_tape = torch.randn(length, CHUNK, PADDED, generator=generator)
        self.time_tape = torch.rand(length, generator=generator)
        self.rewind()

    def rewind(self) -> None:
        self.noise_at = self.time_at = 0

    def sample_noise(self, num: int, generator: torch.Generator) -> Tensor:
        self.noise_at += num
        return self.noise_tape[self.noise_at - num : self.noise_at]

    def sample_time(self, num: int, generator: torch.Generator) -> Tensor:
        self.time_at += num
        return self.time_tape[self.time_at - num : self.time_at]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(num: int, seed: int = 1) -> ObservationBatch:
    state = torch.randn(num, USED, generator=generator(seed))
    return ObservationBatch(
        images=torch.zeros(num, 3, 3, 2, 2),
        state=state,
        tokens=torch.zeros(num, 1, dtype=torch.int64),
        token_mask=torch.ones(num, 1, dtype=torch.bool),
    )


def flow_batch(num: int, seed: int = 1) -> FlowBatch:
    observation = observations(num, seed)
    return FlowBatch(observation, actions=observation.state[:, None].repeat(1, CHUNK, 1))


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


def gradients(module: nn.Module) -> Tensor:
    """All gradients as one vector; zeros where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()])


def check_accumulation(objective: Objective, policy: TapePolicy, batch: FlowBatch | PreferenceBatch) -> None:
    """Gradients of the rows one by one, with the batch's denominator, add up to those of the batch of eight."""
    objective.loss(policy, batch, generator())[0].backward()
    whole = gradients(policy)
    policy.zero_grad()
    policy.rewind()
    for row in range(8):
        objective.loss(policy, batch.select(torch.tensor([row])), generator(), denominator=8)[0].backward()
    assert torch.allclose(whole, gradients(policy), atol=1e-6)


def euler_sample(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, num_steps: int) -> Tensor:
    """Integrate dx/dt = v from t = 1 (noise) to 0 in equal steps: x <- x - v(x, t) / num_steps.

    `velocity(x [N, C, A], time [N]) -> [N, C, A]`; returns the sample [N, C, A].
    """
    x_t = noise
    for step in range(num_steps):
        time = torch.full((len(noise),), 1.0 - step / num_steps, dtype=noise.dtype, device=noise.device)
        x_t = x_t - velocity(x_t, time) / num_steps
    return x_t
