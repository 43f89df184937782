"""The policy that SFT starts from, and how it reads the time of an episode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from algos.chunks import Timing
from rl_lab.config.model import ModelConfig
from rl_lab.learning.checkpoint import CheckpointInfo, load_policy
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.norm_stats import ActionStats
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.model.processor import PolicyProcessor
from rl_lab.seeding import integer


@dataclass
class Start:
    """Where SFT begins."""

    policy: HyVLAPolicy
    processor: PolicyProcessor | None
    """None where statistics must be fitted: a preset, or a checkpoint that gets other chunks."""
    info: CheckpointInfo
    timing: Timing


def _stored(model: ModelConfig) -> tuple[HyVLAConfig, bool]:
    """Sizes of the preset or of the checkpoint, and whether half of its action tokens are absolute poses."""
    if model.path is None:
        return preset_config(model.preset), False
    sizes, stats = HyVLAConfig.from_pretrained(model.path), ActionStats.find(Path(model.path))
    return sizes, stats is not None and stats.has_absolute and stats.num_tokens == sizes.n_action_steps


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


def num_commands(model: ModelConfig) -> int:
    """Commands of a chunk of the policy."""
    sizes, has_absolute = _stored(model)
    return model.chunk_size or sizes.n_action_steps // (2 if has_absolute else 1)


def starting_policy(model: ModelConfig, seed: int, stride: int) -> Start:
    """A preset with random weights of the seed, or a checkpoint with its processor; with the configured options."""
    sizes = sized_config(model)
    if model.path is None:
        torch.manual_seed(integer(seed, "initialisation"))
        policy, processor, info = HyVLAPolicy(sizes), None, CheckpointInfo(weight_version=0, steps=0)
    else:
        policy, stored, info = load_policy(Path(model.path))
        same = sizes.n_action_steps == policy.config.n_action_steps
        policy.config.update(model.options() | {"chunk_size": sizes.chunk_size, "n_action_steps": sizes.n_action_steps})
        policy.config.check()
        processor = stored if same and stored.has_stats and stored.num_commands == num_commands(model) else None
    if model.dtype is not None:
        policy.to(getattr(torch, model.dtype))
    if model.memory is not None:
        info = replace(info, history=model.memory.frames, history_interval=model.memory.interval)
    info = replace(info, first_slot=model.first_slot or info.first_slot)
    return Start(policy, processor, info, info.timing(num_commands(model), stride))
