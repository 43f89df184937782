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
    noise = np.stack([a.add_noise(np.full((16, 16, 3), 0.5), GENERATOR(seed)) - 0.5 for seed in range(100)])
    assert abs(noise.mean()) < 2e-3
    scales = noise.std(axis=(1, 2, 3))
    assert scales.min() < 0.02 and 0.04 < scales.max() < 0.08


def test_a_crop_keeps_95_percent_and_flat_images():
    ramp = np.tile(np.linspace(0, 1, 40)[None, :, None], (40, 1, 3))
    spans = {round(np.ptp(a.random_crop(ramp, GENERATOR(seed))), 3) for seed in range(20)}
    assert all(0.93 < span <= 0.95 for span in spans)
    np.testing.assert_allclose(a.random_crop(np.full((40, 40, 3), 0.3), GENERATOR(0)), 0.3)


def test_only_image_0_is_cropped(monkeypatch):
    cropped = []
    monkeypatch.setattr(a, "random_crop", lambda pixels, _: cropped.append(pixels.mean()) or pixels)
    marked = views(3)
    marked[0, 0] = 200
    for seed in range(40):
        a.augment(marked, GENERATOR(seed))
    assert 4 <= len(cropped) <= 16 and np.allclose(cropped, 200 / 255)
