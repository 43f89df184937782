"""Pictures of questions inside a page: small, within a budget, and honest about what was left out."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from rl_lab.pictures import read_picture

IMAGE_SIDE = 360
"""Longest side of a picture in pixels; larger ones are scaled down."""


def picture(image: bytes | Path) -> str:
    """A picture as a data URI of at most IMAGE_SIDE pixels. ValueError if it is none."""
    small = read_picture(image)
    small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


class Pictures:
    """Encoded pictures within a budget of bytes, and how many were left out or could not be read."""

    def __init__(self, budget: int) -> None:
        self.left, self.without, self.broken = budget, 0, 0

    def encode(self, images: Iterable[bytes | Path]) -> list[str]:
        """Data URIs of those that can be read and fit."""
        shown: list[str] = []
        for image in images:
            try:
                uri = picture(image)
            except ValueError:
                self.broken += 1
                continue
            if len(uri) > self.left:
                self.without += 1
                continue
            self.left -= len(uri)
            shown.append(uri)
        return shown

    def problems(self) -> list[str]:
        """What the page lacks, one line each."""
        lines = [f"{self.without} pictures did not fit into the page"] if self.without else []
        return [*lines, *([f"{self.broken} pictures are missing or cannot be read"] if self.broken else [])]
