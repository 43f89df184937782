"""Hy-VLA's image augmentation (arXiv:2606.14409, released code), in numpy.

Half of the images are changed: by noise, by colour jitter, or by both. Frames of a history are changed each on its own.
A dark image is brightened first. Half of the changed images of index 0 are also cropped to a random 95 % and scaled
back: the head camera's, and with a history its *oldest* frame only, as released (probably unintended there).

Differs from the released code: uniform random numbers come from numpy, so not the same ones; black frames from before
the episode stay black.   Letters: V cameras, K frames, S image side.
"""

from __future__ import annotations

import numpy as np

JITTER = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5}
"""Factors are drawn from [1 - x, 1 + x]."""
HUE = 0.05
"""Shift of the hue, in turns, drawn from [-x, x]."""
NOISE = 0.05
"""Largest scale of the noise, with images in [0, 1]."""
DARK, BRIGHTEN = 0.15, 1.75
CHANGED, CROPPED, CROP = 0.5, 0.5, 0.95
GREY = np.array([0.299, 0.587, 0.114])
"""Luma of red, green, blue."""


def augment(views: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Changed views of one state, uint8 [V, K, S, S, 3]."""
    result = views.copy()
    for camera in range(views.shape[0]):
        for frame in range(views.shape[1]):
            image = views[camera, frame]
            if image.any():
                result[camera, frame] = augment_image(image, generator, can_crop=camera == frame == 0)
    return result


def augment_image(image: np.ndarray, generator: np.random.Generator, can_crop: bool = False) -> np.ndarray:
    """One image, uint8 [S, S, 3]."""
    pixels = image / 255.0
    if pixels.mean() <= DARK:
        pixels = np.minimum(pixels * BRIGHTEN, 1.0)
    if generator.random() < CHANGED:
        kind = generator.choice(["noise", "jitter", "both"])
        if can_crop and generator.random() < CROPPED:
            pixels = random_crop(pixels, generator)
        if kind != "jitter":
            pixels = add_noise(pixels, generator)
        if kind != "noise":
            pixels = colour_jitter(pixels, generator)
    return np.round(255 * pixels).astype(np.uint8)


def add_noise(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gaussian, Laplace or centred Poisson noise of a scale up to `NOISE`, each pixel and channel on its own."""
    scale = generator.uniform(0, NOISE)
    kind = generator.choice(["gaussian", "laplace", "poisson"])
    if kind == "gaussian":
        noise = generator.normal(scale=scale, size=pixels.shape)
    elif kind == "laplace":
        noise = generator.laplace(scale=scale, size=pixels.shape)
    else:
        noise = (generator.poisson(255 * scale, pixels.shape) - 255 * scale) / 255
    return np.clip(pixels + noise, 0, 1)


def colour_jitter(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue by random factors, in random order (torchvision's ColorJitter)."""
    for name in generator.permutation([*JITTER, "hue"]):
        if name == "hue":
            pixels = shift_hue(pixels, generator.uniform(-HUE, HUE))
            continue
        factor = generator.uniform(1 - JITTER[name], 1 + JITTER[name])
        grey = pixels @ GREY
        other = {"brightness": np.zeros(()), "contrast": grey.mean(), "saturation": grey[..., None]}[str(name)]
        pixels = np.clip(factor * pixels + (1 - factor) * other, 0, 1)
    return pixels


def shift_hue(pixels: np.ndarray, turns: float) -> np.ndarray:
    """Rotate the hue of HSV, [..., 3] in [0, 1]; grey stays."""
    value, least = pixels.max(axis=-1), pixels.min(axis=-1)
    chroma = value - least
    safe = np.where(chroma > 0, chroma, 1.0)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    sector = np.select(
        [value == red, value == green], [(green - blue) / safe % 6, (blue - red) / safe + 2], (red - green) / safe + 4
    )
    hue = (sector + 6 * turns) % 6
    # f(n) = v - c max(0, min(k, 4 - k, 1)) with k = (n + h) mod 6 for n = 5, 3, 1
    offsets = (np.array([5, 3, 1]) + hue[..., None]) % 6
    return value[..., None] - chroma[..., None] * np.clip(np.minimum(offsets, 4 - offsets), 0, 1)


def random_crop(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random square of 95 % of the side, scaled back bilinearly, [S, S, 3]."""
    side = len(pixels)
    kept = max(1, round(CROP * side))
    top, left = generator.integers(0, side - kept + 1, size=2)
    centres = np.clip((np.arange(side) + 0.5) * kept / side - 0.5, 0, kept - 1)
    low = np.floor(centres).astype(int)
    high, part = np.minimum(low + 1, kept - 1), centres - low
    crop = pixels[top : top + kept, left : left + kept]
    rows = crop[low] * (1 - part)[:, None, None] + crop[high] * part[:, None, None]
    return rows[:, low] * (1 - part)[None, :, None] + rows[:, high] * part[None, :, None]
