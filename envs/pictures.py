"""Views of cameras as policies and films take them."""

from __future__ import annotations

import numpy as np
from PIL import Image


def fit(view: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """A view scaled to fit a black picture, its shape kept, uint8 [height, width, 3]; a square without a width."""
    width = height if width is None else width
    scale = min(height / view.shape[0], width / view.shape[1])
    scaled = (max(1, round(view.shape[1] * scale)), max(1, round(view.shape[0] * scale)))
    picture = Image.new("RGB", (width, height))
    image = Image.fromarray(view).resize(scaled, Image.Resampling.BILINEAR)
    picture.paste(image, ((width - scaled[0]) // 2, (height - scaled[1]) // 2))
    return np.asarray(picture).copy()
