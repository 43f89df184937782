"""Memory and disk that a run needs at the very least, counted before it begins: what cannot fit is refused.

Memory is that of one learner: weights, and for trained ones float32 gradients, AdamW's two moments and, beside weights
of another type, float32 masters; ranks share it. Disk is a checkpoint for every stage that makes one and is not stored
yet, and one saved state of the largest. Not counted, so a run needs more: activations, engines, simulators, adapters,
episodes, pictures, rollouts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from rl_lab.config.schema import RunConfig
from rl_lab.config.section import ModelConfig
from rl_lab.graph.nodes import Node
from rl_lab.graph.store import Store
from rl_lab.learner.actions import sized_config
from rl_lab.model.checkpoint import checkpoint_dtype, is_policy, vlm_config
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from rl_lab.stages.own_code import own_policy
from rl_lab.workers.placement import joins_cluster

GIB = 2**30
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Needs:
    """Bytes, at least, and which stage needs most memory."""

    memory: int = 0
    stage: str = ""
    disk: int = 0

    def __str__(self) -> str:
        return (
            f"needs at least {self.memory / GIB:.2f} GiB of memory for a learner and {self.disk / GIB:.2f} GiB of disk "
            "for checkpoints"
        )


@lru_cache(maxsize=8)
def _numbers(settings: str, of_policy: bool) -> tuple[dict[str, int], int]:
    """Numbers of a model (`ModelConfig` as JSON) by parameter group, all of it under "", and the bytes of each. No
    memory is taken."""
    model = ModelConfig.model_validate_json(settings)
    folder = None if model.path is None else Path(model.path)
    with torch.device("meta"):
        if of_policy or (folder is not None and is_policy(folder)):
            made: Any = HyVLAPolicy(HyVLAPolicy.fitting_config(folder) if folder else sized_config(model))
        elif folder is not None:
            made = HunYuanVLMoTForConditionalGeneration(HunYuanVLMoTForConditionalGeneration.fitting_config(folder))
        else:
            made = HunYuanVLMoTForConditionalGeneration(vlm_config(preset_config(model.preset)))
    dtype = model.named_dtype or ("float32" if folder is None else checkpoint_dtype(folder))
    return _counts(made), getattr(torch, dtype).itemsize


def _counts(made: Any) -> dict[str, int]:
    """Numbers by parameter group, all under ""."""
    groups = {name: sum(p.numel() for p in parameters) for name, parameters in made.parameter_groups().items()}
    return groups | {"": sum(p.numel() for p in made.parameters())}


def _trained(node: Node, config: RunConfig, groups: Mapping[str, int]) -> int:
    """Numbers that a stage trains; of adapters none are counted."""
    section = node.stage.settings(node, config)
    if section is None or section.lora is not None:
        return 0
    return sum(groups.get(name, 0) for name in getattr(section, "train", groups) if name)


def needs(config: RunConfig, nodes: Sequence[Node], hashes: Mapping[str, str], store: Store) -> Needs:
    """Of the stages that are not stored yet."""
    found, largest, written = Needs(), 0, dict[str, int]()
    for node in nodes:
        own = node.config or config
        if not node.stage.has_learner(own) or store.has(hashes[node.name]):
            continue
        if own.policy_code is None:
            groups, width = _numbers(own.model.model_dump_json(), own.learns_actions)
        else:
            groups, width = _counts(own_policy(own)), 4
        trained, weights = _trained(node, own, groups), groups[""] * width
        moments = 0 if getattr(node.stage.settings(node, own), "optimiser", "") == "adafactor" else 8
        state = trained * (moments + 4 * (width != 4))
        memory = (weights + state + 4 * trained) // config.placement.ranks
        written[hashes[node.name]], largest = weights, max(largest, weights + state)
        if memory > found.memory:
            found = Needs(memory, node.name)
    return Needs(found.memory, found.stage, sum(written.values()) + largest)


def _memory(config: RunConfig) -> tuple[int, str]:
    """Bytes of what learners run on, and its name."""
    if config.placement.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "the GPU"
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return min(physical, int(limit)) if limit.isdecimal() else physical, "this machine"


def lacking_room(config: RunConfig, wanted: Needs, store: Store) -> str | None:
    """One line if the memory or the disk of this machine cannot hold a run; None if they may, or for a cluster."""
    if joins_cluster():
        return None
    memory, owner = _memory(config)
    if wanted.memory > memory:
        return (
            f"{wanted.stage} needs at least {wanted.memory / GIB:.1f} GiB of memory (weights, gradients, moments) but "
            f"{owner} has {memory / GIB:.1f} GiB; take a smaller model, adapters (lora), bfloat16, or more ranks"
        )
    there = next(path for path in (store.root, *store.root.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if wanted.disk > free:
        return (
            f"checkpoints need at least {wanted.disk / GIB:.1f} GiB of disk but {there} has {free / GIB:.1f} GiB free; "
            "free some, or run from a folder on another disk"
        )
    return None
