"""Chat with images and videos: messages to prompts, prompts and pictures to tensors.

Letters: B prompts, S tokens, M images, N rows of pixel values, w, h sides of a picture's patch grid.

In a prompt an image is `S IMG L E` (vision start, patch, latent, vision end) and a video `S VID L E`. IMG becomes the
rows of the image, `(IMG * w/2, N) * h/2` with a separator N after each; VID becomes one `S (VID * w/2, N) * h/2 E` for
each frame. A prompt that holds a video without latent token, exactly `S VID E`, gives its own S and E up for those.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin
from transformers.video_utils import is_valid_video

from rl_lab.model.images import VIDEO_CONFIG, Grid, ImageProcessor
from rl_lab.model.loading import checkpoint_folder
from rl_lab.model.options import refuse_unknown
from rl_lab.model.sizes import MERGE
from rl_lab.model.tokenizer import CHAT_TEMPLATE, ROLES, load_tokenizer, save_tokenizer, special_token_ids

TOKENIZER_OPTIONS = frozenset(inspect.signature(PreTrainedTokenizerFast.__call__).parameters) - {"self", "kwargs"}
"""Options of a call that the tokenizer takes."""
IGNORED = -100
"""Label of a token that is not trained."""


def image_rows(token: str, height: int, width: int, merge: int) -> str:
    """Rows of a picture of height x width patches, each closed by its separator."""
    return (token * (width // merge) + ROLES["row_end"]) * (height // merge)


def image_tokens(grid: Sequence[int], image: int, row_end: int) -> list[int]:
    """The same as token ids, of an image whose patch grid is (h, w)."""
    height, width = grid
    return ([image] * (width // MERGE) + [row_end]) * (height // MERGE)


def video_frames(frames: int, height: int, width: int, merge: int) -> str:
    """Frames of a video, each between vision start and end."""
    frame = image_rows(ROLES["video"], height, width, merge)
    return (ROLES["vision_start"] + frame + ROLES["vision_end"]) * frames


def flat_pictures(nested: Any) -> list[Any]:
    """Pictures of one picture, a list of them, or a list for each prompt; empty for None."""
    if nested is None:
        return []
    return [item for part in nested for item in flat_pictures(part)] if isinstance(nested, (list, tuple)) else [nested]


def flat_videos(nested: Any) -> list[Any]:
    """Videos of one (frames, or uint8 [T, H, W, 3]), a list of them, or a list for each prompt; empty for None."""
    if nested is None:
        return []
    if is_valid_video(nested):
        return [nested]
    if not isinstance(nested, (list, tuple)):
        raise ValueError(
            f"a video is of type {type(nested).__name__}; give its frames: pictures, or uint8 [T, H, W, 3]"
        )
    return [video for part in nested for video in flat_videos(part)]


def answer_labels(batch: BatchFeature) -> Tensor:
    """Labels [B, S] of a batch with `assistant_masks`: the answers and their end tokens, -100 elsewhere."""
    trained = torch.as_tensor(np.asarray(batch["assistant_masks"])).bool()
    return torch.where(trained, batch["input_ids"], IGNORED)


class HunYuanVLMoTProcessor(ProcessorMixin):
    """Image processor, tokenizer and chat template of a checkpoint. The name is the released one."""

    def __init__(
        self,
        image_processor: ImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Special tokens are looked up by name: ValueError if the tokenizer lacks them.

        Without a template the tokenizer's is used, and ours if it has none.
        """
        template = chat_template or getattr(tokenizer, "chat_template", None) or CHAT_TEMPLATE.read_text()
        super().__init__(image_processor, tokenizer, chat_template=template)
        self.image_token, self.video_token = ROLES["image"], ROLES["video"]
        ids = special_token_ids(self.tokenizer)
        self.image_token_id, self.video_token_id = ids["image"], ids["video"]

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]  # as the model's
        """Read a checkpoint folder or hub id, with other bounds of pictures (`min_pixels`, `max_pixels`) if given."""
        folder = checkpoint_folder(name, kwargs)
        refuse_unknown(kwargs, known=("min_pixels", "max_pixels", "trust_remote_code"))
        images = ImageProcessor.from_pretrained(folder).bounded(kwargs.get("min_pixels"), kwargs.get("max_pixels"))
        return cls(images, load_tokenizer(folder))

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write tokenizer, chat template and the image processor's config, with the one that the released processor
        reads for videos."""
        refuse_unknown(kwargs)
        self.tokenizer.chat_template = self.chat_template
        save_tokenizer(self.tokenizer, Path(folder))
        self.image_processor.save_pretrained(folder)
        (Path(folder) / VIDEO_CONFIG).write_text(json.dumps(self.image_processor.video_config(), indent=2) + "\n")

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that go into the model."""
        visual = ["pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"]
        return ["input_ids", "attention_mask", *visual]

    def _expanded(self, text: list[str], images: list[Grid], videos: list[Grid]) -> tuple[list[str], list[Any]]:
        """Prompts with every placeholder replaced by the rows of its picture, and where that was done."""
        for kind, token, grids in (("image", self.image_token, images), ("video", self.video_token, videos)):
            found = sum(prompt.count(token) for prompt in text)
            if found != len(grids):
                raise ValueError(f"the prompts hold {found} {kind} placeholders but {len(grids)} {kind}s are given")
        merge = self.image_processor.merge_size
        bare = ROLES["vision_start"] + self.video_token + ROLES["vision_end"]
        return self.get_text_with_replacements(
            [prompt.replace(bare, self.video_token) for prompt in text],
            [image_rows(self.image_token, height, width, merge) for _, height, width in images],
            [video_frames(*grid, merge) for grid in videos],
        )

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        padding: bool | str = True,
        padding_side: str = "left",
        return_tensors: str | None = "pt",
        return_text_replacement_offsets: bool = False,
        return_mm_token_type_ids: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **tokenizer_options: Any,
    ) -> BatchFeature:
        """Model inputs of B prompts: ids and mask [B, S], pixel values [N, 3 * p * p] and grids [M, 3].

        Pictures are PIL images, uint8 [H, W, 3], paths or URLs, flat or a list for each prompt, in the order of their
        placeholders; other bounds of their area may be given. Prompts hold their special tokens already, so none are
        added. ValueError if placeholders and pictures are not equally many, and for an option that is not honoured.
        """
        refuse_unknown(tokenizer_options, known=TOKENIZER_OPTIONS)
        cut = self.image_processor.bounded(min_pixels, max_pixels)
        prompts = [text] if isinstance(text, str) else list(text or [])
        pictures = self.image_processor.fetch_images(flat_pictures(images))
        done = [cut(picture) for picture in pictures]
        filmed = [cut.video(video) for video in flat_videos(videos)]
        prompts, offsets = self._expanded(prompts, [grid for _, grid in done], [grid for _, grid in filmed])
        tokenizer_options.setdefault("add_special_tokens", False)
        data = dict(self.tokenizer(prompts, padding=padding, padding_side=padding_side, **tokenizer_options))
        data.pop("token_type_ids", None)
        if return_text_replacement_offsets:
            data["text_replacement_offsets"] = offsets
        if return_mm_token_type_ids:
            data["mm_token_type_ids"] = self.create_mm_token_type_ids(data["input_ids"])
        for pairs, pixels, grid in (
            (done, "pixel_values", "image_grid_thw"),
            (filmed, "pixel_values_videos", "video_grid_thw"),
        ):
            if pairs:
                data[pixels] = np.concatenate([patches for patches, _ in pairs])
                data[grid] = np.array([shape for _, shape in pairs], np.int64)
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)
