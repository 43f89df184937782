"""From a batch as on the released model cards to a chunk of actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.processor import PolicyProcessor


@torch.inference_mode()
def predict_action(
    policy: HyVLAPolicy,
    processor: PolicyProcessor,
    batch: Mapping[str, Any],
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Normalised action chunks [B, C, 20], float32, of a batch with the released names (`PolicyProcessor.observe`).

    Starts from `noise` [B, C, A], else from `generator`, else from torch's own random state. The batch may be on any
    device. ValueError for a batch with other keys.

        policy = HyVLAPolicy.from_pretrained(folder).to("cuda", torch.bfloat16).eval()
        processor = PolicyProcessor.from_pretrained(folder)
        views = torch.zeros(1, 6, 3, 480, 640)  # [B, K, C, H, W] in [0, 1]; K = 6 frames, the current one last
        batch = {
            "observation.images.top_head": views,
            "observation.images.hand_left": views,
            "observation.images.hand_right": views,
            "observation.state": processor.normalize_state(poses),  # poses [B, 16]: xyz, quaternion wxyz, gripper
            "task": ["pick up the bottle"],
        }
        chunk = predict_action(policy, processor, batch)
        commands = processor.decode(chunk.cpu().numpy(), poses)  # absolute poses [B, H, 16]
    """
    observation = processor.observe(batch).to(policy.device)
    if noise is None:
        noise = policy.sample_noise(len(observation), generator or torch.default_generator)
    return policy.sample_actions(policy.encode(observation), noise.to(policy.device))
