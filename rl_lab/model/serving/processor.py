"""Pictures and prompts for vLLM: the lab's image processor, and the row layout of an image in place of its one token.

A prompt arrives as the chat template writes it, with `S IMG L E` for an image. IMG is replaced by the rows of patches,
each closed by a separator: `S (IMG * w/2, N) * h/2, L E`. The replaced stretch is exactly the image's segment, so it is
declared as a whole, separators included; the model returns the separators' embeddings with those of the patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)

from rl_lab.model.chat import image_tokens
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.conversion import vlm_processor
from rl_lab.model.images import IMAGE_CONFIG, ImageProcessor
from rl_lab.model.serving.config import served_config
from rl_lab.model.tokenizer import ROLES, load_tokenizer


class ImageInfo(BaseProcessingInfo):
    """What vLLM asks about the model's images."""

    @cached_property
    def images(self) -> ImageProcessor:
        """The folder's image processor; of a policy, which has none, that of its vision-language side."""
        config = self.get_hf_config()
        if not isinstance(config, HyVLAConfig) or (Path(self.model_id) / IMAGE_CONFIG).is_file():
            return ImageProcessor.from_pretrained(self.model_id)
        return vlm_processor(config, load_tokenizer(Path(self.model_id))).image_processor

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids of the special tokens by role."""
        return served_config(self.ctx.model_config).special_token_ids

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of images; a video is refused by vLLM."""
        return {"image": None}

    def largest_side(self, num_tokens: int) -> int:
        """Side in pixels of the largest square picture of at most so many tokens, separators included."""
        cells = 1
        while (cells + 1) ** 2 * self.images.cell**2 <= self.images.max_pixels:
            if (cells + 1) * (cells + 2) > num_tokens:
                break
            cells += 1
        return cells * self.images.cell

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Tokens of the largest picture: vLLM sizes its buffers by it."""
        cells = self.largest_side(seq_len) // self.images.cell
        return {"image": cells * (cells + 1)}


class DummyImages(BaseDummyInputsBuilder[ImageInfo]):
    """Inputs of the largest size, for vLLM's memory profile."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Nothing but the images."""
        return ROLES["image"] * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> MultiModalDataDict:
        """Black squares that share the sequence."""
        count = mm_counts.get("image", 0)
        side = self.info.largest_side(seq_len // max(count, 1))
        return {"image": [Image.new("RGB", (side, side))] * count}


class ImagePrompts(BaseMultiModalProcessor[ImageInfo]):
    """Images to patches, and prompts to prompts with the images' rows."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        pictures: Any = hf_data["images"]
        done = [self.info.images(_picture(picture)) for picture in pictures]
        grids = torch.tensor([grid[1:] for _, grid in done])
        return BatchFeature({"patches": [torch.from_numpy(patches) for patches, _ in done], "grids": grids})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "patches": MultiModalFieldConfig.batched("image"),
            "grids": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        if "image" not in mm_items:  # every image of the request came from the processor's cache
            return []
        ids = self.info.ids
        rows: Any = out_mm_kwargs["image"]

        def segment(index: int) -> list[int]:
            return image_tokens(rows[index]["grids"].data.tolist(), ids["image"], ids["row_end"])

        return [PromptReplacement(modality="image", target=[ids["image"]], replacement=segment)]


def _picture(picture: Any) -> Image.Image | np.ndarray:
    """vLLM hands over PIL pictures, or arrays and tensors as the caller gave them."""
    return picture.numpy() if isinstance(picture, torch.Tensor) else picture
