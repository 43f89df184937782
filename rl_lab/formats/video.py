"""H.264 videos of square frames at an exact rate: frame i is shown at i / rate seconds."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

CODEC, LOSSLESS_CODEC = "libx264", "libx264rgb"
ENCODER_OPTIONS = {"crf": "18", "g": "2", "preset": "veryfast", "threads": "1"}
"""A key frame every second frame, as LeRobot writes them: single frames are found fast."""


def exact_rate(hz: float) -> Fraction:
    """12.5 -> 25/2, 16.67 (250 / 15) -> 50/3."""
    return Fraction(hz).limit_denominator(1000)


class VideoWriter:
    """One video file; frames are appended."""

    def __init__(self, path: Path, hz: float, side: int, lossless: bool = False) -> None:
        self.path = path
        self.num_frames = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rate = exact_rate(hz)
        self._container = av.open(str(path), "w")
        stream: Any = self._container.add_stream(
            LOSSLESS_CODEC if lossless else CODEC,
            rate=self._rate,
            options=ENCODER_OPTIONS | ({"crf": "0"} if lossless else {}),
        )
        stream.width = stream.height = side
        stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        stream.time_base = 1 / self._rate
        self._stream = stream

    def append(self, image: np.ndarray) -> None:
        """Add one RGB image, uint8 [S, S, 3]."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self.num_frames, 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1

    @property
    def num_bytes(self) -> int:
        """Bytes on the disk so far: none before the encoder gives out its first frames."""
        return self.path.stat().st_size if self.path.exists() else 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()


def read_frames(path: Path, start: float = 0.0) -> Iterator[tuple[float, np.ndarray]]:
    """Time in seconds and RGB image, uint8 [H, W, 3], of the frames from the last key frame before `start` on."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if start > 0 and stream.time_base:
            container.seek(int(start / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            yield float(frame.time or 0.0), frame.to_ndarray(format="rgb24")
