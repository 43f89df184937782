"""From a policy to its vision-language model and back: the same modules under the other class and config."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.images import ImageProcessor
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.sizes import MERGE
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from rl_lab.model.vlm_config import HyVLMConfig


def vlm_config(config: HyVLAConfig) -> HyVLMConfig:
    """Config of a policy's vision-language side; its vision section is true even where the policy's copy is stale."""
    stated = {
        key: value for key, value in (config.vlm_config_dict or {}).items() if key not in ("architectures", "dtype")
    }
    sizes = config.vision_sizes
    vision = (stated.pop("vision_config", None) or {}) | {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": sizes.mlp,
        "patch_size": sizes.patch_size,
        "position_grid": sizes.position_grid,
        "max_image_size": sizes.position_grid * sizes.patch_size,
    }
    return HyVLMConfig(**stated | {"vision_config": vision, "special_token_ids": config.special_token_ids})


def policy_config(config: HyVLMConfig, **fields: Any) -> HyVLAConfig:
    """Config of a policy around a vision-language model; `fields` are those of the action side."""
    sizes = config.vision_sizes
    return HyVLAConfig(
        vlm_config_dict=config.to_diff_dict(),
        special_token_ids=config.special_token_ids,
        vision_width=sizes.width,
        vision_depth=sizes.depth,
        vision_heads=sizes.num_heads,
        vision_mlp=sizes.mlp,
        vision_patch_size=sizes.patch_size,
        vision_position_grid=sizes.position_grid,
        **fields,
    )


def vlm_from_policy(policy: HyVLAPolicy) -> HunYuanVLMoTForConditionalGeneration:
    """The policy's vision-language side as a model of its own. The weights are shared, not copied."""
    with torch.device("meta"):
        vlm = HunYuanVLMoTForConditionalGeneration(vlm_config(policy.config))
    vlm.model = policy.model.vlm
    return vlm.train(policy.training)


def policy_from_vlm(vlm: HunYuanVLMoTForConditionalGeneration, **fields: Any) -> HyVLAPolicy:
    """A policy with new action weights around a vision-language model, whose weights it copies.

    `fields` are those of `HyVLAConfig` that concern cameras, actions and the expert.
    """
    policy = HyVLAPolicy(policy_config(vlm.config, **fields))
    policy.to(device=vlm.device, dtype=vlm.dtype)  # type: ignore[call-arg]  # wrapped by transformers
    policy.model.vlm.load_state_dict(vlm.model.state_dict())
    return policy.train(vlm.training)


def vlm_processor(config: HyVLAConfig, tokenizer: PreTrainedTokenizerFast) -> HunYuanVLMoTProcessor:
    """Processor for the vision-language side of a policy: pictures of one token up to the policy's own image size."""
    cell = MERGE * config.vision_patch_size
    return HunYuanVLMoTProcessor(
        ImageProcessor(config.vision_patch_size, MERGE, cell**2, config.image_size**2), tokenizer
    )
