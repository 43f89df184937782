"""The sample policy of the contracts as tests need it: it counts calls, remembers, or reads a tape."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from algos.batch import FlowBatch, PreferenceBatch
from algos.objective import Objective
from rl_lab.contracts.samples import (
    CHUNK,
    HIDDEN,
    PADDED,
    USED,
    SamplePolicy,
    generator,
    observations,
    preference_batch,
)

__all__ = [
    "CHUNK",
    "HIDDEN",
    "PADDED",
    "USED",
    "flow_batch",
    "generator",
    "observations",
    "preference_batch",
]


def flow_batch(num: int, seed: int = 1) -> FlowBatch:
    """Every chunk repeats the state."""
    observation = observations(num, seed)
    return FlowBatch(observation, actions=observation.state[:, None].repeat(1, CHUNK, 1))


class FakePolicy(SamplePolicy):
    """Counts calls and remembers what it was asked."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.encode_calls = 0
        self.asked: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def encode(self, observation, return_vision: bool = False):
        self.encode_calls += 1
        return super().encode(observation, return_vision)

    def flow_losses(self, prefix, actions, noise, time, rows=None):
        rows = torch.arange(len(actions)) if rows is None else rows
        self.asked.append((actions, noise, time, rows))
        return super().flow_losses(prefix, actions, noise, time, rows)


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
