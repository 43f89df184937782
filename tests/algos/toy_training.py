"""A toy problem that takes a second: a policy that imitates good and bad chunks alike, then learns from preferences."""

import copy
import functools

import torch

from algos.flowpro import RPRO
from tests.support.flow_policies import FakePolicy, generator, preference_batch

ALL = ("vision", "vlm", "expert")


@functools.cache
def train(steps: int, **options: float | bool) -> list[dict[str, float]]:
    """A pretrained policy continued by an objective on a fixed set of pairs."""
    policy = FakePolicy(0)
    pretrain = torch.optim.Adam(policy.parameters(), lr=3e-3)
    batch = preference_batch(32, num_identical=16)
    for step in range(300):
        rows = torch.arange(32)
        losses = policy.flow_losses(
            policy.encode(batch.observation),
            torch.where(torch.arange(32)[:, None, None] % 2 == 0, batch.winner, batch.loser),
            policy.sample_noise(32, generator(step)),
            policy.sample_time(32, generator(step + 10_000)),
            rows,
        )
        pretrain.zero_grad()
        losses.mean().backward()
        pretrain.step()
    objective = RPRO(copy.deepcopy(policy), groups=ALL, draws_per_sample=2, **options)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    history = []
    for step in range(steps):
        loss, metrics = objective.loss(policy, batch, generator(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({name: float(value) for name, value in metrics.items()})
    return history


def recent(history: list[dict[str, float]], name: str, window: int = 20) -> float:
    return sum(step[name] for step in history[-window:]) / window
