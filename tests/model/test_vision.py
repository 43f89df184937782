"""The vision tower and merger: packed images of different sizes, and the golden features."""

import pytest
import torch
from safetensors.torch import load_file

from rl_lab.benchmarks.golden import HIDDEN, golden_path, load_policy
from rl_lab.model.vision import Visual, patchify
from tests.support.models import make_policy

SIZES = ((64, 64), (32, 96), (64, 64), (32, 32), (32, 96))
"""Height and width of some images, pixels."""


@pytest.fixture(scope="module")
def visual() -> Visual:
    return make_policy().model.vlm.visual


def draw_images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, height, width, generator=generator) * 2 - 1 for height, width in sizes]


def pack(images: list[torch.Tensor], patch_size: int) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    grids = [(image.shape[-2] // patch_size, image.shape[-1] // patch_size) for image in images]
    return torch.cat([patchify(image, patch_size)[0] for image in images]), grids


@pytest.mark.parametrize("name", ["vlm_image2", "vlm_image2_adjacent", "vlm_video"])
def test_packed_images_have_the_reference_features(name: str) -> None:
    case = load_file(golden_path(f"{name}.safetensors"))
    kind = "_videos" if "in.pixel_values_videos" in case else ""
    thw = case["in.video_grid_thw" if kind else "in.image_grid_thw"]
    grids = [(height, width) for frames, height, width in thw.tolist() for _ in range(frames)]
    visual = load_policy().model.vlm.visual
    with torch.no_grad():
        tokens = visual.encode_patches(case[f"in.pixel_values{kind}"].float(), grids)
    expected = [case[f"out.visual_features.{image}"] for image in range(len(grids))]
    torch.testing.assert_close(tokens, torch.cat(expected), **HIDDEN)


def test_an_image_has_the_same_tokens_alone_and_among_images_of_other_sizes(visual: Visual) -> None:
    images = draw_images(*SIZES)
    packed = visual.encode_patches(*pack(images, visual.vision_tower.sizes.patch_size))
    alone = torch.cat([visual(image)[0] for image in images])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_gradients_do_not_cross_from_one_image_to_another(visual: Visual) -> None:
    patches, grids = pack(draw_images(*SIZES), visual.vision_tower.sizes.patch_size)
    patches.requires_grad_()
    tokens = visual.encode_patches(patches, grids)
    lengths = [height * width for height, width in grids]
    visible = tokens.split([length // 4 for length in lengths])[1].sum()
    (gradient,) = torch.autograd.grad(visible, patches)
    seen = [bool(part.any()) for part in gradient.split(lengths)]
    assert seen == [False, True, False, False, False]


@pytest.mark.parametrize("grids", [[(4, 4), (2, 4)], [(4, 5), (2, 2)]])
def test_grids_that_do_not_fit_the_patches_are_refused(visual: Visual, grids: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="every side a multiple of 2"):
        visual.encode_patches(torch.zeros(16 if grids[0] == (4, 4) else 24, 768), grids)
