"""Films of episodes as WebM with VP9, which browsers play, pause and step."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

OPTIONS = {"crf": "34", "b:v": "0", "deadline": "realtime", "cpu-used": "5"}
"""Of the encoder: a quality instead of a rate."""


def webm(pictures: Sequence[np.ndarray], pictures_hz: float) -> bytes:
    """The file of at least one picture uint8 [h, w, 3], h and w even, so many of them a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as file:
        stream = file.add_stream("libvpx-vp9", rate=Fraction(pictures_hz).limit_denominator(1000), options=OPTIONS)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()
