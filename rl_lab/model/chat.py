"""Chat with images and videos: messages to prompts, prompts and pictures to tensors.

In a prompt an image is `S IMG L E` (vision start, patch, latent, vision end) and a video `S VID L E`. IMG becomes the
rows of the image, `(IMG * w/2, N) * h/2` with a separator N after each; VID becomes one `S (VID * w/2, N) * h/2 E` for
each frame. A prompt that holds a video without latent token, exactly `S VID E`, gives its own S and E up for those.

Pictures become patches by the size rule, resize and patch order of the Qwen2-VL processor, with PIL and numpy alone: a
picture is resized to whole cells of 2 x 2 patches with an area between two bounds, its aspect kept as well as that
allows, scaled to [-1, 1] and cut into patches. A video is a sequence of frames, each a picture of its own.

Letters: B prompts, S tokens, M images, N rows of pixel values, H, W pixels of a picture, p patch side, h, w sides of
its patch grid, n = h * w patches.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.image_processing_base import ImageProcessingMixin
from transformers.processing_utils import ProcessorMixin
from transformers.video_utils import is_valid_video

from rl_lab.common.reading import fit, read_object
from rl_lab.model.loading import checkpoint_folder
from rl_lab.model.tokenizer import CHAT_TEMPLATE, ROLES, load_tokenizer, save_tokenizer, special_token_ids
from rl_lab.model.vlm_config import MERGE, SHIM, check_aspect, refuse_unknown

if TYPE_CHECKING:
    from PIL import Image

IMAGE_CONFIG = "preprocessor_config.json"

Pixels = Annotated[int, Field(ge=0, le=2**31)]

VIDEO_CONFIG = "video_preprocessor_config.json"
"""Read by the released processor; here videos are cut as pictures are."""

VIDEO_FRAMES = 768
"""Frames for which the bound of a video's area is written; the most that the Qwen3-VL processor takes."""

_IMAGE_ONLY = ("auto_map", "image_processor_type", "min_pixels", "max_pixels")

Grid = tuple[int, int, int]
"""Frames, rows and columns of patches."""

Picture: TypeAlias = "Image.Image | np.ndarray"
"""PIL is imported where a picture is read: a model that is trained and measured on tensors does without it."""


def to_rgb(picture: Picture) -> Image.Image:
    """A PIL picture or an array uint8 [H, W, 3] as an RGB picture, as `rl_lab.common.pictures` reads it; ValueError for
    any other array."""
    from PIL import Image

    from rl_lab.common import pictures

    if isinstance(picture, Image.Image):
        return pictures.to_rgb(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"image is {picture.dtype} {list(picture.shape)}; give a PIL image or uint8 [H, W, 3]")
    return Image.fromarray(picture)


class ImageProcessor(ImageProcessingMixin):
    """One picture to patches and their grid. Reads and writes `preprocessor_config.json`, of a folder or a hub id."""

    def __init__(
        self,
        patch_size: int = 16,
        merge_size: int = MERGE,
        min_pixels: int = 512 * 512,
        max_pixels: int = 2048 * 2048,
    ) -> None:
        """Side of a patch in pixels; patches per side of a cell, which becomes one token; bounds of the area of a
        resized picture. ValueError if no cell fits the bounds."""
        super().__init__()
        self.patch_size, self.merge_size = patch_size, merge_size
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        if not max(self.cell**2, min_pixels) <= max_pixels:
            raise ValueError(
                f"min_pixels {min_pixels} and max_pixels {max_pixels} leave no picture size; use "
                f"min_pixels <= max_pixels and at least {self.cell**2}, one cell of {self.cell} x {self.cell}"
            )

    def bounded(self, min_pixels: int | None, max_pixels: int | None) -> ImageProcessor:
        """The same with other bounds of the area; None keeps one."""
        given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        changes = {name: value for name, value in given.items() if value is not None}
        return type(self).from_dict(self.to_dict() | changes) if changes else self

    @property
    def cell(self) -> int:
        """Side of the pixels of one token."""
        return self.merge_size * self.patch_size

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width a picture is resized to: multiples of `cell`, area within the bounds."""
        check_aspect(height, width)
        rounded = [round(side / self.cell) * self.cell for side in (height, width)]
        area = rounded[0] * rounded[1]
        if area > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rounded = [max(1, math.floor(side / shrink / self.cell)) * self.cell for side in (height, width)]
        elif area < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rounded = [math.ceil(side * grow / self.cell) * self.cell for side in (height, width)]
        # A picture far below one cell rounds to no cell at all when the lower bound is 0.
        return max(rounded[0], self.cell), max(rounded[1], self.cell)

    def grid(self, height: int, width: int) -> Grid:
        """Patch grid of a picture of this size in pixels."""
        target = self.target_size(height, width)
        return 1, target[0] // self.patch_size, target[1] // self.patch_size

    def num_tokens(self, grid: Grid) -> int:
        """Vision tokens of a grid, all frames."""
        return math.prod(grid) // self.merge_size**2

    def patches(self, pixels: np.ndarray) -> np.ndarray:
        """Scaled pixels [H, W, 3] to [n, 3 * p * p] in merge order, features (channel, row, column)."""
        p, m = self.patch_size, self.merge_size
        height, width, channels = pixels.shape
        cut = pixels.reshape(height // self.cell, m, p, width // self.cell, m, p, channels)
        return np.ascontiguousarray(cut.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, channels * p * p)

    def __call__(self, picture: Picture) -> tuple[np.ndarray, Grid]:
        """Patches float32 [n, 3 * p * p] of one picture, in [-1, 1] and merge order, and their grid (1, h, w)."""
        from PIL.Image import Resampling

        image = to_rgb(picture)
        height, width = self.target_size(image.height, image.width)
        if (image.height, image.width) != (height, width):
            image = image.resize((width, height), Resampling.BICUBIC)
        scaled = np.asarray(image, np.float32) / np.float32(127.5) - np.float32(1)
        return self.patches(scaled), (1, height // self.patch_size, width // self.patch_size)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Pictures of paths and data URIs, as `rl_lab.common.pictures` reads them; of others as transformers does."""
        from rl_lab.common import pictures

        given = image_url_or_urls
        if isinstance(given, str) and (given.startswith("data:") or os.path.isfile(given)):
            return pictures.read_picture(given)
        return super().fetch_images(given)

    def video(self, frames: Sequence[Picture]) -> tuple[np.ndarray, Grid]:
        """Patches of all frames, one after the other, and the grid (frames, h, w).

        ValueError for no frames or frames of different size.
        """
        done = [self(frame) for frame in frames]
        if not done or len({grid for _, grid in done}) != 1:
            raise ValueError(f"video has frames of {len({g for _, g in done})} sizes; give frames of one size")
        _, height, width = done[0][1]
        return np.concatenate([patches for patches, _ in done]), (len(done), height, width)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]  # no other way to read
        """Read a folder or hub id. UserError for a file of a folder that holds something else."""
        if (Path(name) / IMAGE_CONFIG).is_file():
            stated = read_object(Path(name) / IMAGE_CONFIG)
            known = {key: value for key, value in stated.items() if key in _Stated.model_fields}
            fit(known, _Stated, str(Path(name) / IMAGE_CONFIG))
        return super().from_pretrained(name, **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Read the fields of a preprocessor config; ValueError for another mean, std or temporal patch than ours."""
        stated = image_processor_dict | kwargs
        for name, expected in (("image_mean", 0.5), ("image_std", 0.5), ("temporal_patch_size", 1)):
            values = stated.get(name) or expected
            if any(value != expected for value in (values if isinstance(values, list) else [values])):
                raise ValueError(f"{name} is {values} in {IMAGE_CONFIG}; the model was made for {expected}")
        sizes = {name: int(stated[name]) for name in ("patch_size", "merge_size") if stated.get(name)}
        return cls(**sizes, **_bounds(stated))

    def to_dict(self) -> dict[str, Any]:
        """All fields, under the names and the type of the Qwen2-VL processor: it reads them and does the same."""
        return {
            "processor_class": "HunYuanVLMoTProcessor",
            "auto_map": {"AutoProcessor": f"{SHIM}.HunYuanVLMoTProcessor"},
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "temporal_patch_size": 1,
            "patch_size": self.patch_size,
            "merge_size": self.merge_size,
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
        }

    def video_config(self) -> dict[str, Any]:
        """Fields of `video_preprocessor_config.json` under the names of the Qwen3-VL processor: every frame is kept.

        That processor bounds the area of all frames together, so long videos come out smaller there than here.
        """
        shared = {key: value for key, value in self.to_dict().items() if key not in _IMAGE_ONLY}
        bounds = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels * VIDEO_FRAMES}
        return shared | {"video_processor_type": "Qwen3VLVideoProcessor", "size": bounds, "do_sample_frames": False}


class _Stated(BaseModel):
    """What is read of a preprocessor config."""

    patch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    merge_size: Annotated[int, Field(ge=1, le=64)] | None = None
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    size: dict[str, Pixels | None] | None = None
    image_mean: list[float] | float | None = None
    image_std: list[float] | float | None = None
    temporal_patch_size: int | None = None


def _bounds(stated: dict[str, Any]) -> dict[str, int]:
    """`min_pixels` and `max_pixels` of a preprocessor config, which may keep them under `size` instead."""
    size = stated.get("size") or {}
    found = {
        "min_pixels": stated.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels"),
        "max_pixels": stated.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels"),
    }
    return {name: int(value) for name, value in found.items() if value}


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
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]  # as the model's
        """Read a checkpoint folder or hub id, with other bounds of pictures (`min_pixels`, `max_pixels`) if given."""
        folder = checkpoint_folder(pretrained_model_name_or_path, kwargs)
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
