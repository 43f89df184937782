"""Does a resumed learner have the bits of the unbroken one, and one FSDP2 rank the steps of a plain one?"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from algos.flow_matching import FlowMatching
from algos.policy import GROUPS
from rl_lab.benchmarks.gpu.steps import make_batch, make_learner, make_policy, turns
from rl_lab.benchmarks.gpu.table import Row
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.model.sharding import shard, whole_tensor

STEPS = 4
"""The state is saved after half of them."""


def resumed(device: str, preset: str, deterministic: bool) -> Iterator[Row]:
    """Tensors that differ between runs of the same seed, and between an unbroken and a resumed one.

    `deterministic` asks torch for kernels whose sums have one order; one that has none fails by its name.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts; deterministic products ask for it
    torch.use_deterministic_algorithms(deterministic)
    note = "deterministic kernels" if deterministic else "torch's own choice of kernels"
    policy = make_policy(device, preset)
    batches = [make_batch(policy, preset) for _ in range(STEPS)]
    one, other = (_run(make_learner(device, preset, lora=False), batches) for _ in range(2))
    yield Row(f"two runs of {STEPS} steps: tensors that differ", _differing(one, other), "", note)
    half, fresh = (make_learner(device, preset, lora=False) for _ in range(2))
    _run(half, batches[: STEPS // 2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learner.pt"
        torch.save(half.state_dict(), path)
        fresh.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    again = _run(fresh, batches[STEPS // 2 :])
    yield Row(f"resumed after {STEPS // 2} of {STEPS} steps: tensors that differ", _differing(one, again), "", note)


def _run(learner: Learner, batches: Sequence[Any]) -> list[Tensor]:
    """Weights, masters and moments after a step on each batch."""
    for batch in batches:
        learner.step("sft", batch)
    return list(_tensors(learner.state_dict()))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach().cpu().clone()
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _differing(ours: Sequence[Tensor], others: Sequence[Tensor]) -> int:
    return sum(not torch.equal(*pair) for pair in zip(ours, others, strict=True))


def one_rank(device: str, preset: str) -> Iterator[Row]:
    """A policy sharded by FSDP2 over a single rank beside the same policy whole: losses, weights and time of steps."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "gloo" if device == "cpu" else "nccl"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield from _sharded_rows(device, preset)
        finally:
            dist.destroy_process_group()


def _sharded_rows(device: str, preset: str) -> Iterator[Row]:
    plain, sharded = make_learner(device, preset, lora=False), Learner(shard(make_policy(device, preset)), seed=0)
    sharded.add("sft", FlowMatching(GROUPS), Optimiser(lr=1e-6, steps=1000))
    batch = make_batch(plain.policy, preset)
    losses = [[learner.step("sft", batch)["loss"] for _ in range(STEPS)] for learner in (plain, sharded)]
    apart = max(abs(one - other) / abs(one) for one, other in zip(*losses, strict=True))
    yield Row(f"largest relative difference of {STEPS} losses", apart, "", f"bfloat16, batch {len(batch)}")
    pairs = zip(plain.policy.parameters(), sharded.policy.parameters(), strict=True)
    weights = max((one - whole_tensor(other)).abs().max().item() for one, other in pairs)
    yield Row("largest difference of a weight after them", weights)
    times = turns({"plain": partial(plain.step, "sft", batch), "sharded": partial(sharded.step, "sft", batch)}, device)
    ratio = statistics.median(turn["sharded"] / turn["plain"] for turn in times)
    yield Row("a step, sharded over whole", ratio, "", "one rank")
