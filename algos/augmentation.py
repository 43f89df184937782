"""Hy-VLA's image augmentation (arXiv:2606.14409, released code), in numpy.

Half of the images are changed: by colour jitter, by noise, or by both, in this order. Frames of a history are changed
each on its own. A dark image is brightened first. Half of the changed images of index 0 are then cropped to a random
95 % and scaled back: the head camera's, and with a history its *oldest* frame only, as released (probably unintended
there). All of it happens to the picture, not to the black bars around it, which are added later in the released code.

Differs from the released code: uniform random numbers come from numpy, so not the same ones; the picture has the
model's size already, and is rounded to whole numbers once, at the end; black frames from before the episode stay black.
Letters: V cameras, K frames, S image side, H, W sides of the picture in it.
"""

from __future__ import annotations

import numpy as np

JITTER = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5}
"""Factors are drawn from [1 - x, 1 + x]."""
HUE = 0.05
"""Shift of the hue, in turns, drawn from [-x, x]."""
NOISE = 0.05
"""Largest scale of the noise, with images in [0, 1]."""
PER_CHANNEL = 0.5
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
    """One image, uint8 [S, S, 3]; black rows and columns at its edges stay."""
    place = picture_place(image)
    pixels = image[place] / 255.0
    if pixels.mean() <= DARK:
        pixels = np.minimum(pixels * BRIGHTEN, 1.0)
    if generator.random() < CHANGED:
        kind = generator.choice(["noise", "jitter", "both"])
        if kind != "noise":
            pixels = colour_jitter(pixels, generator)
        if kind != "jitter":
            pixels = add_noise(pixels, generator)
        if can_crop and generator.random() < CROPPED:
            pixels = random_crop(pixels, generator)
    result = image.copy()
    result[place] = np.round(255 * pixels)
    return result


def picture_place(image: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of an image [S, S, 3] from the first to the last that is not black; all of a black one."""
    ends = [np.flatnonzero(image.max(axis=axes)) for axes in ((1, 2), (0, 2))]
    rows, columns = (slice(int(end[0]), int(end[-1]) + 1) if len(end) else slice(None) for end in ends)
    return rows, columns


def add_noise(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gaussian or Laplace noise, or a Poisson number with a random sign, of a scale (Poisson: mean) up to `NOISE`.

    Each pixel [H, W, 3] has its own; in half of the images each channel too.
    """
    scale = generator.uniform(0, NOISE)
    kind = generator.choice(["gaussian", "laplace", "poisson"])
    shape = pixels.shape if generator.random() < PER_CHANNEL else (*pixels.shape[:-1], 1)
    if kind == "gaussian":
        noise = generator.normal(scale=scale, size=shape)
    elif kind == "laplace":
        noise = generator.laplace(scale=scale, size=shape)
    else:
        noise = generator.choice([-1, 1], size=shape) * generator.poisson(255 * scale, shape) / 255
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
    """A random rectangle of 95 % of both sides, scaled back bilinearly, [H, W, 3]."""
    for axis in (0, 1):
        pixels = _crop_axis(pixels, axis, generator)
    return pixels


def _crop_axis(pixels: np.ndarray, axis: int, generator: np.random.Generator) -> np.ndarray:
    side = pixels.shape[axis]
    kept = max(1, int(CROP * side))
    start = generator.integers(0, side - kept + 1)
    centres = np.clip((np.arange(side) + 0.5) * kept / side - 0.5, 0, kept - 1)
    low = np.floor(centres).astype(int)
    part = np.expand_dims(centres - low, tuple(other for other in range(pixels.ndim) if other != axis))
    first, second = (pixels.take(start + index, axis) for index in (low, np.minimum(low + 1, kept - 1)))
    return first * (1 - part) + second * part
