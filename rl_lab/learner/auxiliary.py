"""The auxiliary losses of SFT: what vision tokens have to tell, and the stand-ins for a teacher that says it."""

from __future__ import annotations

from typing import Any

import torch

from algos.auxiliary import (
    MERGED,
    GlobalFeature,
    NextCode,
    PoseProbe,
    VisionHead,
    current_views,
    fit_codebook,
    fit_components,
    thumbnails,
    token_patches,
)
from rl_lab.common.errors import UserError
from rl_lab.common.seeding import integer
from rl_lab.config.actions import SFTConfig
from rl_lab.records.action_datasets import DemonstrationStream

STATES = 256
"""Of the demonstrations, whose pictures the codebook and the components are fitted to."""


def vision_heads(settings: SFTConfig, policy: Any, data: DemonstrationStream, seed: int) -> list[VisionHead]:
    """Those with a weight. UserError for demonstrations without truth, or pictures that have too little to tell."""
    hidden, heads = policy.config.vlm_sizes.hidden, list[VisionHead]()
    if settings.probe_weight > 0:
        if data.truth_size is None:
            raise UserError("sft.probe_weight needs demonstrations with ground truth of the simulator; set it to 0")
        torch.manual_seed(integer(seed, "probe"))
        heads.append(PoseProbe(hidden, data.truth_size, settings.probe_weight))
    if settings.code_weight > 0:
        if policy.config.token_grid < 2:
            raise UserError("sft.code_weight needs pictures of several tokens, but here they have one; set it to 0")
        patch_size = policy.config.image_size // (MERGED * policy.config.token_grid)
        patches = token_patches(_pictures(data, settings.batch_size), patch_size).flatten(0, -2)
        try:
            centres = fit_codebook(patches, settings.num_codes, integer(seed, "codebook"))
        except ValueError as error:
            raise UserError(f"sft.num_codes: {error}") from error
        torch.manual_seed(integer(seed, "codes"))
        heads.append(NextCode(hidden, centres, settings.code_weight))
    if settings.global_weight > 0:
        try:
            components = fit_components(thumbnails(_pictures(data, settings.batch_size)))
        except ValueError as error:
            raise UserError(f"sft.global_weight: {error}; set it to 0") from error
        torch.manual_seed(integer(seed, "global"))
        heads.append(GlobalFeature(hidden, *components, settings.global_weight))
    return heads


def _pictures(data: DemonstrationStream, batch_size: int) -> torch.Tensor:
    """Those of the first batches, of all cameras, as the policy sees them, [N, 3, S, S]."""
    batches = range(-(-STATES // batch_size))
    observations = (data.batch(step).observation for step in batches)
    return torch.cat([current_views(one).flatten(0, 1) for one in observations if one is not None])
