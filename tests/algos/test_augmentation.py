"""Augmentations by hand values, and how often they happen."""

import colorsys

import numpy as np
import pytest

from algos import augmentation as a

GENERATOR = np.random.default_rng


def views(frames: int = 1, shade: int = 100) -> np.ndarray:
    return np.full((3, frames, 8, 8, 3), shade, np.uint8)


def test_about_half_of_the_images_change_each_on_its_own():
    changed = np.stack([(a.augment(views(6), GENERATOR(seed)) != 100).any((2, 3, 4)) for seed in range(60)])
    assert 0.45 < changed.mean() < 0.55
    assert 0.35 < changed[:, 0, 0].mean() < 0.65 and 0.35 < changed[:, 2, 5].mean() < 0.65


def test_frames_from_before_the_episode_stay_black_and_dark_images_are_brightened():
    assert not a.augment(views(2, shade=0), GENERATOR(0)).any()
    dark = [a.augment_image(np.full((8, 8, 3), 20, np.uint8), GENERATOR(seed)) for seed in range(8)]
    assert [image[0, 0, 0] for image in dark].count(35) >= 2
    assert np.full((8, 8, 3), 39, np.uint8)[0, 0, 0] in a.augment_image(np.full((8, 8, 3), 39, np.uint8), GENERATOR(0))


@pytest.mark.parametrize("turns", [-0.05, 0.0, 0.05, 0.4])
def test_the_hue_turns_as_in_hsv(turns):
    pixels = GENERATOR(3).random((40, 3))
    pixels[0] = 0.5
    for before, after in zip(pixels, a.shift_hue(pixels, turns), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        np.testing.assert_allclose(after, colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), atol=1e-9)


def test_jitter_stays_within_its_ranges():
    pixels = np.full((4, 4, 3), 0.5)
    jittered = np.stack([a.colour_jitter(pixels, GENERATOR(seed)) for seed in range(200)])
    assert 0.35 <= jittered.min() < 0.37 and 0.63 < jittered.max() <= 0.65, "grey is changed by brightness alone"


def test_noise_is_centred_and_no_larger_than_its_scale():
    noise = np.stack([a.add_noise(np.full((16, 16, 3), 0.5), GENERATOR(seed)) - 0.5 for seed in range(200)])
    assert abs(noise.mean()) < 2e-3
    scales = noise.std(axis=(1, 2, 3))
    assert scales.min() < 0.02 and 0.04 < scales.max() < 0.08
    grey = [np.ptp(image, axis=-1).max() == 0 for image in noise]
    assert 0.35 < np.mean(grey) < 0.65, "the same in all channels of half of the images"


def test_the_picture_changes_and_the_bars_around_it_stay_black():
    image = np.zeros((16, 16, 3), np.uint8)
    image[3:13] = 100
    assert a.picture_place(image) == (slice(3, 13), slice(0, 16))
    changed = [a.augment_image(image, GENERATOR(seed), can_crop=True) for seed in range(20)]
    assert not any(found[:3].any() or found[13:].any() for found in changed)
    assert sum((found[3:13] != 100).any() for found in changed) >= 5


def test_colours_change_first_then_noise_then_the_crop(monkeypatch):
    order = []
    for name in ("colour_jitter", "add_noise", "random_crop"):
        monkeypatch.setattr(a, name, lambda pixels, _, name=name: order.append(name) or pixels)
    image = np.full((8, 8, 3), 100, np.uint8)
    for seed in range(60):
        order.clear()
        a.augment_image(image, GENERATOR(seed), can_crop=True)
        if len(order) == 3:
            break
    assert order == ["colour_jitter", "add_noise", "random_crop"]


def test_a_crop_keeps_95_percent_and_flat_images():
    ramp = np.tile(np.linspace(0, 1, 40)[None, :, None], (40, 1, 3))
    spans = {round(np.ptp(a.random_crop(ramp, GENERATOR(seed))), 3) for seed in range(20)}
    assert all(0.93 < span <= 0.95 for span in spans)
    wide = np.stack([np.arange(40) % 2, np.zeros(40), np.ones(40)], axis=-1)[None].repeat(20, axis=0)
    assert a.random_crop(wide, GENERATOR(1)).shape == (20, 40, 3)
    np.testing.assert_allclose(a.random_crop(np.full((40, 40, 3), 0.3), GENERATOR(0)), 0.3)


def test_only_image_0_is_cropped_and_half_of_its_changed_ones(monkeypatch):
    seen, cropped = [], []
    whole = a.augment_image
    monkeypatch.setattr(a, "random_crop", lambda pixels, _: cropped.append(1) or pixels)
    monkeypatch.setattr(a, "augment_image", lambda image, _, can_crop: seen.append((image.mean(), can_crop)) or image)
    marked = views(3)
    marked[0, 0] = 200
    a.augment(marked, GENERATOR(0))
    assert seen == [(200, True)] + [(100, False)] * 8
    for seed in range(80):
        whole(marked[0, 0], GENERATOR(seed), can_crop=True)
    assert 10 <= len(cropped) <= 30
