"""Policy gradients: how a policy explores, and a round of learning from its episodes as a plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from algos.batch import ExploredBatch, join_rows
from algos.grpo import group_advantages
from algos.methods import Sampler
from algos.mixing import MixedSampler
from algos.policy import Policy
from algos.policy_gradients.clipped import sample_path
from algos.policy_gradients.flow_grpo import sde_transition
from algos.policy_gradients.reinflow import NoiseNet, noisy_transition
from envs.types import SIMULATOR_ERROR, Episode
from rl_lab.common.errors import RunError
from rl_lab.common.seeding import integer, torch_stream
from rl_lab.config.actions import ObjectiveConfig, OptimiseConfig
from rl_lab.learner.actions import store_prefixes
from rl_lab.learner.plans import Parts, RoundPlan, trainable
from rl_lab.model.checkpoint import CheckpointInfo, load_policy, save_policy
from rl_lab.model.processor import PolicyProcessor
from rl_lab.records.action_batches import joined_truth
from rl_lab.records.action_datasets import ENCODE_ROWS, StateData
from rl_lab.records.episodes import read_episodes

NOISE_FILE = "noise.safetensors"
"""Beside the weights of a policy that explores with noise of a learned size: the network of that size."""


@dataclass(frozen=True)
class Exploration:
    """How a policy explores; crosses processes."""

    sampler: Sampler
    steps: int
    """Of denoising."""
    noise: float
    noise_bounds: tuple[float, float]

    def paths(
        self, policy: Any, prefix: Any, state: Tensor, noise: Tensor, draws: Tensor, weights: dict[str, Tensor]
    ) -> Tensor:
        """What denoising goes through from `noise` [B, C, A] by standard normal `draws` [K, B, C, A]; see
        `ExploredBatch.path`. `weights` as in `noise_net`. RunError for a policy without a velocity."""
        if self.sampler == "flow":
            return policy.sample_actions(prefix, noise)[:, None]
        if getattr(policy, "velocity", None) is None:
            raise RunError(f"{type(policy).__name__} has no velocity to explore by; use fpo, which samples as it does")
        velocity = partial(policy.velocity, prefix)
        if self.sampler == "sde":
            return sample_path(sde_transition(velocity, self.noise), noise, draws)
        net = noise_net(policy, self.noise_bounds, weights)
        return sample_path(noisy_transition(velocity, net, state), noise, draws)


def read_noise(folder: Path) -> dict[str, Tensor]:
    """Weights of the network that lies beside a policy's, {} where there is none."""
    return load_file(folder / NOISE_FILE) if (folder / NOISE_FILE).exists() else {}


def noise_net(policy: Policy, bounds: tuple[float, float], weights: dict[str, Tensor]) -> NoiseNet:
    """The network with these weights; without any a new one, which gives the same for all states and times."""
    net = NoiseNet(policy.config.layout.encoded_state_dim, (policy.chunk_size, policy.action_dim), bounds)
    if weights:
        net.load_state_dict(weights)
    return net.to(policy.device)


def advantages(episodes: Sequence[Episode]) -> np.ndarray:
    """Of each episode, its success relative to that of the others from the same start; 0 where all end alike, or where
    an error of the simulator ended it."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, one in enumerate(episodes):
        groups[one.task, one.variant, one.seed].append(place)
    found = np.zeros(len(episodes), dtype=np.float32)
    for places in groups.values():
        outcomes = [np.nan if episodes[p].failure == SIMULATOR_ERROR else float(episodes[p].success) for p in places]
        found[places] = group_advantages(torch.tensor([outcomes]))[0].numpy()
    return found


def explored_rows(episodes: Sequence[Episode], processor: PolicyProcessor, info: CheckpointInfo) -> ExploredBatch:
    """Every decision of the episodes that teach something; of all where none does, whose gradient is 0."""
    gains = advantages(episodes)
    kept = [(one, gain) for one, gain in zip(episodes, gains, strict=True) if gain != 0 or not gains.any()]
    counts = [len(one.frame_steps) for one, _ in kept]
    truth = joined_truth([one.truth for one, _ in kept]) if processor.reads_truth else None
    observation = processor.batch(
        np.concatenate([np.asarray(one.images) for one, _ in kept]),
        np.concatenate([one.poses[one.frame_steps] for one, _ in kept]),
        [info.condition(one.instruction) for one, _ in kept for _ in one.frame_steps],
        truth=truth,
    )
    path = torch.from_numpy(np.concatenate([one.paths for one, _ in kept if one.paths is not None]))
    run = np.concatenate([np.diff(one.frame_steps, append=one.num_steps) for one, _ in kept])
    return ExploredBatch(
        observation,
        path=path,
        advantages=torch.from_numpy(np.repeat([gain for _, gain in kept], counts)),
        state=observation.state,
        executed=executed_numbers(torch.from_numpy(run), processor, path.shape[-1]),
    )


def executed_numbers(run: Tensor, processor: PolicyProcessor, width: int) -> Tensor:
    """Of chunks whose first `run` [B] commands were run, which of their numbers that was: bool [B, C, width]. Where a
    policy predicts every command twice (`PolicyProcessor`) it is both."""
    command = torch.arange(processor.config.n_action_steps) % processor.num_commands
    used = torch.arange(width) < processor.config.layout.encoded_action_dim
    return (command < run[:, None])[:, :, None] & used


@dataclass(frozen=True)
class PolicyGradientPlan(RoundPlan):
    """One round of a policy gradient on episodes of the policy that it starts from."""

    method: str
    round: int
    settings: OptimiseConfig
    objective: ObjectiveConfig
    policy: Path
    explored: Path
    """Folder of the episodes."""
    seed: int
    code: str | None = None
    """The class of a policy of one's own."""

    def build(self, device: str) -> Parts:
        """See `DataPlan`."""
        settings, weights = self.settings, self.objective
        policy, processor, info = load_policy(self.policy, self.code)
        policy.to(device)
        rows = explored_rows(read_episodes(self.explored), processor, info)
        sampler = MixedSampler([len(rows)], [1.0], settings.batch_size, integer(self.seed, "optimise_rows", self.round))
        data = StateData(rows, sampler)
        trained = trainable(policy, settings, settings.train, integer(self.seed, "lora", self.round))
        store_prefixes(data, trained, None, settings)
        torch.manual_seed(integer(self.seed, "noise", self.round))
        net = noise_net(policy, weights.noise_bounds, read_noise(self.policy))
        objective = gradient_objective(weights, self.method, settings, net)
        data.rows = _prepared(objective, trained, data.rows, device, torch_stream(self.learner_seed, "prepare"))
        done = replace(info, weight_version=self.round + 1, steps=info.steps + settings.steps)

        def save(folder: Path) -> None:
            save_policy(folder, policy, processor, done)
            if weights.row(self.method).sampler == "learned":
                save_file({name: value.cpu() for name, value in net.state_dict().items()}, folder / NOISE_FILE)

        return Parts(trained, objective, data, save)


def gradient_objective(weights: ObjectiveConfig, method: str, settings: OptimiseConfig, net: NoiseNet) -> Any:
    """The loss of a policy gradient with its settings."""
    row = weights.row(method)
    assert row.sampler is not None, f"{method} is no policy gradient"
    own: dict[Sampler, dict[str, Any]] = {
        "sde": {"noise": weights.noise},
        "learned": {"noise": net},
        "flow": {"draws": settings.draws_per_sample, "scale": weights.beta},
    }
    given = own[row.sampler] | {"epsilon": weights.epsilon}
    return row.objective(groups=settings.train, draws_per_sample=settings.draws_per_sample, **given)


def _prepared(
    objective: Any, policy: Any, rows: ExploredBatch, device: str, generator: torch.Generator
) -> ExploredBatch:
    """The rows with what they are under the policy that explored, computed a few at a time."""
    policy.eval()
    parts = [
        objective.prepare(policy, rows.select(some).to(device), generator).to("cpu")
        for some in torch.arange(len(rows)).split(ENCODE_ROWS)
    ]
    draws = None if parts[0].draws is None else join_rows([part.draws for part in parts])
    return replace(rows, old_logprobs=torch.cat([part.old_logprobs for part in parts]), draws=draws)
