"""The auxiliary losses of a training: what vision tokens have to tell, and the stand-ins for a teacher that says it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from algos.auxiliary import (
    MERGED,
    GlobalFeature,
    NextCode,
    PictureHead,
    PoseProbe,
    SeeingText,
    VisionHead,
    current_views,
    fit_codebook,
    fit_components,
    thumbnails,
    token_patches,
    whole_pictures,
)
from algos.objective import Objective
from rl_lab.common.errors import UserError
from rl_lab.common.seeding import integer
from rl_lab.config.actions import SFTConfig
from rl_lab.config.section import VisionLossesConfig
from rl_lab.model.chat import ImageProcessor
from rl_lab.records.action_datasets import DemonstrationStream

FIRST_ROWS = 256
"""Whose pictures codebook and components, and random weights of a language model, are fitted to."""


def vision_heads(settings: SFTConfig, policy: Any, data: DemonstrationStream, seed: int) -> list[VisionHead]:
    """Those with a weight. UserError for demonstrations without truth, and as `picture_heads`."""
    heads = list[VisionHead]()
    if settings.probe_weight > 0:
        if data.truth_size is None:
            raise UserError("sft.probe_weight needs demonstrations with ground truth of the simulator; set it to 0")
        torch.manual_seed(integer(seed, "probe"))
        heads.append(PoseProbe(policy.config.vlm_sizes.hidden, data.truth_size, settings.probe_weight))
    return heads + picture_heads(settings, "sft", policy, lambda: [_pictures(data, settings.batch_size)], seed)


def picture_heads(
    settings: VisionLossesConfig, section: str, model: Any, pictures: Callable[[], list[torch.Tensor]], seed: int
) -> list[PictureHead]:
    """Those with a weight, fitted to pictures [N, 3, H, W] in [0, 1] of several sizes. UserError, naming the key of the
    section, where these have too little to tell."""
    heads, hidden = list[PictureHead](), model.config.vlm_sizes.hidden
    if not settings.code_weight and not settings.global_weight:
        return heads
    shown, patch_size = pictures(), model.config.vision_sizes.patch_size
    if not shown:
        weight = next(name for name in settings.auxiliary if name != "probe_weight")
        raise UserError(f"{section}.{weight} needs pictures, but the first rows have none; set it to 0")
    if settings.code_weight > 0:
        if all(one[0, 0].numel() == (MERGED * patch_size) ** 2 for one in shown):
            raise UserError(
                f"{section}.code_weight needs pictures of several tokens, but here they have one; set it to 0"
            )
        patches = torch.cat([token_patches(one, patch_size).flatten(0, -2) for one in shown])
        try:
            centres = fit_codebook(patches, settings.num_codes, integer(seed, "codebook"))
        except ValueError as error:
            raise UserError(f"{section}.num_codes: {error}") from error
        torch.manual_seed(integer(seed, "codes"))
        heads.append(NextCode(hidden, centres, settings.code_weight))
    if settings.global_weight > 0:
        try:
            components = fit_components(torch.cat([thumbnails(one) for one in shown]))
        except ValueError as error:
            raise UserError(f"{section}.global_weight: {error}; set it to 0") from error
        torch.manual_seed(integer(seed, "global"))
        heads.append(GlobalFeature(hidden, *components, settings.global_weight))
    return heads


def seeing(
    text: Objective,
    settings: VisionLossesConfig,
    section: str,
    model: Any,
    images: Callable[[], Iterable[np.ndarray]],
    processor: ImageProcessor,
    seed: int,
) -> Objective:
    """An objective on text with the losses that have a weight, fitted to images uint8 [H, W, 3]; itself without any.

    UserError as `picture_heads`.
    """
    heads = picture_heads(settings, section, model, lambda: [_cut(image, processor) for image in images()], seed)
    device = model.get_input_embeddings().weight.device
    return SeeingText(text, [head.to(device) for head in heads]) if heads else text


def _cut(image: np.ndarray, processor: ImageProcessor) -> torch.Tensor:
    """An image as the model sees it, [1, 3, H, W] in [0, 1]."""
    patches, (_, height, _) = processor(image)
    return (whole_pictures(torch.from_numpy(patches).unflatten(0, (1, -1, MERGED**2)), height // MERGED) + 1) / 2


def _pictures(data: DemonstrationStream, batch_size: int) -> torch.Tensor:
    """Those of the first batches, of all cameras, as the policy sees them, [N, 3, S, S]."""
    batches = range(-(-FIRST_ROWS // batch_size))
    observations = (data.batch(step).observation for step in batches)
    return torch.cat([current_views(one).flatten(0, 1) for one in observations if one is not None])
