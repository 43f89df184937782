"""What a preference step costs beside an imitation step on the same batch: time, arithmetic, memory for the backward.

Rows: everything trained (the reference's prefix is stored for the round, and not) and the expert alone (prefixes
stored), on a batch in which every pair is real (the worst case) and on the usual mix of real and identical pairs. The
direct implementation encodes and runs winner and loser of both models one after the other, as a loss written down from
the paper does. Steps are forward, backward and AdamW; kinds take turns, so that other load hits all of them alike.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from algos.batch import ObservationBatch, PreferenceBatch
from algos.flow_matching import FlowMatching
from algos.flowpro import RPRO, rpro_loss
from algos.policy import GROUPS
from envs.options import AtLeastOne, Rounds, Rows
from rl_lab.benchmarks.options import Device, check_device
from rl_lab.config.section import Preset
from rl_lab.learner.optim import adamw
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config

REAL_SHARE = 0.25
"""Real pairs in a usual batch: 80 % of the rows come from pairs, and about 30 % of those are loser states."""


class FourPasses:
    """RPRO as the equations say it: four forward passes, nothing shared but noise and time."""

    def __init__(self, reference: HyVLAPolicy, draws: int) -> None:
        self.reference, self.draws = reference, draws

    def loss(
        self, policy: HyVLAPolicy, batch: PreferenceBatch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss over all rows, identical pairs twice."""
        assert batch.observation is not None
        observation = batch.observation
        rows = torch.arange(len(batch), device=batch.winner.device).repeat_interleave(self.draws)
        noise, times = (sample(len(rows), generator) for sample in (policy.sample_noise, policy.sample_time))

        def one_pass(model: HyVLAPolicy, chunks: Tensor) -> Tensor:
            losses = model.flow_losses(model.encode(observation), chunks[rows], noise, times, rows)
            return losses.view(-1, self.draws).mean(dim=1)

        winner, loser = one_pass(policy, batch.winner), one_pass(policy, batch.loser)
        with torch.no_grad():
            references = one_pass(self.reference, batch.winner), one_pass(self.reference, batch.loser)
        return rpro_loss(winner, loser, *references, beta=1.0, lambda_pro=1.0, lambda_sft=1.0)


@dataclass
class OptimizerStep:
    """One optimizer step of an objective on one batch."""

    policy: HyVLAPolicy
    objective: FlowMatching | RPRO | FourPasses
    batch: PreferenceBatch
    optimizer: torch.optim.Optimizer

    def loss(self) -> Tensor:
        """The loss, always of the same noise and times."""
        return self.objective.loss(self.policy, self.batch, torch.Generator().manual_seed(0))[0]

    def run(self) -> None:
        """Forward, backward, AdamW."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()
        if self.batch.winner.is_cuda:
            torch.cuda.synchronize()


def random_batch(policy: HyVLAPolicy, size: int, num_real: int) -> PreferenceBatch:
    """Random images, states, instructions and chunks, with `num_real` pairs that differ.

    Instructions have half of the tokens that they may have, and no padding: so the processor makes them.
    """
    config = policy.config
    shape = (size, config.num_cameras, 3, config.image_size, config.image_size)
    length = config.tokenizer_max_length // 2
    chunks = torch.randn(2, size, policy.chunk_size, 20)
    identical = torch.arange(size) >= num_real
    observation = ObservationBatch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8),
        state=torch.randn(size, 20),
        tokens=torch.randint(0, 100, (size, length)),
        token_mask=torch.ones(size, length, dtype=torch.bool),
    )
    return PreferenceBatch(
        observation=observation,
        winner=chunks[0],
        loser=torch.where(identical[:, None, None], chunks[0], chunks[1]),
        identical=identical,
        source=torch.where(identical, 2, 0),
        weight_version=torch.zeros(size, dtype=torch.int64),
    ).to(policy.device)


def saved_bytes(loss: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that a forward pass keeps for its backward pass, weights not counted."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not isinstance(tensor._base, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss()
    del result
    return sum(storages.values())


def step_flops(step: OptimizerStep) -> int:
    """Floating-point operations of forward and backward in matrix products and attention; the same on any machine."""
    with FlopCounterMode(display=False) as counter:
        step.loss().backward()
    return counter.get_total_flops()


def measure_seconds(steps: dict[str, OptimizerStep], rounds: int) -> list[dict[str, float]]:
    """Time of each step in each round; the steps take turns, after a round of warm-up."""
    times: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        times.append({})
        for name, step in steps.items():
            start = time.perf_counter()
            step.run()
            times[-1][name] = time.perf_counter() - start
    return times[1:]


def _train_only(policy: HyVLAPolicy, groups: tuple[str, ...]) -> torch.optim.Optimizer:
    """AdamW over the parameters of these groups; the others need no gradient."""
    trained = []
    for name, parameters in policy.parameter_groups().items():
        for parameter in parameters:
            parameter.requires_grad_(name in groups)
        trained += parameters if name in groups else []
    return adamw(trained, lr=1e-6)


def _steps(
    policy: HyVLAPolicy, reference: HyVLAPolicy, groups: tuple[str, ...], draws: int, batch: PreferenceBatch
) -> dict[str, OptimizerStep]:
    """The steps to compare: imitation first, then the preference steps by name."""
    assert batch.observation is not None
    rpro = RPRO(reference, draws_per_sample=draws, groups=groups)
    imitation, direct = FlowMatching(groups, draws), FourPasses(reference, draws)
    with torch.no_grad():
        own, other = policy.encode(batch.observation), reference.encode(batch.observation)
    plan: dict[str, tuple[FlowMatching | RPRO | FourPasses, PreferenceBatch]]
    if groups == GROUPS:
        stored = replace(batch, reference_prefix=other)
        plan = {"sft": (imitation, batch), "rpro": (rpro, stored), "rpro, reference encoded": (rpro, batch)}
    else:
        stored = replace(batch, prefix=own)
        plan = {"sft": (imitation, stored), "rpro": (rpro, stored)}
    plan["four passes"] = (direct, batch)
    optimizer = _train_only(policy, groups)
    return {name: OptimizerStep(policy, objective, rows, optimizer) for name, (objective, rows) in plan.items()}


def run(
    preset: Preset = "nano",
    batch: Rows = 64,
    steps: Rounds = 7,
    draws: AtLeastOne[Rows] = (1, 4),
    device: Device = "cpu",
) -> list[dict[str, Any]]:
    """Rows of the table: one for each kind of step, what is trained, draws per sample and share of real pairs.

    `time_ratio` (median of the rounds' ratios), `flop_ratio` and `memory_ratio` are over the imitation step, "sft", of
    the same batch; `saved_mb` is what the forward pass keeps for the backward pass.
    """
    check_device(device)
    torch.manual_seed(0)
    with torch.device(device):
        policy = HyVLAPolicy(preset_config(preset))
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    rows = []
    for groups in (GROUPS, ("expert",)):
        for num_draws in draws:
            for num_real in (batch, round(REAL_SHARE * batch)):
                compared = _steps(policy, reference, groups, num_draws, random_batch(policy, batch, num_real))
                rounds = measure_seconds(compared, steps)
                flops = {name: step_flops(step) for name, step in compared.items()}
                memory = {name: saved_bytes(step.loss) for name, step in compared.items()}
                rows += [
                    {
                        "preset": preset,
                        "trained": "everything" if groups == GROUPS else "expert",
                        "batch": batch,
                        "draws": num_draws,
                        "real_share": num_real / batch,
                        "step": name,
                        "ms": 1e3 * statistics.median(times[name] for times in rounds),
                        "time_ratio": statistics.median(times[name] / times["sft"] for times in rounds),
                        "flop_ratio": flops[name] / flops["sft"],
                        "saved_mb": memory[name] / 2**20,
                        "memory_ratio": memory[name] / memory["sft"],
                    }
                    for name in compared
                ]
    return rows
