"""Small policies and random inputs, the same for the same seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from algos.batch import ObservationBatch
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config


def make_policy(seed: int = 0, **overrides: Any) -> HyVLAPolicy:
    """A nano policy with random weights."""
    torch.manual_seed(seed)
    return HyVLAPolicy(preset_config("nano", **overrides))


def make_observations(policy: HyVLAPolicy, num: int, seed: int = 0) -> ObservationBatch:
    """Random images, states, and instructions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    config = policy.config
    size, length = config.image_size, config.tokenizer_max_length
    images = torch.randint(0, 256, (num, config.num_cameras, 3, size, size), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(100, config.vlm_sizes.vocab, (num, length), generator=generator)
    lengths = torch.randint(1, length + 1, (num, 1), generator=generator)
    return ObservationBatch(images, torch.randn(num, 20, generator=generator), tokens, torch.arange(length) < lengths)


def padded(observation: ObservationBatch, length: int, token: int = 0) -> ObservationBatch:
    """The observation with `token` behind its instructions up to `length`, as the released code pads them."""
    missing = length - observation.tokens.shape[1]
    tokens = F.pad(observation.tokens, (0, missing), value=token)
    return replace(observation, tokens=tokens, token_mask=F.pad(observation.token_mask, (0, missing)))
