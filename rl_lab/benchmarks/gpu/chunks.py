"""Latency of a chunk of actions, from images to the last Euler step, one observation at a time."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rl_lab.benchmarks.gpu.steps import NEEDS_CUDA, make_policy
from rl_lab.benchmarks.gpu.table import Row, skipped
from rl_lab.benchmarks.model import graphed, lacking_compiler, seconds
from rl_lab.benchmarks.rpro import random_batch
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.sharding import compile_blocks

ROUNDS = {"cpu": 3, "cuda": 30}
Sample = Callable[[], Tensor]


def latency(device: str, preset: str) -> Iterator[Row]:
    """As the model is written, and the same kernels as one CUDA graph."""
    policy = make_policy(device, preset).eval()
    sample, noise = sampler(policy)
    yield latency_row("a chunk, eager", sample, device, f"{policy.num_steps} Euler steps, batch 1, bfloat16")
    yield from graph_rows("a chunk, CUDA graph", sample, noise, device)


def compiled_latency(device: str, preset: str) -> Iterator[Row]:
    """With compiled blocks, by themselves and as one CUDA graph."""
    lacking = lacking_compiler()
    if lacking:
        yield skipped("a chunk, compiled blocks", lacking)
        return
    policy = make_policy(device, preset).eval()
    shared = copy.deepcopy(policy, {id(parameter): parameter for parameter in policy.parameters()})
    plain, _ = sampler(policy)
    compile_blocks(shared)
    sample, noise = sampler(shared)
    first = seconds(sample, device)
    yield Row("first compiled chunk", first, "s", "with the making of its kernels")
    sample()
    yield latency_row("a chunk, compiled blocks", sample, device)
    error = (sample() - plain()).abs().max().item()
    yield Row("a chunk, compiled blocks: largest difference to eager", error, "", "bfloat16")
    yield from graph_rows("a chunk, compiled blocks in a CUDA graph", sample, noise, device)


def sampler(policy: HyVLAPolicy) -> tuple[Sample, Tensor]:
    """Sampling from one random observation, and the noise that it starts from."""
    torch.manual_seed(1)
    observation = random_batch(policy, 1, num_real=1).observation
    assert observation is not None
    noise = policy.sample_noise(1, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def sample() -> Tensor:
        return policy.sample_actions(policy.encode(observation), noise)

    return sample, noise


def latency_row(what: str, sample: Sample, device: str, note: str = "") -> Row:
    """Median; the 95th percentile goes to the note."""
    sample()
    times = sorted(seconds(sample, device) for _ in range(ROUNDS[device]))
    slow = times[int(0.95 * (len(times) - 1))]
    words = f"95 % within {1e3 * slow:.4g} ms, n = {len(times)}"
    return Row(what, 1e3 * statistics.median(times), "ms", f"{note}; {words}" if note else words)


def graph_rows(what: str, sample: Sample, noise: Tensor, device: str) -> Iterator[Row]:
    """Latency of the graph, and whether it gives on other noise the bits that the same kernels give without it."""
    if device == "cpu":
        yield skipped(what, NEEDS_CUDA)
        return
    replay = graphed(sample)
    yield latency_row(what, replay, device)
    noise.neg_()
    difference = (replay().clone() - sample()).abs().max().item()
    yield Row(f"{what}: largest difference on other noise", difference, "", "to the same kernels without it")
