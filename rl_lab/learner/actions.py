"""The action side's training stages as plans: which policy starts, what it learns from, by which objective.

A plan is plain settings and folders, so that it travels to the learner's process, which builds the rest there. SFT
starts from a policy made here, which says how it reads the time of an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from algos.chunks import Timing
from algos.flow_matching import FlowMatching, is_frozen_prefix
from algos.methods import POSITIVE, Method
from algos.objective import Objective
from algos.policy import Policy
from envs.types import Episode
from rl_lab.common.errors import UserError
from rl_lab.common.seeding import integer
from rl_lab.config.actions import ObjectiveConfig, OptimiseConfig, SFTConfig
from rl_lab.config.section import ModelConfig
from rl_lab.learner.auxiliary import vision_heads
from rl_lab.learner.dtype import FromModel
from rl_lab.learner.plans import Parts, RoundPlan, trainable
from rl_lab.model.checkpoint import CheckpointInfo, load_policy, save_policy
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.lora import Adapted, BaseWeights
from rl_lab.model.norm_stats import ActionStats
from rl_lab.model.policies.own import make_own, own_spec
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.sharding import compile_blocks
from rl_lab.records.action_batches import demonstrations, fit_processor, joined_truth, shared_layout
from rl_lab.records.action_datasets import Dataset, DemonstrationStream, encode_rows, preference_data
from rl_lab.records.episodes import read_episodes, read_pairs


@dataclass
class Start:
    """Where SFT begins."""

    policy: Any
    """An `algos.policy.Policy`."""
    processor: PolicyProcessor | None
    """None where statistics must be fitted: a preset, or a checkpoint that gets other chunks."""
    info: CheckpointInfo
    timing: Timing


def sized_config(model: ModelConfig) -> HyVLAConfig:
    """Sizes of the policy with the options of the run; ValueError if they cannot work together."""
    sizes, has_absolute = _stored(model)
    sizes.update(model.options() | model.chunk_options(sizes.n_action_steps, has_absolute))
    sizes.check()
    if model.memory is not None and sizes.spacetime_layer_stride > sizes.vision_depth:
        raise ValueError(
            f"memory: frames meet in every {sizes.spacetime_layer_stride}th block, but the vision tower has "
            f"{sizes.vision_depth}; set model.memory.layer_stride={sizes.vision_depth}"
        )
    return sizes


def _stored(model: ModelConfig) -> tuple[HyVLAConfig, bool]:
    """Sizes of the preset or of the checkpoint, and whether half of its action tokens are absolute poses."""
    if model.path is None:
        return preset_config(model.preset), False
    sizes, stats = HyVLAConfig.from_pretrained(model.path), ActionStats.find(Path(model.path))
    return sizes, stats is not None and stats.has_absolute and stats.num_tokens == sizes.n_action_steps


def num_commands(model: ModelConfig) -> int:
    """Commands of a chunk of the policy."""
    if model.code is not None:
        return own_spec(model).chunk_size
    sizes, has_absolute = _stored(model)
    return model.chunk_size or sizes.n_action_steps // (2 if has_absolute else 1)


def starting_policy(model: ModelConfig, seed: int, stride: int, demos: Sequence[Episode] = ()) -> Start:
    """A preset with random weights of the seed, or a checkpoint with its processor; with the configured options. One of
    one's own is made for what the demonstrations show, without a checkpoint."""
    if model.code is not None:
        return _own_start(model, model.code, seed, stride, demos)
    sizes = sized_config(model)
    if model.path is None:
        torch.manual_seed(integer(seed, "initialisation"))
        policy, processor, info = HyVLAPolicy(sizes), None, CheckpointInfo(weight_version=0, steps=0)
    else:
        policy, stored, info = load_policy(Path(model.path))
        same = sizes.n_action_steps == policy.config.n_action_steps
        policy.config.update(model.options() | {"chunk_size": sizes.chunk_size, "n_action_steps": sizes.n_action_steps})
        policy.config.check()
        stored.config = policy.config
        processor = stored if same and stored.has_stats and stored.num_commands == num_commands(model) else None
    if model.named_dtype is not None:
        policy.to(getattr(torch, model.named_dtype))
    if model.memory is not None:
        info = replace(info, history=model.memory.frames, history_interval=model.memory.interval)
    return _start(policy, processor, info, model, stride)


def _own_start(model: ModelConfig, code: str, seed: int, stride: int, demos: Sequence[Episode]) -> Start:
    if model.path is not None:
        policy, processor, info = load_policy(Path(model.path), code)
        return _start(policy, processor if processor.has_stats else None, info, model, stride)
    truth = joined_truth([one.truth for one in demos]) if model.reads_truth else None
    if model.reads_truth and truth is None:
        raise UserError(
            "model.preset is state, but the demonstrations lack the simulator's truth, or have it in several sizes; "
            "use one task of a simulator that gives it"
        )
    spec = own_spec(
        model, shared_layout(demos), demos[0].images.shape[-2], truth_size=0 if truth is None else truth.shape[1]
    )
    info = CheckpointInfo(weight_version=0, steps=0)
    if model.memory is not None:
        info = replace(info, history=model.memory.frames, history_interval=model.memory.interval)
    made: Any = make_own(code, spec, seed)
    if truth is not None:
        made.learn_truth(truth)
    return _start(made, None, info, model, stride)


def _start(
    policy: Any, processor: PolicyProcessor | None, info: CheckpointInfo, model: ModelConfig, stride: int
) -> Start:
    info = replace(info, first_slot=model.first_slot or info.first_slot)
    return Start(policy, processor, info, info.timing(num_commands(model), stride))


@dataclass(frozen=True)
class SFTPlan(FromModel):
    """Imitation of the demonstrations, starting from a preset's random weights or from a checkpoint."""

    model: ModelConfig
    settings: SFTConfig
    demos: Path
    stride: int
    """Recorded steps of the demonstrations between two commands."""
    seed: int

    name = "sft"

    def build(self, device: str) -> Parts:
        """See `DataPlan`."""
        episodes = read_episodes(self.demos)
        return sft_parts(self, starting_policy(self.model, self.seed, self.stride, episodes), episodes, device)


@dataclass(frozen=True)
class OptimisePlan(RoundPlan):
    """One round of a method, starting from a policy of the lab."""

    method: str
    round: int
    settings: OptimiseConfig
    objective: ObjectiveConfig
    mix: tuple[float, ...]
    policy: Path
    sft: Path
    demos: Path
    stride: int
    """Recorded steps of the demonstrations between two commands."""
    pairs: tuple[Path, ...]
    """Folders of the preference pairs of rounds 1, 2, ..., this one's last; empty for methods that use none."""
    seed: int
    ranked: Path | None = None
    """Folder of pairs of ranked chunks; None without any."""
    code: str | None = None
    """The class of a policy of one's own."""

    def build(self, device: str) -> Parts:
        """See `DataPlan`."""
        method, settings, groups = self.objective.row(self.method), self.settings, self.settings.train
        policy, processor, info = load_policy(self.policy, self.code)
        policy.to(device)
        timing = info.timing(processor.num_commands, self.stride)
        data: Dataset = preference_data(
            method,
            [read_pairs(folder) for folder in self.pairs],
            demonstrations(read_episodes(self.demos), timing),
            processor,
            timing,
            mix=self.mix if self.pairs else [1.0],
            batch_size=settings.batch_size,
            seed=integer(self.seed, "optimise_rows", self.round),
            ranked=[] if self.ranked is None else read_pairs(self.ranked),
        )
        trained = trainable(policy, settings, groups, integer(self.seed, "lora", self.round))
        reference = _reference(self, trained, device) if method.needs_reference else None
        store_prefixes(data, trained, reference, settings)
        if settings.compile:  # afterwards, because prefixes are stored once, and steps are many
            compile_blocks(policy)
        objective = method_objective(method, settings, self.objective, reference)
        done = replace(
            info,
            weight_version=self.round + 1,
            steps=info.steps + settings.steps,
            prompt_suffix=POSITIVE if method.rows == "labelled" else "",
        )
        return Parts(trained, objective, data, lambda folder: save_policy(folder, policy, processor, done))


def sft_parts(plan: SFTPlan, start: Start, episodes: list[Episode], device: str) -> Parts:
    """What imitation of the demonstrations needs, from this policy on. UserError as `vision_heads`."""
    settings = plan.settings
    policy, info = start.policy.to(device), start.info
    groups = tuple(policy.parameter_groups())
    layout = shared_layout(episodes)
    keeps = start.processor is not None and settings.statistics == "checkpoint" and policy.config.layout.is_like(layout)
    if not policy.config.layout.is_like(layout):
        policy.config.learn(layout)
    if layout.numbers == "raw" and info.first_slot == "current":
        raise UserError("first_slot is current, but the state holds no command where numbers are raw; set it to next")
    processor = (
        start.processor
        if keeps
        else fit_processor(policy.config, episodes, start.timing, getattr(policy, "token_ids", None))
    )
    assert processor is not None
    data = DemonstrationStream(
        episodes,
        processor,
        start.timing,
        batch_size=settings.batch_size,
        seed=integer(plan.seed, "sft_rows"),
        augmented=settings.augment,
    )
    heads = vision_heads(settings, policy, data, plan.seed) if settings.auxiliary else []
    objective = FlowMatching(groups, settings.draws_per_sample, [head.to(device) for head in heads])
    trained = trainable(policy, settings, groups, integer(plan.seed, "lora"))
    if settings.compile:
        compile_blocks(policy)
    done = replace(info, weight_version=1, steps=settings.steps)
    return Parts(trained, objective, data, lambda folder: save_policy(folder, policy, processor, done))


def method_objective(method: Method, settings: OptimiseConfig, weights: ObjectiveConfig, reference: Any) -> Objective:
    """The loss of a method with its weights; `reference` is None where it needs none."""
    return method.objective(
        groups=settings.train,
        draws_per_sample=settings.draws_per_sample,
        reference=reference,
        **(weights.settings if method.code else weights.model_dump(include={"beta", "lambda_pro", "lambda_sft"})),
    )


def _reference(plan: OptimisePlan, policy: Policy | Adapted, device: str) -> Policy | BaseWeights:
    """The frozen policy of the implicit rewards; no copy where it is what this round's adapters sit on."""
    folder = {"previous": plan.policy, "sft": plan.sft}[plan.objective.reference]
    if isinstance(policy, Adapted) and folder == plan.policy:
        return policy.reference
    reference = load_policy(folder, plan.code)[0].eval().requires_grad_(False)
    reference.to(device)
    return reference


def store_prefixes(
    data: Dataset,
    policy: Any,
    reference: Policy | BaseWeights | None,
    settings: OptimiseConfig,
) -> None:
    """Compute once what does not change in this round: all prefixes, or only the reference's."""
    policy.eval()
    rows, limit = data.rows, settings.stored_prefix_gib
    if is_frozen_prefix(settings.train):
        rows.prefix = encode_rows(policy, rows.observation, limit)
        rows.observation = rows.observation if rows.prefix is None else None
    elif reference is not None:
        rows.reference_prefix = encode_rows(reference, rows.observation, limit)
