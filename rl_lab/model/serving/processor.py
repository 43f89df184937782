"""Pictures and prompts for vLLM, and how it must be set up for this model.

A prompt arrives as the chat template writes it, with `S IMG L E` for an image. IMG is replaced by the rows of patches,
each closed by a separator: `S (IMG * w/2, N) * h/2, L E`. The replaced stretch is exactly the image's segment, so it is
declared as a whole, separators included; the model returns the separators' embeddings with those of the patches. Images
are processed by the lab's own processor.

vLLM reads two things before it makes a model: the sizes of the language tower, from the config, and a hook by
architecture, which may change the engine's settings. The hook makes plain `vllm.LLM(DIR)` and `vllm serve DIR` right
without any option; `check_engine` refuses, when the model is made, settings that would give wrong numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PretrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from vllm.config import ModelConfig, VllmConfig
from vllm.inputs import MultiModalDataDict
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from rl_lab.model.chat import IMAGE_CONFIG, ImageProcessor, image_tokens
from rl_lab.model.checkpoint import vlm_processor
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.loading import checkpoint_folder, checkpoint_shapes, complete_vlm_config
from rl_lab.model.tokenizer import ROLES, load_tokenizer
from rl_lab.model.vlm_config import HyVLMConfig, HyVLMTextConfig

SCHEDULER = "rl_lab.model.serving.attention.SegmentScheduler"


class MoTSizes(ModelArchConfigConvertorBase):
    """Sizes of the language tower of either config; images are bidirectional ranges ("mm prefix") to the engine."""

    def __init__(
        self, hf_config: PretrainedConfig, hf_text_config: PretrainedConfig, revision: str | None = None
    ) -> None:
        nested = getattr(hf_config, "vlm_config_dict", None)
        text = HyVLMTextConfig(**(nested.get("text_config") or nested)) if nested else hf_text_config
        super().__init__(hf_config, text, revision)

    def is_mm_prefix_lm(self, supports_multimodal: bool = True) -> bool:
        """True unless the engine takes text alone: the attention needs to be told where images are."""
        return supports_multimodal


class MoTSettings(VerifyAndUpdateConfig):
    """The hook: a prompt is computed in one step, so that none cuts an image, and no graph is captured, because the
    numbers of patches and of text tokens differ from step to step."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Set what the model needs; what the user chose otherwise is overruled."""
        scheduler = vllm_config.scheduler_config
        scheduler.scheduler_cls = SCHEDULER
        scheduler.async_scheduling = False
        scheduler.enable_chunked_prefill = False
        scheduler.long_prefill_token_threshold = 0
        longest = vllm_config.model_config.max_model_len
        scheduler.max_num_batched_tokens = max(scheduler.max_num_batched_tokens, longest)
        scheduler.max_num_encoder_input_tokens = max(scheduler.max_num_encoder_input_tokens, longest)
        scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, longest)

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Run eagerly."""
        model_config.enforce_eager = True


def check_engine(vllm_config: VllmConfig) -> None:
    """ValueError, naming the setting, for an engine that would cut images, ignore a request, or capture graphs."""
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    longest = vllm_config.model_config.max_model_len
    problems = {
        f"scheduler_cls is {scheduler.scheduler_cls}; this model needs {SCHEDULER}": (
            scheduler.scheduler_cls != SCHEDULER
        ),
        "chunked prefill may cut images; leave out --enable-chunked-prefill and --long-prefill-token-threshold": (
            scheduler.enable_chunked_prefill or scheduler.long_prefill_token_threshold > 0
        ),
        f"max_num_batched_tokens {scheduler.max_num_batched_tokens} is below max_model_len {longest}; an image would "
        "not fit a step, so raise the one or lower the other": scheduler.max_num_batched_tokens < longest,
        "enforce_eager is off; this model routes tokens by their kind, so add --enforce-eager": (
            not vllm_config.model_config.enforce_eager
        ),
        f"tensor_parallel_size {parallel.tensor_parallel_size} and pipeline_parallel_size "
        f"{parallel.pipeline_parallel_size} must be 1; use data parallel replicas": parallel.world_size != 1,
        f"quantization {vllm_config.model_config.quantization} is not implemented for this model; leave it out": (
            vllm_config.model_config.quantization is not None
        ),
        "a KV connector may cut images; leave out kv_transfer_config": vllm_config.kv_transfer_config is not None,
        "speculative decoding is not implemented for this model; leave out speculative_config": (
            vllm_config.speculative_config is not None
        ),
    }
    for message, wrong in problems.items():
        if wrong:
            raise ValueError(message)


def served_config(model_config: ModelConfig) -> HyVLMConfig | HyVLAConfig:
    """The checkpoint's config; a VLM's is completed from tensor shapes and tokenizer, as it is for training.

    ValueError for a checkpoint that is neither a VLM nor a policy.
    """
    config = model_config.hf_config
    if isinstance(config, HyVLAConfig):
        return config
    if not isinstance(config, HyVLMConfig):
        raise ValueError(f"{model_config.model} is a {config.model_type}, neither a VLM nor a policy of the lab")
    folder = checkpoint_folder(model_config.model, {"revision": model_config.revision})
    return complete_vlm_config(config, checkpoint_shapes(folder), folder)


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
