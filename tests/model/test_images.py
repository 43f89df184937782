"""Pictures to patches: the size rule by hand, and equal to the stock Qwen2-VL processor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rl_lab.model.chat import IMAGE_CONFIG, ImageProcessor
from rl_lab.model.vision import patchify
from tests.support.models import picture

PROCESSOR = ImageProcessor(patch_size=16, min_pixels=64 * 64, max_pixels=256 * 256)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 96), (128, 96)),  # whole cells already
        ((100, 80), (96, 64)),  # to the nearest cells, halves to even: 2.5 -> 2
        ((8, 8), (64, 64)),  # grown to the lower bound
        ((1000, 500), (352, 160)),  # shrunk below the upper bound
    ],
)
def test_a_picture_gets_whole_cells_within_the_bounds(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert PROCESSOR.target_size(*size) == expected
    assert PROCESSOR.grid(*size) == (1, expected[0] // 16, expected[1] // 16)
    assert PROCESSOR.num_tokens(PROCESSOR.grid(*size)) == expected[0] * expected[1] // 1024


@pytest.mark.parametrize("size", [(64, 64), (100, 80), (37, 61), (300, 410), (9, 40)])
def test_patches_equal_the_stock_processor_reading_our_config(size: tuple[int, int], tmp_path: Path) -> None:
    PROCESSOR.save_pretrained(tmp_path)
    stock = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)(images=Image.fromarray(picture(*size)))
    patches, grid = PROCESSOR(picture(*size))
    assert patches.dtype == np.float32 and [list(grid)] == stock["image_grid_thw"].tolist()
    np.testing.assert_allclose(patches, stock["pixel_values"], atol=1e-6)


def test_patches_are_in_the_merge_order_of_the_vision_tower() -> None:
    image = picture(64, 96)
    scaled = torch.from_numpy(image).float() / 127.5 - 1
    expected = patchify(scaled.permute(2, 0, 1)[None], 16)[0]
    torch.testing.assert_close(torch.from_numpy(PROCESSOR(image)[0]), expected, atol=1e-6, rtol=0)


def test_a_pil_picture_of_any_mode_and_an_array_give_the_same() -> None:
    image = Image.fromarray(picture(64, 64))
    np.testing.assert_array_equal(PROCESSOR(image)[0], PROCESSOR(picture(64, 64))[0])
    assert PROCESSOR(image.convert("RGBA"))[0].shape == PROCESSOR(image.convert("L"))[0].shape == (16, 768)


def test_a_video_is_its_frames_one_after_the_other() -> None:
    frames = [picture(64, 96, seed) for seed in range(3)]
    patches, grid = PROCESSOR.video(frames)
    assert grid == (3, 4, 6)
    np.testing.assert_array_equal(patches, np.concatenate([PROCESSOR(frame)[0] for frame in frames]))
    with pytest.raises(ValueError, match="frames of one size"):
        PROCESSOR.video([picture(64, 64), picture(64, 128)])


def test_a_round_trip_is_byte_stable(tmp_path: Path) -> None:
    PROCESSOR.save_pretrained(tmp_path / "first")
    ImageProcessor.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    written = [(tmp_path / name / IMAGE_CONFIG).read_bytes() for name in ("first", "second")]
    assert written[0] == written[1] and vars(PROCESSOR) == vars(ImageProcessor.from_pretrained(tmp_path / "second"))


def test_bounds_are_read_under_either_name_and_another_scaling_is_refused() -> None:
    read = ImageProcessor.from_dict({"size": {"shortest_edge": 4096, "longest_edge": 65536}, "patch_size": 16})
    assert vars(read) == vars(PROCESSOR)
    with pytest.raises(ValueError, match=r"image_mean is \[0\.48"):
        ImageProcessor.from_dict({"image_mean": [0.48, 0.46, 0.41]})


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"float32 \[64, 64, 3\]; give a PIL image"):
        PROCESSOR(np.zeros((64, 64, 3), np.float32))
    with pytest.raises(ValueError, match="too narrow"):
        PROCESSOR(picture(2, 900))
    with pytest.raises(ValueError, match="leave no picture size"):
        ImageProcessor(min_pixels=0, max_pixels=100)
